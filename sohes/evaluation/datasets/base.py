# SPDX-License-Identifier: Apache-2.0
"""What all data sets are to their reader: keys of images, and a COCO record with its annotations for each key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from sohes.data.images import read_annotated
from sohes.utils.errors import SohesError


class LayoutError(SohesError, ValueError):
    """A data set that is not laid out as its authors publish it; the message names what is missing."""


@dataclass(frozen=True)
class Sample:
    """One image as COCO JSON holds it.

    image: id, file_name (relative to the data set's `image_root`), height, width. annotations: segmentation (RLE or
    polygons) and where known id, area, iscrowd, category_id, parent (an id or None), level, annotator.
    """

    image: Mapping[str, Any]
    annotations: Sequence[Mapping[str, Any]]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image["height"], self.image["width"]


class DataSet(ABC):
    """A data set under `root`. A subclass says how it is laid out, which images it has, and what is true of each.

    layout: what is expected under root, for errors and help. protocol: a few words on what counts as an entity.
    version: raised when the same files are read as something else, so that what was converted before is not used.
    """

    layout: ClassVar[str]
    protocol: ClassVar[str]
    version: ClassVar[int] = 1

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise LayoutError(f"{root}: no such folder (expected {self.layout})")
        self.root = root
        self.image_root = root
        self.problems: list[str] = []
        """What of the data set was left out, and why."""

    @abstractmethod
    def inputs(self) -> list[Path]:
        """The files that decide what is true."""

    @abstractmethod
    def keys(self) -> Sequence[Hashable]:
        """One for each image, in a fixed order."""

    @abstractmethod
    def read(self, key: Hashable) -> Sample | None:
        """The image of a key; None where it is left out, which `problems` then tells."""

    def read_image(self, file_name: str) -> Tensor:
        """The photo as uint8 [3, H, W], as it is stored: what masks are annotated on."""
        return read_annotated(self.image_root / file_name)

    def need(self, path: str, *, alternatives: Sequence[str] = ()) -> Path:
        """The first of these paths below root that exists. Raises LayoutError naming the first and the layout."""
        for candidate in (path, *alternatives):
            if (self.root / candidate).exists():
                return self.root / candidate
        raise LayoutError(f"{self.root / path} is missing (expected {self.layout}, with --root {self.root})")
