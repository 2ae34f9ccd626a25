# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels of image files as COCO records, with a manifest row for every file, also for those that fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.data.images import UnreadableImage
from sohes.data.sources import ImageList
from sohes.labels.features import FeatureExtractor
from sohes.labels.pipeline import StageClock, label_images
from sohes.labels.shards import LabelledFile, Row


def label_files(
    images: ImageList, indices: Sequence[int], extractor: FeatureExtractor, config: ExploreConfig
) -> list[LabelledFile]:
    """Labels of the images at these indices of the list, computed in one batch. The id of an image is its index + 1."""
    clock = StageClock()
    pixels: dict[int, Tensor] = {}
    reasons: dict[int, str] = {}
    with clock("decode"):
        for index in indices:
            try:
                pixels[index] = images.read(index)
            except UnreadableImage as error:
                reasons[index] = error.reason
    forests = dict(zip(pixels, label_images(list(pixels.values()), extractor, config, clock), strict=True))
    labels: list[tuple[Row, dict[str, Any] | None, list[dict[str, Any]]]] = []
    for index in indices:
        image_id, name = index + 1, images.names[index]
        row: Row = {"file_name": name, "image_id": image_id, "masks": 0, "status": "empty"}
        record, annotations = None, []
        if index in reasons:
            row["status"] = f"failed: {reasons[index]}"
        elif len(forests[index]):
            row |= {"masks": len(forests[index]), "status": "ok"}
            height, width = pixels[index].shape[1:]
            record = {"id": image_id, "file_name": name, "width": width, "height": height}
            with clock("encode"):
                # Each image has its own range of ids, so that they do not depend on other images.
                annotations = forests[index].to_coco(image_id, first_id=(image_id - 1) * config.max_masks + 1)
        labels.append((row, record, annotations))
    seconds = {stage: total / len(labels) for stage, total in clock.seconds.items()}  # the same share for each image
    return [LabelledFile(row, record, annotations, seconds) for row, record, annotations in labels]


def is_failed(row: Row) -> bool:
    """Whether a manifest row is that of an image that could not be used."""
    return str(row["status"]).startswith("failed")
