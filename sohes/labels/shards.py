# SPDX-License-Identifier: Apache-2.0
"""Label files: shards of COCO JSON, written atomically, and the manifest with one row for every image.

The first line of a shard holds the settings and images it was made from and the manifest rows of its images. The
process that finds every shard finished writes the manifest from these rows. So the two agree even after a kill, and
processes need no communication.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sohes.configs import run as configuration
from sohes.configs.run import ExploreConfig
from sohes.data.coco import write_coco
from sohes.data.sources import ImageList
from sohes.labels.refine import USES_HUMAN_LABELS
from sohes.utils.errors import SohesError
from sohes.utils.files import remove_left_over, whole_file

# Raised with every change that gives other labels for the same settings.
LABELS_VERSION = 7

# Settings that do not change the labels.
_RUN_SETTINGS = ("max_failures", "num_workers", "patience")

Row = dict[str, Any]


class LabelsError(SohesError, ValueError):
    """Labels on disk that a run cannot continue; the message says what to do."""


@dataclass(frozen=True)
class LabelledFile:
    """Result of one image: its manifest row, its COCO records if it has labels, and the seconds per stage."""

    row: Row
    image: dict[str, Any] | None = None
    annotations: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class Shards:
    """The label shards of a list of images in one folder: which images each has, and which are finished.

    The content of a shard depends only on its images and the settings, not on the number of processes.
    """

    def __init__(self, folder: Path, images: ImageList, config: ExploreConfig) -> None:
        self.folder, self._images, self._config = folder, images, config
        self._settings = configuration.to_dict(config)
        for name in _RUN_SETTINGS:
            del self._settings[name]

    def __len__(self) -> int:
        return -(-len(self._images) // self._config.shard_size)

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.jsonl"

    def path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.json"

    def places(self, index: int) -> range:
        """Indices of a shard's images in the list."""
        start = index * self._config.shard_size
        return range(start, min(start + self._config.shard_size, len(self._images)))

    def digest(self, index: int) -> str:
        """Hash of all that the labels of a shard depend on except pixels: settings, version, names of its images."""
        names = [self._images.names[place] for place in self.places(index)]
        text = json.dumps([LABELS_VERSION, self._settings, names], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def prepare(self, mine: Sequence[int], alone: bool, everything: bool) -> None:
        """Make the folder, and remove temporary files that a killed run left of the shards `mine`.

        alone: there are no other processes; otherwise files that another process may be writing are kept.
        everything: remove all labels.

        Raises LabelsError when the folder has more shards than the images give.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if alone:  # else another process may be writing the manifest
            remove_left_over(self.manifest)
        if everything:
            for path in [*self.folder.glob("shard-*.json"), self.manifest]:
                path.unlink(missing_ok=True)
        for index in mine:
            remove_left_over(self.path(index))
        for path in sorted(self.folder.glob("shard-*.json"))[len(self) :]:
            raise _made_differently(path)

    def read(self, index: int) -> list[Row] | None:
        """The manifest rows of a finished shard, None if it is not finished.

        Raises LabelsError when it was made with other settings or from other images.
        """
        info = read_shard_info(self.path(index))
        if info is None:
            return None
        if info["digest"] != self.digest(index):
            raise _made_differently(self.path(index))
        return info["manifest"]

    def write(self, index: int, files: Sequence[LabelledFile]) -> None:
        """Write one shard atomically: the labels of its images, in their order."""
        images = [file.image for file in files if file.image is not None]
        annotations = [annotation for file in files for annotation in file.annotations]
        info = {
            "description": "pseudo-labels of self-exploration",
            "root": str(self._images.root.absolute()),
            "digest": self.digest(index),
            "human_labels": self._settings["refiner"] in USES_HUMAN_LABELS,
            "config": self._settings,
            "manifest": [file.row for file in files],
        }
        write_coco(self.path(index), images, annotations, info)

    def missing(self) -> list[int]:
        """Indices of the shards that are not finished."""
        return [index for index in range(len(self)) if not self.path(index).exists()]

    def rows(self) -> Iterator[Row]:
        """The manifest rows of all shards, one shard in memory at a time. Raises LabelsError if one is missing."""
        for index in range(len(self)):
            rows = self.read(index)
            if rows is None:
                raise LabelsError(f"{self.path(index)} is missing: run phase 1 again")
            yield from rows

    def write_manifest(self) -> None:
        """Write the manifest from the finished shards atomically, one JSON object per line."""
        with whole_file(self.manifest, encoding="ascii") as file:
            file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in self.rows())


def read_shard_info(path: Path) -> dict[str, Any] | None:
    """The `info` of a shard, None if there is no file. Raises LabelsError for any other file."""
    try:
        with open(path, encoding="ascii") as file:
            first = file.readline()
    except FileNotFoundError:
        return None
    try:
        info = json.loads(first.strip().removesuffix(",") + "}")["info"]
        return {"digest": info["digest"], "manifest": info["manifest"], "root": info["root"]}
    except (ValueError, KeyError, TypeError) as error:
        raise LabelsError(f"{path} is not a shard of labels: delete it or give another output folder") from error


def _made_differently(path: Path) -> LabelsError:
    return LabelsError(
        f"{path} was made with other settings or from other images: overwrite it, or give another output folder"
    )
