# SPDX-License-Identifier: Apache-2.0
"""Converts a data set to one COCO JSON file of entities for the evaluator, and reuses a file converted before."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sohes.data.coco import write_coco_stream
from sohes.evaluation.coco_index import BadInput
from sohes.evaluation.datasets.base import DataSet, Key

logger = logging.getLogger(__name__)


def convert_dataset(
    dataset: DataSet,
    path: Path,
    num_images: int | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to `path`, unless it was already written there from the same files.

    num_images: only this many, evenly spaced; None: all. on_image(done, total) is called after every image. Skipped
    images are logged as warnings.

    Raises:
        LayoutError, BadInput: the data set is invalid, or no image is left.
    """
    digest = dataset_digest(dataset, num_images)
    if _digest_of(path) == digest:
        return path
    keys = choose_evenly(dataset.keys(), num_images)
    info = {"description": f"{type(dataset).__name__}: {dataset.protocol}", "digest": digest}
    try:
        write_coco_stream(path, _pairs(dataset, keys, on_image), info)
    finally:
        for problem in dataset.problems:
            logger.warning("%s", problem)
    return path


def choose_evenly(keys: Sequence[Key], count: int | None) -> Sequence[Key]:
    """`count` evenly spaced keys, including the first and the last; all for None."""
    if count is None or count >= len(keys):
        return keys
    return [keys[int(index)] for index in np.linspace(0, len(keys) - 1, count)]


def dataset_digest(dataset: DataSet, num_images: int | None) -> str:
    """Digest of all inputs of the conversion: names, sizes and times of the files, and the reader's version."""
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in dataset.inputs()]
    text = json.dumps([type(dataset).__name__, dataset.version, num_images, files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest_of(path: Path) -> str | None:
    """The digest in the first line of a converted file; None if there is no file."""
    if not path.is_file():
        return None
    with path.open(encoding="ascii", errors="replace") as file:
        first = file.readline()
    try:
        return json.loads(first.strip().removesuffix(",") + "}")["info"]["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} exists and is no data set that was converted before; remove it") from error


def _pairs(
    dataset: DataSet, keys: Sequence[Hashable], on_image: Callable[[int, int], None] | None
) -> Iterator[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
    """(image record, annotations), with ids unique in the file, and parents renumbered in the same way."""
    first_id, is_empty = 1, True
    for done, key in enumerate(keys, start=1):
        sample = dataset.read(key)
        if sample is not None:
            image_id, size = sample.image["id"], len(sample.annotations)
            new_id = {one["id"]: first_id + k for k, one in enumerate(sample.annotations) if "id" in one}
            annotations = []
            for k, one in enumerate(sample.annotations):
                record = {"category_id": 1, "iscrowd": 0, **one, "id": first_id + k, "image_id": image_id}
                if one.get("parent") is not None:
                    if one["parent"] not in new_id:
                        raise BadInput(
                            f"{dataset.root}, image {image_id!r}: parent {one['parent']!r} is not an annotation of it"
                        )
                    record["parent"] = new_id[one["parent"]]
                annotations.append(record)
            first_id, is_empty = first_id + size, False
            yield sample.image, annotations
        if on_image is not None:
            on_image(done, len(keys))
    if is_empty:  # raised here, before an older file is replaced
        raise BadInput(f"{dataset.root}: no image left to evaluate (expected {dataset.layout})")
