# SPDX-License-Identifier: Apache-2.0
"""Which predicted image is which true one: by id, or where ids do not mean the same, by file name."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from sohes.evaluation.coco_index import CocoIndex, ImageId

logger = logging.getLogger(__name__)


def align_ids(gt: CocoIndex, pred: CocoIndex) -> None:
    """Give the predictions the ids of the ground truth, where file names say that theirs mean other images.

    Ids are taken as they are when every predicted image of which both files know the name has the same name (without
    folder and suffix) under its id, or when names cannot decide: some image has none, or two images share one. Else
    images go by name, and those whose name the ground truth does not know keep an id that it does not know either.
    """
    truth, found = _names(gt.images), _names(pred.images)
    if truth is None or found is None:
        return
    shared = truth.keys() & found.keys()
    if shared and all(truth[image_id] == found[image_id] for image_id in shared):
        return
    by_name = {name: image_id for image_id, name in truth.items()}
    if len(by_name) < len(truth) or len(set(found.values())) < len(found) or by_name.keys().isdisjoint(found.values()):
        return
    new_ids = {image_id: by_name.get(name, f"{name} ({image_id})") for image_id, name in found.items()}
    logger.info("%s: images go by file name, as ids differ from those of %s", pred.path, gt.path)
    pred.rename(new_ids)


def _names(images: Mapping[ImageId, dict] | None) -> dict[ImageId, str] | None:
    """File names without folder and suffix, None where an image has none."""
    if not images:
        return None
    names = {image_id: image.get("file_name") for image_id, image in images.items()}
    if not all(isinstance(name, str) for name in names.values()):
        return None
    return {image_id: os.path.splitext(os.path.basename(name))[0] for image_id, name in names.items()}
