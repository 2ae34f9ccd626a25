# SPDX-License-Identifier: Apache-2.0
"""Scores a file of predictions against a file of ground truth, image after image."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sohes.evaluation.coco_index import BadInput, CocoIndex, ImageId
from sohes.evaluation.evaluator import Evaluator
from sohes.evaluation.image import ImageRecord, Protocol, Truth, score_image
from sohes.evaluation.names import align_ids
from sohes.evaluation.runs import RunMasks, read_runs

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike
Scored = list[tuple[Any, ImageRecord]]  # (key of the evaluator, record)


def evaluate_files(
    gt_json: PathLike, pred_json: PathLike, *, max_dets: Sequence[int] = (1, 10, 100, 1000)
) -> dict[str, float]:
    """``Evaluator.summary()`` of a file of predictions; see ``score_files``."""
    return score_files(gt_json, pred_json, max_dets=max_dets).summary()


def score_files(
    gt_json: PathLike,
    pred_json: PathLike,
    *,
    max_dets: Sequence[int] = (1, 10, 100, 1000),
    on_image: Callable[[int, int], None] | None = None,
    ignore_others: bool = False,
) -> Evaluator:
    """An evaluator that has seen every image of the ground truth.

    gt_json: COCO JSON; segmentations are RLE or polygons, categories are not looked at. ``area`` (default: the mask's)
    decides the area range. Images with ``parent`` (an annotation id or null) on some annotation count for the
    hierarchy. Where annotations have an ``annotator``, each annotator is scored as an image of its own with the same
    predictions (as is right for BSDS500, whose people each drew the whole image), and images nobody drew are left out.

    pred_json: COCO JSON, or a bare list of COCO results; every annotation has a ``score``. A ``parent`` that is not
    among the image's predictions makes a root.

    Images are matched by id, or where ids mean different images, by file name (see ``names``). One that has no
    predictions counts as missed; predictions of images that the ground truth does not have are an error, or with
    ``ignore_others`` left out. Memory does not grow with the files.
    on_image(done, total) is called after each image.

    Raises BadInput: a file is missing or malformed, ids or sizes do not agree.
    """
    gt, pred = CocoIndex(gt_json), CocoIndex(pred_json)
    align_ids(gt, pred)
    _check_ids(gt, pred, ignore_others)
    evaluator = Evaluator(max_dets)

    for done, image_id in enumerate(gt.images, start=1):
        try:
            scored = _score_one(evaluator.protocol, gt, pred, image_id)
        except BadInput:
            raise
        except ValueError as error:
            raise BadInput(f"{pred.path} against {gt.path}, image {image_id!r}: {error}") from error
        for key, record in scored:
            evaluator.add_record(key, record)
        if on_image is not None:
            on_image(done, len(gt.images))
    return evaluator


def _check_ids(gt: CocoIndex, pred: CocoIndex, ignore_others: bool) -> None:
    if gt.images is None:
        raise BadInput(f'{gt.path}: expected ground truth, COCO JSON with "images"; this is a bare list of results')
    if gt.num_annotations == 0:
        raise BadInput(f"{gt.path}: there are no annotations to score against")
    if pred.images is None and pred.num_annotations == 0:
        raise BadInput(f"{pred.path}: there are no predictions in this list")
    for index, images in ((gt, gt.images), (pred, pred.images)):
        for image_id in index.annotated:
            if images is not None and image_id not in images:
                raise BadInput(f"{index.path}: annotations of image {image_id!r}, which is not among its images")
    predicted = pred.annotated if pred.images is None else pred.images.keys()
    unknown = [image_id for image_id in predicted if image_id not in gt.images]
    if len(unknown) == len(predicted):
        raise BadInput(
            f"no image of {pred.path} is in {gt.path} (image ids such as {_some(predicted)} against {_some(gt.images)})"
        )
    if unknown:
        problem = f"{pred.path}: {len(unknown)} of {len(predicted)} images are not in {gt.path}"
        if not ignore_others:
            raise BadInput(f"{problem}, image {unknown[0]!r} first")
        logger.warning("%s and are left out", problem)
    for image_id, image in (pred.images or {}).items():
        if image_id not in gt.images:
            continue
        for key in ("width", "height"):
            true = gt.images[image_id].get(key)
            if image.get(key, true) != true:
                raise BadInput(f"image {image_id!r}: {key} is {true} in {gt.path} but {image[key]} in {pred.path}")
        names = [index[image_id].get("file_name") for index in (gt.images, pred.images)]
        if None not in names and len({os.path.splitext(os.path.basename(name))[0] for name in names}) > 1:
            raise BadInput(f"image {image_id!r} is {names[0]} in {gt.path} but {names[1]} in {pred.path}")
    missing = len(gt.images) - (len(predicted) - len(unknown))
    if missing > 0:
        logger.warning("%s: %d of %d images have no predictions", pred.path, missing, len(gt.images))


def _some(ids: Any) -> str:
    return ", ".join(repr(image_id) for image_id in list(ids)[:3]) or "none"


def _score_one(protocol: Protocol, gt: CocoIndex, pred: CocoIndex, image_id: ImageId) -> Scored:
    image = gt.images[image_id]
    size = (image.get("height"), image.get("width"))
    if not all(isinstance(side, int) for side in size):
        raise BadInput(f"{gt.path}: expected height and width of image {image_id!r}, got {size[0]} and {size[1]}")
    drawn = _by_annotator(gt, image_id)
    if not drawn:
        return []
    found = _in_category_order(pred.annotations(image_id))
    pred_masks = _read_masks(pred, image_id, found, size)
    scores = _numbers(pred, image_id, "score", [record.get("score") for record in found])
    index_of = {record["id"]: index for index, record in enumerate(found) if "id" in record}
    parents = np.array([index_of.get(record.get("parent"), -1) for record in found], np.int64)
    scored = []
    for annotator, true in drawn.items():
        gt_masks = _read_masks(gt, image_id, true, size)
        truth = _read_truth(gt, image_id, true, gt_masks)
        key = image_id if annotator is None else (image_id, annotator)
        scored.append((key, score_image(protocol, gt_masks, truth, pred_masks, scores, parents)))
    return scored


def _by_annotator(gt: CocoIndex, image_id: ImageId) -> dict[Any, list[dict]]:
    """The true annotations of an image by who drew them; all under None where the file does not say."""
    records = _in_category_order(gt.annotations(image_id))
    if not gt.has_annotators:
        return {None: records}
    drawn: dict[Any, list[dict]] = {}
    for record in records:
        if not isinstance(record.get("annotator"), int | str):
            raise BadInput(
                f"{gt.path}, image {image_id!r}: expected an annotator on every annotation, as on others of this file"
            )
        drawn.setdefault(record["annotator"], []).append(record)
    return drawn


def _in_category_order(records: list[dict]) -> list[dict]:
    """Categories do not matter, but pycocotools without them (useCats 0) goes by category, and so decides ties."""
    categories = [record.get("category_id") for record in records]
    if not all(isinstance(category, int) for category in categories):
        return records
    return [records[index] for index in np.argsort(categories, kind="stable").tolist()]


def _read_masks(index: CocoIndex, image_id: ImageId, records: list[dict], size: tuple[int, int]) -> RunMasks:
    try:
        return read_runs([_counts(record, size) for record in records], size)
    except (ValueError, TypeError) as error:  # TypeError: run lengths or corners that are no numbers
        raise BadInput(f"{index.path}, image {image_id!r}: {error}") from error


def _counts(record: dict, size: tuple[int, int]) -> str | bytes | list[int]:
    """The RLE counts of an annotation; polygons are drawn by pycocotools."""
    segmentation = record.get("segmentation")
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str | list):
        if segmentation.get("size") != [*size]:
            got = segmentation.get("size")
            raise ValueError(f"{_name(record)}: expected a mask of size {list(size)}, got {got}")
        return segmentation["counts"]
    if not isinstance(segmentation, list) or not all(isinstance(p, list) and len(p) >= 6 for p in segmentation):
        raise ValueError(f"{_name(record)}: expected a segmentation, RLE or polygons of three corners or more")
    if not segmentation:
        return [size[0] * size[1]]
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))["counts"]


def _name(record: dict) -> str:
    return f"annotation {record.get('id', '(without id)')}"


def _numbers(index: CocoIndex, image_id: ImageId, name: str, values: list) -> np.ndarray:
    """float64 [N] of a number that every annotation must have."""
    for value in values:
        if not isinstance(value, int | float):
            raise BadInput(
                f"{index.path}, image {image_id!r}: expected a number as {name} of every annotation, got {value!r}"
            )
    return np.array(values, np.float64)


def _read_truth(gt: CocoIndex, image_id: ImageId, records: list[dict], masks: RunMasks) -> Truth:
    areas = [record.get("area", area) for record, area in zip(records, masks.areas.tolist(), strict=True)]
    parents = None
    if any("parent" in record for record in records):
        index_of = {record.get("id"): index for index, record in enumerate(records)}
        parents = np.full(len(records), -1, np.int64)
        for index, record in enumerate(records):
            parent = record.get("parent")
            if parent is not None and parent not in index_of:
                raise BadInput(f"{gt.path}, image {image_id!r}: parent {parent!r} is not an annotation of this image")
            parents[index] = -1 if parent is None else index_of[parent]
    crowd = np.array([bool(record.get("iscrowd")) for record in records], bool)
    return Truth(_numbers(gt, image_id, "area", areas), crowd, parents)
