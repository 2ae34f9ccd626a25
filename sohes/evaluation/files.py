# SPDX-License-Identifier: Apache-2.0
"""Scores a COCO file of predictions against a COCO file of ground truth."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from sohes.evaluation.annotations import NO_PARENT, UNKNOWN_PARENT, Annotations, PairWith, Want
from sohes.evaluation.checks import align_ids, check_ids, check_truth
from sohes.evaluation.coco_index import BadInput, CocoIndex, ImageId
from sohes.evaluation.image import Predictions, Truth, score_image, score_text
from sohes.evaluation.matching import select_pairs
from sohes.evaluation.metrics import Evaluation, id_order
from sohes.evaluation.protocol import IouType, Protocol
from sohes.evaluation.shapes import RunMasks
from sohes.evaluation.shards import Scored, Shards, StoredEvaluation
from sohes.evaluation.workers import Workers
from sohes.utils.distributed import World, barrier

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike
OnImages = Callable[[int, int], None]
IMAGES_PER_SHARD = 64
IMAGES_PER_TASK = 4  # per thread task: starting a task costs about a tenth of scoring an image


@dataclass(frozen=True)
class Plan:
    """How files are scored.

    max_dets, class_aware: see ``Protocol``. iou_types: compare masks, boxes or both. threads: images scored in
    parallel, >= 1; None: as many as torch uses. shards: folder that keeps the scores, from which an interrupted
    evaluation continues; required and shared by several processes. world: rank and number of processes.
    ignore_others: ignore predictions of images that are not in the ground truth, instead of an error.
    """

    max_dets: Sequence[int] = (1, 10, 100, 1000)
    iou_types: Sequence[IouType] = ("mask",)
    class_aware: bool = False
    threads: int | None = None
    shards: Path | None = None
    world: World = field(default_factory=World)
    ignore_others: bool = False

    def protocols(self) -> dict[IouType, Protocol]:
        """One protocol for each IoU type."""
        first = Protocol(tuple(sorted(self.max_dets)), class_aware=self.class_aware)
        return {iou_type: replace(first, iou_type=iou_type) for iou_type in self.iou_types}


def evaluate_files(
    gt_json: PathLike, pred_json: PathLike, *, max_dets: Sequence[int] = (1, 10, 100, 1000)
) -> dict[str, float]:
    """The metrics of a file of predictions, see ``Evaluation.summary`` and ``score``."""
    return score_files(gt_json, pred_json, max_dets=max_dets).summary()


def score_files(
    gt_json: PathLike,
    pred_json: PathLike,
    *,
    max_dets: Sequence[int] = (1, 10, 100, 1000),
    iou_type: IouType = "mask",
    class_aware: bool = False,
    threads: int | None = None,
    on_image: OnImages | None = None,
    ignore_others: bool = False,
) -> Evaluation:
    """The scored images of one IoU type; see ``score`` and ``Plan``."""
    plan = Plan(max_dets, (iou_type,), class_aware, threads, ignore_others=ignore_others)
    return score(gt_json, pred_json, plan, on_image)[iou_type]


def score(
    gt_json: PathLike, pred_json: PathLike, plan: Plan, on_image: OnImages | None = None
) -> dict[IouType, Evaluation]:
    """The scored images of the ground truth, by IoU type of the plan.

    gt_json: COCO JSON; segmentations are RLE or polygons; categories are used in a class-aware plan only. ``area``
    (default: the shape's) decides the area range. An image counts for the hierarchy if some annotation has a ``parent``
    (an annotation id or null). If annotations have an ``annotator``, each annotator counts as a separate image with the
    same predictions (as in BSDS500, where each annotator drew the whole image), and images without annotations are
    skipped.

    pred_json: COCO JSON, or a bare list of COCO results; every annotation has a ``score``. A prediction is a root if
    its ``parent`` is not a prediction of the image. A missing ``bbox`` is the mask's bounding box.

    Images are matched by id, or by file name if ids differ (see ``checks.align_ids``). An image without predictions
    counts as missed. Memory does not grow with the files: scores are written to disk, about 25 bytes per prediction,
    in the plan's folder or a temporary one (in TMPDIR) that is deleted with the result. on_image(done, total) is called
    after each image of this process. Several processes score a part of the images each and return after the last; only
    rank 0's evaluations have images.

    Raises BadInput if a file is missing or malformed, ids or sizes do not agree, or shards are of another evaluation.
    """
    protocols = plan.protocols()
    if plan.world.size > 1 and plan.shards is None:
        raise BadInput("several processes need a shared folder of shards")
    gt, pred = CocoIndex(gt_json), CocoIndex(pred_json)
    align_ids(gt, pred)
    check_truth(gt, protocols)
    check_ids(gt, pred, plan.ignore_others)
    if gt.num_without_region and plan.world.is_main and "mask" in protocols:
        what = "have no segmentation, and are not counted as masks"
        logger.warning("%s: %d of %d annotations %s", gt.path, gt.num_without_region, gt.num_annotations, what)
    temporary, folder = None, plan.shards
    if folder is None:  # a temporary folder, deleted with the evaluations
        temporary = TemporaryDirectory(prefix="sohes-evaluate-")
        folder = Path(temporary.name)
    shards = Shards.open(folder, gt.path, pred.path, protocols)
    chunks = _split(sorted(gt.named_images, key=id_order), IMAGES_PER_SHARD)
    mine = {number: chunks[number] for number in range(plan.world.rank, len(chunks), plan.world.size)}
    with Workers(torch.get_num_threads() if plan.threads is None else plan.threads) as workers:
        _write_shards(mine, shards, partial(_score_one, protocols, gt, pred), workers, on_image)
    if plan.world.size > 1:  # not for one process of a group that scores alone
        barrier()
    num_shards = len(chunks) if plan.world.is_main else 0
    return {iou_type: StoredEvaluation(shards, num_shards, iou_type, temporary) for iou_type in protocols}


def _write_shards(
    chunks: dict[int, Sequence[ImageId]],
    shards: Shards,
    score_one: Callable[[ImageId], Scored],
    workers: Workers,
    on_image: OnImages | None,
) -> None:
    """Score the images of every missing shard and write it."""
    total, done = sum(map(len, chunks.values())), 0

    def count(num_images: int) -> None:
        nonlocal done
        for _ in range(num_images):
            done += 1
            if on_image is not None:
                on_image(done, total)

    def score_some(task: tuple[int, Sequence[ImageId]]) -> list[Scored]:
        return [score_one(image_id) for image_id in task[1]]

    missing = [number for number in chunks if not shards.has(number)]
    count(total - sum(len(chunks[number]) for number in missing))
    tasks = [(number, some) for number in missing for some in _split(chunks[number], IMAGES_PER_TASK)]
    scored: Scored = []
    for (number, some), parts in zip(tasks, workers.map(score_some, tasks), strict=True):
        scored += chain.from_iterable(parts)
        count(len(some))
        if some[-1] == chunks[number][-1]:
            workers.start(shards.write, number, scored)
            scored = []


def _split(images: Sequence[ImageId], size: int) -> list[Sequence[ImageId]]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _score_one(protocols: dict[IouType, Protocol], gt: CocoIndex, pred: CocoIndex, image_id: ImageId) -> Scored:
    """The scores of one image: by IoU type, and by annotator if there are several."""
    record = gt.named_images[image_id]
    size = (record["height"], record["width"])
    if protocols.keys() == {"mask"} and not gt.has_annotators:
        plain = score_text(protocols["mask"], gt.text(image_id), pred.text(image_id), size)
        if plain is not None:
            return [("mask", image_id, plain)]
    class_aware = any(protocol.class_aware for protocol in protocols.values())
    want = Want(masks="mask" in protocols, boxes="box" in protocols)
    true = _read_truth(gt, image_id, size, want, class_aware)
    if gt.has_annotators and len(true) == 0:
        return []  # no annotator annotated this image
    against = None
    if isinstance(true.masks, RunMasks) and want.masks:
        against = PairWith(true.masks, true.crowd, next(iter(protocols.values())).min_iou)
    found = pred.columns(image_id, size, replace(want, scores=True, against=against))
    if class_aware:
        _need_categories(pred, image_id, found)
    scored = []
    for iou_type, protocol in protocols.items():
        for key, truth, index in _truths(gt, image_id, true, iou_type):
            pairs = found.pairs if iou_type == "mask" else None
            if pairs is not None and len(index) < len(true):
                pairs = select_pairs(pairs, np.arange(len(found)), index, (len(found), len(true)))
            parents = np.maximum(found.parents, NO_PARENT)  # an unknown parent makes a root
            try:
                shapes = found.shapes(iou_type)
                given = Predictions(shapes, found.known_scores, parents, found.categories)
                image = score_image(protocol, truth, given, pairs)
            except ValueError as error:
                raise BadInput(f"{pred.path} against {gt.path}, image {image_id!r}: {error}") from error
            scored.append((iou_type, key, image))
    return scored


def _truths(
    gt: CocoIndex, image_id: ImageId, true: Annotations, iou_type: IouType
) -> Iterator[tuple[Hashable, Truth, np.ndarray]]:
    """(id, truth, indices of its annotations, int64 [m], rising) of an image: one, or one per annotator.

    An annotation without a region is not a mask; one without region and ``bbox`` is not a box either.
    """
    is_mask = iou_type == "mask"
    is_valid = true.has_mask if is_mask else true.has_mask | true.has_box  # [M]
    kept = true
    if not is_valid.all():
        try:
            kept = true.keep(is_valid)
        except ValueError as error:
            raise BadInput(f"{gt.path}, image {image_id!r}: {error}") from error
    if gt.has_annotators and len(kept) == 0:
        return
    indices = np.flatnonzero(is_valid)  # [m]
    for annotator, index in sorted(_by_annotator(kept).items(), key=lambda item: id_order(item[0])):
        drawn = kept if annotator is None else kept.select(index)
        if (drawn.parents == UNKNOWN_PARENT).any():
            raise BadInput(f"{gt.path}, image {image_id!r}: a parent is an annotation of another annotator")
        shapes = drawn.shapes(iou_type)
        areas = np.where(np.isnan(drawn.areas), shapes.areas, drawn.areas)
        hierarchy = drawn.parents if kept.has_parent_key.any() else None
        key = image_id if annotator is None else (image_id, annotator)
        yield key, Truth(shapes, areas, drawn.crowd, drawn.categories, hierarchy), indices[index]


def _read_truth(gt: CocoIndex, image_id: ImageId, size: tuple[int, int], want: Want, class_aware: bool) -> Annotations:
    true = gt.columns(image_id, size, want)
    if (true.parents == UNKNOWN_PARENT).any():
        index = int(np.flatnonzero(true.parents == UNKNOWN_PARENT)[0])
        parent = gt.annotations(image_id)[index]["parent"]
        raise BadInput(f"{gt.path}, image {image_id!r}: parent {parent!r} is not an annotation of this image")
    if gt.has_annotators and len(true) and true.annotators is None:
        raise BadInput(
            f"{gt.path}, image {image_id!r}: expected an annotator on every annotation, as on others of this file"
        )
    if class_aware:
        _need_categories(gt, image_id, true)
    return _in_category_order(true)


def _need_categories(index: CocoIndex, image_id: ImageId, annotations: Annotations) -> None:
    if annotations.categories is None:
        raise BadInput(f"{index.path}, image {image_id!r}: expected a number as category_id of every annotation")


def _by_annotator(true: Annotations) -> dict[Any, np.ndarray]:
    """Indices of an image's annotations by annotator, int64 [m], rising; all under None if the file has no
    annotators."""
    if true.annotators is None:
        return {None: np.arange(len(true))}
    drawn: dict[Any, list[int]] = {}
    for index, annotator in enumerate(true.annotators):
        drawn.setdefault(annotator, []).append(index)
    return {annotator: np.array(index) for annotator, index in drawn.items()}


def _in_category_order(true: Annotations) -> Annotations:
    """Sorted by category, as pycocotools does even without categories (useCats 0), which decides ties."""
    categories = true.categories
    if categories is None or (categories[1:] >= categories[:-1]).all():
        return true
    return true.select(np.argsort(categories, kind="stable"))
