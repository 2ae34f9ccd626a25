# SPDX-License-Identifier: Apache-2.0
"""COCO JSON in and out: label sets that stay on disk until asked for, and files written whole or not at all."""

import itertools
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from sohes.data.coco_records import has_keys, read_spans, scan_coco, shorten
from sohes.data.errors import DataError, DataNotFoundError
from sohes.files import whole_file
from sohes.forest import Forest

CATEGORIES = [{"id": 1, "name": "entity"}]

# Of the files written here: file names that are not valid UTF-8 survive as escapes.
_ENCODING = "ascii"


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """The labels of one image, N masks in the order of the file.

    path: of the image file, which is not opened. image_id: as in the file. size: (H, W) in pixels.
    forest: masks, scores (1 where the file has none) and parents. crowd: bool [N], COCO's `iscrowd`.
    annotator: int64 [N], which human drew each mask; None when the file does not say.
    """

    path: Path
    image_id: int
    forest: Forest
    size: tuple[int, int]
    crowd: Tensor
    annotator: Tensor | None


class LabelSet:
    """The images of one COCO JSON file, with their forests; or of a folder with label shards (`shard-*.json`) or
    an `annotations.json`.

    Each file is gone through once, in little memory. What stays is where the annotations of every image lie, about 150
    bytes an image: no Python object per annotation, and nothing that worker processes would copy by merely reading it.
    Annotations are read, and masks decoded, when an image is asked for; files must not change meanwhile.

    `annotations` may hold `score`, `parent` (an annotation id or null), `iscrowd` and `annotator`; `category_id` and
    `level` are ignored (levels follow from parents). A segmentation is an RLE (compressed or not) or polygons.

    Args:
        source: the JSON file or the folder.
        image_root: folder that `file_name`s are relative to. Default: `images/` beside the JSON file if there is
            such a folder, else the folder of the JSON file.

    Raises:
        DataNotFoundError: `source` does not exist, or is a folder without labels.
        DataError: a file is not COCO JSON; the message names the file and what was expected.
    """

    def __init__(self, source: str | os.PathLike, image_root: str | os.PathLike | None = None):
        self.source = Path(source)
        self._files = _label_files(self.source)
        self._roots = [_image_root(file) if image_root is None else Path(image_root) for file in self._files]
        records, ends, files, image_ids = bytearray(), [0], array("i"), array("q")
        spans, span_ends = array("q"), [0]
        for index, file in enumerate(self._files):
            for image in scan_coco(file):
                records += image.text
                ends.append(len(records))
                spans.extend(itertools.chain.from_iterable(image.spans))
                span_ends.append(len(spans) // 2)
                files.append(index)
                image_ids.append(image.image_id)
        self._records = np.frombuffer(bytes(records), dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 2)
        self._span_ends = np.array(span_ends, dtype=np.int64)
        self._file_of = np.array(files, dtype=np.int32)
        self.image_ids = np.array(image_ids, dtype=np.int64)
        """int64 [number of images], in the order of the set."""
        self._refuse_repeated_ids()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> LabelledImage:
        """The labels of image `index`.

        Raises:
            IndexError: there is no such image.
            DataError: a segmentation cannot be decoded or has another size than its image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a label set of {len(self)}")
        record = json.loads(self._records[self._ends[index] : self._ends[index + 1]].tobytes())
        spans = self._spans[self._span_ends[index] : self._span_ends[index + 1]].tolist()
        file = self._files[self._file_of[index]]
        path = self._roots[self._file_of[index]] / record["file_name"]
        try:
            return labelled_image(record, read_spans(file, spans), path)
        except ValueError as error:
            raise DataError(f"{file}, image {record['id']} ({record['file_name']}): {error}") from error

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self[index] for index in range(len(self)))

    def _refuse_repeated_ids(self) -> None:
        unique, count = np.unique(self.image_ids, return_counts=True)
        for image_id in unique[count > 1][:1]:
            places = np.flatnonzero(self.image_ids == image_id)[:2]
            files = " and ".join(str(self._files[self._file_of[place]]) for place in places)
            raise DataError(f"image id {image_id} occurs twice, in {files}; expected every image once")


def labelled_image(image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], path: Path) -> LabelledImage:
    """The labels of one image from its records in COCO JSON; `path` is where its photo lies.

    Raises ValueError when a segmentation cannot be decoded or has another size than the image.
    """
    size = (image["height"], image["width"])
    rles = [{**annotation, "segmentation": to_rle(annotation, size)} for annotation in annotations]
    annotators = [annotation.get("annotator") for annotation in annotations]
    return LabelledImage(
        path=path,
        image_id=image["id"],
        forest=Forest.from_coco(rles, size),
        size=size,
        crowd=torch.tensor([bool(annotation.get("iscrowd")) for annotation in annotations], dtype=torch.bool),
        annotator=None if not annotators or None in annotators else torch.tensor(annotators, dtype=torch.int64),
    )


def write_coco(
    path: str | os.PathLike,
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a COCO file with the one category "entity", whole or not at all; missing folders are made.

    Keys are sorted and nothing depends on the clock, so equal content gives equal bytes. One record a line. The
    iterables are consumed as the file is written.

    Raises:
        ValueError: a value is NaN or infinite. TypeError: a value is not JSON.
    """
    with whole_file(path, encoding=_ENCODING) as file:
        file.write(f'{{"info": {_dump(info or {})},\n"categories": {_dump(CATEGORIES)},\n"images": [')
        _write_lines(file, images)
        file.write('],\n"annotations": [')
        _write_lines(file, annotations)
        file.write("]}\n")


def write_coco_stream(
    path: str | os.PathLike,
    pairs: Iterable[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
    info: Mapping[str, Any] | None = None,
) -> int:
    """`write_coco` of (image, its annotations) one image at a time, of which only the image records stay in memory.

    They stand at the end of the file. Returns the number of images.
    """
    images = []
    with whole_file(path, encoding=_ENCODING) as file:
        file.write(f'{{"info": {_dump(info or {})},\n"categories": {_dump(CATEGORIES)},\n"annotations": [')

        def annotations() -> Iterator[Mapping[str, Any]]:
            for image, own in pairs:
                images.append(image)
                yield from own

        _write_lines(file, annotations())
        file.write('],\n"images": [')
        _write_lines(file, images)
        file.write("]}\n")
    return len(images)


def _dump(value: Mapping[str, Any] | list) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _write_lines(file: TextIO, records: Iterable[Mapping[str, Any]]) -> None:
    for index, record in enumerate(records):
        file.write((",\n" if index else "\n") + _dump(record))


def _label_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataNotFoundError(f"no such file or folder: {source} (expected COCO JSON)")
    shards = sorted(source.glob("shard-*.json"))
    if shards:
        return shards
    if (source / "annotations.json").is_file():
        return [source / "annotations.json"]
    raise DataNotFoundError(f"no labels in {source} (expected annotations.json or shard-*.json)")


def _image_root(file: Path) -> Path:
    beside = file.parent / "images"
    return beside if beside.is_dir() else file.parent


def to_rle(annotation: Mapping, size: tuple[int, int]) -> dict:
    """The segmentation of an annotation as RLE, polygons drawn into `size` (H, W). Raises DataError."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        if not has_keys(segmentation, size=list) or "counts" not in segmentation:
            raise DataError(f"expected an RLE with size and counts, got {shorten(segmentation)}")
        return segmentation
    if not segmentation:
        return {"size": size, "counts": [size[0] * size[1]]}  # no polygons: an empty mask
    if not all(isinstance(corners, list) and len(corners) >= 6 for corners in segmentation):
        raise DataError(f"expected polygons of three corners or more, got {shorten(segmentation)}")
    from pycocotools import mask as coco_mask  # only here: for polygons alone

    return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
