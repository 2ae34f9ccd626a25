# SPDX-License-Identifier: Apache-2.0
"""Scores a file of predictions against a file of ground truth, image after image."""

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

from sohes.evaluation.annotations import NO_PARENT, UNKNOWN_PARENT, Against, Annotations, Want
from sohes.evaluation.checks import align_ids, check_ids, check_truth
from sohes.evaluation.coco_index import BadInput, CocoIndex, ImageId
from sohes.evaluation.image import Found, Truth, score_image, score_text
from sohes.evaluation.matching import select_pairs
from sohes.evaluation.metrics import Evaluation, id_order
from sohes.evaluation.protocol import IouType, Protocol
from sohes.evaluation.shards import Scored, Shards, StoredEvaluation
from sohes.evaluation.workers import Workers
from sohes.utils.distributed import World, barrier

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike
OnImages = Callable[[int, int], None]
IMAGES_A_SHARD = 64
IMAGES_A_TASK = 4  # of a thread: handing out costs as much as a tenth of an image


@dataclass(frozen=True)
class Plan:
    """How files are scored.

    max_dets, class_aware: see ``Protocol``. iou_types: what is compared, at least one. threads: images scored at a
    time, >= 1; None for as many as torch uses. shards: folder that keeps what is scored, so that a killed evaluation
    goes on from there; several processes meet in it. world: which process of how many this is. ignore_others: leave
    predictions of images that the ground truth does not have out, where they are an error otherwise.
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
    """``Evaluation.summary()`` of a file of predictions; see ``score``."""
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
    """Of one IoU type, every image of the ground truth; see ``score`` and ``Plan``."""
    plan = Plan(max_dets, (iou_type,), class_aware, threads, ignore_others=ignore_others)
    return score(gt_json, pred_json, plan, on_image)[iou_type]


def score(
    gt_json: PathLike, pred_json: PathLike, plan: Plan, on_image: OnImages | None = None
) -> dict[IouType, Evaluation]:
    """For each IoU type of the plan, every image of the ground truth scored.

    gt_json: COCO JSON; segmentations are RLE or polygons; categories are looked at in a class-aware plan only. ``area``
    (default: the shape's) decides the area range. Images with ``parent`` (an annotation id or null) on some annotation
    count for the hierarchy. Where annotations have an ``annotator``, each annotator is scored as an image of its own
    with the same predictions (as is right for BSDS500, whose people each drew the whole image), and images nobody drew
    are left out.

    pred_json: COCO JSON, or a bare list of COCO results; every annotation has a ``score``. A ``parent`` that is not
    among the image's predictions makes a root. A box without ``bbox`` is the one around the mask.

    Images are matched by id, or where ids mean different images, by file name (see ``names``). One that has no
    predictions counts as missed. Memory does not grow with the files: what is scored goes to disk, some 25 bytes for
    each prediction, into the plan's folder or a temporary one (in TMPDIR) that goes with the result.
    on_image(done, total) is called after each image of this process. In a world of several processes each scores its
    share and returns when all have; only the first one's evaluations have images.

    Raises BadInput: a file is missing or malformed, ids or sizes do not agree, or the shards are of something else.
    """
    protocols = plan.protocols()
    if plan.world.size > 1 and plan.shards is None:
        raise BadInput("several processes need a folder of shards to meet in")
    gt, pred = CocoIndex(gt_json), CocoIndex(pred_json)
    align_ids(gt, pred)
    check_truth(gt, protocols)
    check_ids(gt, pred, plan.ignore_others)
    if gt.num_without_region and plan.world.is_main and "mask" in protocols:
        what = "have no segmentation, and are not counted as masks"
        logger.warning("%s: %d of %d annotations %s", gt.path, gt.num_without_region, gt.num_annotations, what)
    # Where no folder is wanted for good, one in the system's place for temporary files goes with the evaluations.
    temporary = TemporaryDirectory(prefix="sohes-evaluate-") if plan.shards is None else None
    shards = Shards.open(plan.shards or Path(temporary.name), gt.path, pred.path, protocols)
    chunks = _split(sorted(gt.images, key=id_order), IMAGES_A_SHARD)
    mine = {number: chunks[number] for number in range(plan.world.rank, len(chunks), plan.world.size)}
    with Workers(torch.get_num_threads() if plan.threads is None else plan.threads) as workers:
        _write_shards(mine, shards, partial(_score_one, protocols, gt, pred), workers, on_image)
    if plan.world.size > 1:  # one process alone may score while the others of its group wait for its result
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
    """Score the images of every shard that is not there yet."""
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
    tasks = [(number, some) for number in missing for some in _split(chunks[number], IMAGES_A_TASK)]
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
    """The records of one image: by IoU type, and by annotator where there are several."""
    size = (gt.images[image_id]["height"], gt.images[image_id]["width"])
    if protocols.keys() == {"mask"} and not gt.has_annotators:
        plain = score_text(protocols["mask"], gt.text(image_id), pred.text(image_id), size)
        if plain is not None:
            return [("mask", image_id, plain)]
    class_aware = any(protocol.class_aware for protocol in protocols.values())
    want = Want(masks="mask" in protocols, boxes="box" in protocols)
    true = _read_truth(gt, image_id, size, want, class_aware)
    if gt.has_annotators and len(true) == 0:
        return []  # nobody drew this image
    against = Against(true.masks, true.crowd, next(iter(protocols.values())).min_iou) if want.masks else None
    found = pred.columns(image_id, size, replace(want, scores=True, against=against))
    if class_aware:
        _need_categories(pred, image_id, found)
    scored = []
    for iou_type, protocol in protocols.items():
        for key, truth, index in _truths(gt, image_id, true, iou_type):
            pairs = None
            if iou_type == "mask":
                pairs = found.pairs
                if len(index) < len(true):
                    pairs = select_pairs(pairs, np.arange(len(found)), index, (len(found), len(true)))
            shapes = found.masks if iou_type == "mask" else found.boxes
            parents = np.maximum(found.parents, NO_PARENT)  # one that is not here makes a root
            try:
                image = score_image(protocol, truth, Found(shapes, found.scores, parents, found.categories), pairs)
            except ValueError as error:
                raise BadInput(f"{pred.path} against {gt.path}, image {image_id!r}: {error}") from error
            scored.append((iou_type, key, image))
    return scored


def _truths(
    gt: CocoIndex, image_id: ImageId, true: Annotations, iou_type: IouType
) -> Iterator[tuple[Hashable, Truth, np.ndarray]]:
    """(id, what is true, which of the annotations that are, int64 [m], rising) of an image: one, or of each annotator.

    What has no region is no mask, and without a box of its own no box either.
    """
    is_mask = iou_type == "mask"
    is_there = true.has_mask if is_mask else true.has_mask | true.has_box  # [M]
    kept = true
    if not is_there.all():
        try:
            kept = true.keep(is_there)
        except ValueError as error:
            raise BadInput(f"{gt.path}, image {image_id!r}: {error}") from error
    if gt.has_annotators and len(kept) == 0:
        return
    place = np.flatnonzero(is_there)
    for annotator, index in sorted(_by_annotator(kept).items(), key=lambda item: id_order(item[0])):
        drawn = kept if annotator is None else kept.select(index)
        if (drawn.parents == UNKNOWN_PARENT).any():
            raise BadInput(f"{gt.path}, image {image_id!r}: a parent is an annotation of another annotator")
        shapes = drawn.masks if is_mask else drawn.boxes
        areas = np.where(np.isnan(drawn.areas), shapes.areas, drawn.areas)
        hierarchy = drawn.parents if kept.tells_parent.any() else None
        key = image_id if annotator is None else (image_id, annotator)
        yield key, Truth(shapes, areas, drawn.crowd, drawn.categories, hierarchy), place[index]


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
    """The true annotations of an image by who drew them, int64 [m], rising; all under None where the file does not
    say."""
    if true.annotators is None:
        return {None: np.arange(len(true))}
    drawn: dict[Any, list[int]] = {}
    for index, annotator in enumerate(true.annotators):
        drawn.setdefault(annotator, []).append(index)
    return {annotator: np.array(index) for annotator, index in drawn.items()}


def _in_category_order(true: Annotations) -> Annotations:
    """Categories may not matter, but pycocotools without them (useCats 0) goes by category, and so decides ties."""
    categories = true.categories
    if categories is None or (categories[1:] >= categories[:-1]).all():
        return true
    return true.select(np.argsort(categories, kind="stable"))
