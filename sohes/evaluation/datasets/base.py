# SPDX-License-Identifier: Apache-2.0
"""Base class of the data sets: keys of images, and an image record with annotations for each key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from sohes.data.images import read_annotated
from sohes.utils.errors import SohesError

Key = TypeVar("Key", bound=Hashable)


class LayoutError(SohesError, ValueError):
    """A data set that does not have the published layout; the message names what is missing."""


@dataclass(frozen=True)
class Sample:
    """One image with its annotations, as in COCO JSON.

    image: id, file_name (relative to the data set's `image_root`), height, width. annotations: segmentation (RLE or
    polygons) and, if known, id, area, iscrowd, category_id, parent (an id or None), level, annotator.
    """

    image: Mapping[str, Any]
    annotations: Sequence[Mapping[str, Any]]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image["height"], self.image["width"]


class DataSet(ABC, Generic[Key]):
    """A data set under `root`. Subclasses define the layout, the images, and the annotations of each.

    layout: what is expected under root, for errors and help. protocol: what counts as an entity, in a few words.
    version: increased when the same files are read differently, so that older converted files are not used.
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
        """What was skipped, and why."""

    @abstractmethod
    def inputs(self) -> list[Path]:
        """The annotation files."""

    @abstractmethod
    def keys(self) -> Sequence[Key]:
        """One key per image, in a fixed order."""

    @abstractmethod
    def read(self, key: Key) -> Sample | None:
        """The image of a key; None if it is skipped, with the reason in `problems`."""

    def read_image(self, file_name: str) -> Tensor:
        """The photo as uint8 [3, H, W] as stored, without EXIF rotation, like the annotations."""
        return read_annotated(self.image_root / file_name)

    def need(self, path: str, *, alternatives: Sequence[str] = ()) -> Path:
        """The first of these paths below root that exists. Raises LayoutError, which names the first and the layout."""
        for candidate in (path, *alternatives):
            if (self.root / candidate).exists():
                return self.root / candidate
        raise LayoutError(f"{self.root / path} is missing (expected {self.layout}, with --root {self.root})")
