# SPDX-License-Identifier: Apache-2.0
"""Checks of two COCO files before scoring: the ground truth is usable, and both are of the same images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping

from sohes.evaluation.coco_index import BadInput, CocoIndex, ImageId
from sohes.evaluation.protocol import IouType, Protocol

logger = logging.getLogger(__name__)


def check_truth(gt: CocoIndex, protocols: Mapping[IouType, Protocol]) -> None:
    """Raises BadInput unless the ground truth has images with sizes, and annotations."""
    if gt.images is None:
        raise BadInput(f'{gt.path}: expected ground truth, COCO JSON with "images"; this is a bare list of results')
    if gt.num_annotations == 0:
        raise BadInput(f"{gt.path}: there are no annotations to score against")
    if gt.num_without_region == gt.num_annotations and "mask" in protocols:
        raise BadInput(f"{gt.path}: no annotation has a segmentation, so there are no masks to score against")
    for image_id, image in gt.images.items():
        if image.get("height") is None or image.get("width") is None:
            got = f"{image.get('height')} and {image.get('width')}"
            raise BadInput(f"{gt.path}: expected height and width of image {image_id!r}, got {got}")


def check_ids(gt: CocoIndex, pred: CocoIndex, ignore_others: bool) -> None:
    """Raises BadInput if the two files are not of the same images: ids, sizes or names differ.

    ignore_others: predictions of other images are not an error, but are counted in a warning.
    """
    true_images = gt.named_images
    if pred.images is None and pred.num_annotations == 0:
        raise BadInput(f"{pred.path}: there are no predictions in this list")
    for index, images in ((gt, gt.images), (pred, pred.images)):
        for image_id in index.annotated:
            if images is not None and image_id not in images:
                raise BadInput(f"{index.path}: annotations of image {image_id!r}, which is not among its images")
    predicted = pred.annotated if pred.images is None else pred.images.keys()
    unknown = [image_id for image_id in predicted if image_id not in true_images]
    if len(unknown) == len(predicted):
        raise BadInput(
            f"no image of {pred.path} is in {gt.path} "
            f"(image ids such as {_some(predicted)} against {_some(true_images)})"
        )
    if unknown:
        problem = f"{pred.path}: {len(unknown)} of {len(predicted)} images are not in {gt.path}"
        if not ignore_others:
            raise BadInput(f"{problem}, image {unknown[0]!r} first")
        logger.warning("%s and are ignored", problem)
    for image_id, image in (pred.images or {}).items():
        if image_id not in true_images:
            continue
        true_image = true_images[image_id]
        for key in ("width", "height"):
            true = true_image.get(key)
            if image.get(key, true) != true:
                raise BadInput(f"image {image_id!r}: {key} is {true} in {gt.path} but {image[key]} in {pred.path}")
        true_name, name = true_image.get("file_name"), image.get("file_name")
        if true_name is not None and name is not None and _stem(true_name) != _stem(name):
            raise BadInput(f"image {image_id!r} is {true_name} in {gt.path} but {name} in {pred.path}")
    missing = len(true_images) - (len(predicted) - len(unknown))
    if missing > 0:
        logger.warning("%s: %d of %d images have no predictions", pred.path, missing, len(true_images))


def _some(ids: Iterable[ImageId]) -> str:
    return ", ".join(repr(image_id) for image_id in list(ids)[:3]) or "none"


def _stem(file_name: str) -> str:
    """The name without folder and suffix."""
    return os.path.splitext(os.path.basename(file_name))[0]


def align_ids(gt: CocoIndex, pred: CocoIndex) -> None:
    """Match the images by file name if the ids of the two files differ: give the predictions the ids of the truth.

    Names are compared without folder and suffix. Ids stay as they are if they agree with the names in both files, or
    if names are not usable: some image has none, or two images share one. A predicted image whose name is not in the
    ground truth gets an id that is not in it either.
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
    logger.info("%s: images are matched by file name, as ids differ from those of %s", pred.path, gt.path)
    pred.rename(new_ids)


def _names(images: Mapping[ImageId, dict] | None) -> dict[ImageId, str] | None:
    """File names without folder and suffix by id, None if an image has no name."""
    if not images:
        return None
    names = {}
    for image_id, image in images.items():
        if not isinstance(image.get("file_name"), str):
            return None
        names[image_id] = _stem(image["file_name"])
    return names
