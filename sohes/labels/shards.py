# SPDX-License-Identifier: Apache-2.0
"""Label files: COCO shards written whole or not at all, and the manifest that accounts for every image.

A shard carries in its first line all that a later run needs to know: which settings and images it was made from, and
the manifest rows of its images. The manifest is rebuilt from there, so no kill can make the two disagree.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sohes import config as configuration
from sohes.config import ExploreConfig
from sohes.data.coco import write_coco
from sohes.errors import SohesError

# To be raised whenever the same settings give other labels.
LABELS_VERSION = 1


class LabelsError(SohesError, ValueError):
    """Labels on disk that cannot be continued; the message says what to do."""


@dataclass(frozen=True)
class LabelledFile:
    """What became of one image: its manifest row, and its COCO records when it has labels."""

    row: dict[str, Any]
    image: dict[str, Any] | None
    annotations: list[dict[str, Any]]


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.json"


def labels_digest(config: ExploreConfig, names: Sequence[str]) -> str:
    """Of everything the labels of a shard depend on besides the pixels: settings, version, and names of its images."""
    settings = configuration.to_dict(config)
    settings.pop("max_failures")
    text = json.dumps([LABELS_VERSION, settings, list(names)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_shard(path: Path, files: Sequence[LabelledFile], root: str, digest: str, config: ExploreConfig) -> None:
    """Write one shard. `root` is the folder that file names are relative to."""
    images = [file.image for file in files if file.image is not None]
    annotations = [annotation for file in files for annotation in file.annotations]
    info = {
        "description": "pseudo-labels of self-exploration",
        "root": root,
        "digest": digest,
        "human_labels": False,
        "config": configuration.to_dict(config),
        "manifest": [file.row for file in files],
    }
    write_coco(path, images, annotations, info)


def read_shard_info(path: Path) -> dict[str, Any] | None:
    """The `info` of a shard, None where there is no shard. Raises LabelsError for a file that is none of ours."""
    try:
        with open(path, encoding="ascii") as file:
            first = file.readline()
    except FileNotFoundError:
        return None
    try:
        info = json.loads(first.strip().removesuffix(",") + "}")["info"]
        return {"digest": info["digest"], "manifest": info["manifest"], "root": info["root"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise LabelsError(f"{path} is not a shard of labels: delete it or give another output folder") from error


def read_finished(path: Path, digest: str) -> list[dict[str, Any]] | None:
    """The manifest rows of a finished shard, None where it has yet to be made.

    Raises LabelsError when it was made under other settings or from other images.
    """
    info = read_shard_info(path)
    if info is None:
        return None
    if info["digest"] != digest:
        raise LabelsError(
            f"{path} was made with other settings or from other images: overwrite it, or give another output folder"
        )
    return info["manifest"]


def write_manifest(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the whole manifest, one JSON object a line, or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(format_row(row) for row in rows), encoding="ascii")
    os.replace(temporary, path)


def format_row(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True) + "\n"


def clear_labels(folder: Path, everything: bool) -> None:
    """Remove what a kill left half-written; with `everything`, finished shards and the manifest too."""
    patterns = [".*.tmp"] + (["shard-*.json", "manifest.jsonl"] if everything else [])
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()
