# SPDX-License-Identifier: Apache-2.0
"""Data sets with label maps as ground truth: ADE20K in both releases, and BSDS500."""

from __future__ import annotations

import os
import re
import struct
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from sohes.data.formats import is_hidden
from sohes.evaluation.datasets.base import DataSet, LayoutError, Sample
from sohes.structures.masks import PackedMasks

# The 50 of ADE20K's 150 scene-parsing classes (from 1) without instances in the instance challenge: those that are not
# in its categoryMapping.txt.
# fmt: off
STUFF_CLASSES = (
    1, 2, 3, 4, 5, 6, 7, 10, 12, 14, 17, 18, 22, 26, 27, 29, 30, 35, 41, 47, 49, 52, 53, 55, 60, 61, 62, 64, 69,
    78, 80, 85, 92, 95, 97, 100, 101, 102, 106, 107, 110, 114, 115, 118, 123, 129, 132, 141, 142, 146,
)
# fmt: on


# Exceptions of scipy and Pillow for damaged files, beside their own types.
DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    NameError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)


class LabelMaps(DataSet[Path]):
    """A data set with one ground-truth file and one photo per image. Subclasses find the files and read them."""

    @property
    @abstractmethod
    def truth_files(self) -> list[Path]:
        """The ground-truth files, sorted; at least one."""

    @abstractmethod
    def read_truth(self, file: Path) -> tuple[tuple[int, int], list[dict[str, Any]]]:
        """((H, W), annotations) of one image."""

    @abstractmethod
    def file_name(self, file: Path) -> str:
        """Path of the photo of a ground-truth file, relative to `image_root`."""

    def inputs(self) -> list[Path]:
        return self.truth_files

    def keys(self) -> Sequence[Path]:
        return self.truth_files

    def read(self, key: Path) -> Sample:
        (height, width), annotations = self.read_truth(key)
        image = {"id": image_number(key), "file_name": self.file_name(key), "height": height, "width": width}
        return Sample(image, annotations)


class Ade20k(LabelMaps):
    """ADE20K val as released for the scene-parsing and instance challenges (SceneParsing, 150 classes)."""

    layout = (
        "ROOT/images/validation/*.jpg, ROOT/annotations/validation/*.png and "
        "ROOT/annotations_instance/validation/*.png, as in ADEChallengeData2016"
    )
    protocol = "every instance of the 100 thing classes, and each of the 50 stuff classes as one entity of a photo"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        if (root / "ADEChallengeData2016").is_dir():
            self.root = root / "ADEChallengeData2016"
        self.image_root = self.need("images/validation")
        self.classes, self.instances = self.need("annotations/validation"), self.need("annotations_instance/validation")

    @cached_property
    def truth_files(self) -> list[Path]:
        return _found(self.instances, "*.png", self.layout)

    def file_name(self, file: Path) -> str:
        return f"{file.stem}.jpg"

    def read_truth(self, file: Path) -> tuple[tuple[int, int], list[dict[str, Any]]]:
        classes = read_png(self.classes / file.name)  # [H, W], 0 is unlabelled
        channels = read_png(file)  # [H, W, 3]: class, instance, unused
        if classes.ndim != 2 or channels.ndim != 3 or channels.shape[:2] != classes.shape:
            raise LayoutError(f"{file}: expected an RGB picture of the size of {self.classes / file.name}, a gray one")
        instance = channels[:, :, 1].astype(np.int64)
        stuff = np.where((instance == 0) & np.isin(classes, STUFF_CLASSES), classes.astype(np.int64), 0)
        things, grounds = label_annotations(instance), label_annotations(stuff)
        return classes.shape, [{**one, "id": index} for index, one in enumerate([*things, *grounds])]


class Ade20kFull(LabelMaps):
    """The full ADE20K val (2021_17_01): all objects and stuff, their parts, and parts of parts."""

    layout = "ROOT/images/ADE/validation/**/NAME.jpg with NAME_seg.png and NAME_parts_1.png, ... beside it"
    protocol = "every segment of NAME_seg.png, and every part; a part's parent holds most of its pixels, one level up"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        if (root / "ADE20K_2021_17_01").is_dir():
            self.root = root / "ADE20K_2021_17_01"
        self.image_root = self.need("images/ADE/validation")

    @cached_property
    def truth_files(self) -> list[Path]:
        return _found(self.image_root, "**/*_seg.png", self.layout)

    def inputs(self) -> list[Path]:
        return [part for file in self.truth_files for part in (file, *_part_files(file))]

    def file_name(self, file: Path) -> str:
        return file.with_name(f"{file.name.removesuffix('_seg.png')}.jpg").relative_to(self.image_root).as_posix()

    def read_truth(self, file: Path) -> tuple[tuple[int, int], list[dict[str, Any]]]:
        annotations: list[dict[str, Any]] = []
        above: np.ndarray | None = None  # [H, W], index of the segment one level up, or -1
        for level, png in enumerate((file, *_part_files(file))):
            channels = read_png(png).astype(np.int64)  # [H, W, 3]
            if channels.ndim != 3 or (above is not None and channels.shape[:2] != above.shape):
                raise LayoutError(f"{png}: expected an RGB picture, of the size of {file}")
            kind = channels[:, :, 0] // 10 * 256 + channels[:, :, 1]  # class, 0 is unlabelled
            labels = np.where(kind > 0, kind * 256 + channels[:, :, 2], 0)  # class and instance
            found = label_annotations(labels)
            here = np.full(labels.shape, -1)
            for index, (label, one) in enumerate(zip(_labels_of(labels), found, strict=True), start=len(annotations)):
                here[labels == label] = index
                parent = None
                if above is not None:
                    inside, counts = np.unique(above[labels == label], return_counts=True)
                    # A root if most of its pixels are in no segment of the level above.
                    parent = int(inside[counts.argmax()]) if inside[counts.argmax()] >= 0 else None
                one |= {"id": index, "level": level, "parent": parent}
            annotations += found
            above = here
        return labels.shape, annotations


class Bsds500(LabelMaps):
    """BSDS500 test: about five annotators per photo, each with a segmentation of the whole photo."""

    split: ClassVar[str] = "test"
    layout = "ROOT/data/groundTruth/test/*.mat and ROOT/data/images/test/*.jpg, as in BSR/BSDS500"
    protocol = (
        "every segment of every annotator; each annotator counts as a photo of its own, with the same predictions"
    )

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for inner in ("BSR/BSDS500", "BSDS500"):
            if (root / inner).is_dir():
                self.root = root / inner
                break
        self.truth_folder = self.need(f"data/groundTruth/{self.split}")
        self.image_root = self.need(f"data/images/{self.split}")

    @cached_property
    def truth_files(self) -> list[Path]:
        return _found(self.truth_folder, "*.mat", self.layout)

    def file_name(self, file: Path) -> str:
        return f"{file.stem}.jpg"

    def read_truth(self, file: Path) -> tuple[tuple[int, int], list[dict[str, Any]]]:
        variables = read_mat(file)
        try:
            annotators = variables["groundTruth"][0]
            maps = [one["Segmentation"][0, 0].astype(np.int64) for one in annotators]  # each [H, W], labels from 1
            shape = maps[0].shape
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise LayoutError(
                f"{file}: expected a cell array groundTruth with fields Segmentation ({error})"
            ) from error
        if len(shape) != 2 or any(labels.shape != shape for labels in maps):
            raise LayoutError(f"{file}: expected segmentations of one height and width")
        found = [{**one, "annotator": who} for who, labels in enumerate(maps) for one in label_annotations(labels)]
        return shape, [{**one, "id": index} for index, one in enumerate(found)]


class Bsds500Val(Bsds500):
    """BSDS500 val."""

    split = "val"
    layout = "ROOT/data/groundTruth/val/*.mat and ROOT/data/images/val/*.jpg, as in BSR/BSDS500"


def label_annotations(labels: np.ndarray) -> list[dict[str, Any]]:
    """One annotation per label, rising. labels: int64 [H, W], 0 is unlabelled."""
    ids = torch.from_numpy(_labels_of(labels))
    masks = PackedMasks.from_label_map(torch.from_numpy(np.ascontiguousarray(labels)), ids)
    return [{"segmentation": rle} for rle in masks.to_rle()]


def read_mat(file: Path) -> dict[str, Any]:
    """The variables of a MATLAB file. Raises LayoutError if it cannot be read."""
    try:
        return loadmat(file)
    except NotImplementedError as error:  # HDF5, since MATLAB 7.3
        how = f"load it in MATLAB, and save('{file.name}', 'groundTruth', '-v7')"
        raise LayoutError(f"{file}: saved in MATLAB's format v7.3, expected v7 or older: {how}") from error
    except (MatReadError, OSError, *DAMAGED) as error:
        raise LayoutError(f"{file}: expected a MATLAB file, v7 or older ({error or type(error).__name__})") from error


def read_png(file: Path) -> np.ndarray:
    """The pixels of a PNG as stored. Raises LayoutError if it cannot be read."""
    try:
        with Image.open(file) as image:
            return np.array(image)
    except (OSError, SyntaxError, *DAMAGED) as error:
        raise LayoutError(f"{file}: cannot be read as a picture ({error or type(error).__name__})") from error


def image_number(file: Path) -> int:
    """The last number in a file's name: 7 for ADE_val_00000007_seg.png. Raises LayoutError if there is none."""
    digits = re.findall(r"\d+", file.stem)
    if not digits:
        raise LayoutError(f"{file}: expected a number in the file's name, to be the image's id")
    return int(digits[-1])


def _labels_of(labels: np.ndarray) -> np.ndarray:
    return np.setdiff1d(np.unique(labels), [0])


def _part_files(file: Path) -> Iterator[Path]:
    """The files of the part levels beside X_seg.png, from level 1 on."""
    level = 1
    while (part := file.with_name(f"{file.name.removesuffix('_seg.png')}_parts_{level}.png")).is_file():
        yield part
        level += 1


def _found(folder: Path, pattern: str, layout: str) -> list[Path]:
    found = (file for file in folder.glob(pattern) if not is_hidden(os.fsencode(file.relative_to(folder))))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise LayoutError(f"no {pattern} in {folder} (expected {layout})")
    return files
