# SPDX-License-Identifier: Apache-2.0
"""The sums and ranked predictions of one scored image, from which all metrics are computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sohes.evaluation.hierarchy import HierarchyCounts, count_hierarchy, match_by_iou
from sohes.evaluation.matching import (
    MAX_KERNEL_LANES,
    MAX_KERNEL_RANGES,
    Pairs,
    find_pairs,
    match_greedy,
    select_pairs,
)
from sohes.evaluation.protocol import Protocol
from sohes.evaluation.shapes import Shapes, as_array
from sohes.ops._binary import find_binary
from sohes.structures.masks import Size


@dataclass(frozen=True, eq=False)
class Truth:
    """The M true masks (or boxes) of one image.

    areas: float64 [M] in pixels, which decide the area ranges. crowd: bool [M]. categories: int64 [M], for a
    class-aware protocol. parents: int64 [M], -1 for a root; None if the image has no annotated hierarchy.
    """

    shapes: Shapes
    areas: np.ndarray
    crowd: np.ndarray
    categories: np.ndarray | None = None
    parents: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Predictions:
    """The N predictions of one image.

    scores: float64 [N]. parents: int64 [N], -1 for a root. categories: int64 [N], if known; they decide ties.
    """

    shapes: Shapes
    scores: np.ndarray
    parents: np.ndarray
    categories: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Match counts of the D best predictions of one image, or of one of its categories.

    num_gt: int64 [A], true masks that count in each area range. found: int32 [S, A * T], number of them that the best
    ``Protocol.steps[s]`` predictions match in each lane (see ``reference.matching``). num_ranked: D.
    """

    num_gt: np.ndarray
    found: np.ndarray
    num_ranked: int


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """The sums of an image.

    num_predictions: before any limit. outcomes: by category; the only key of a class-agnostic protocol is None.
    """

    num_predictions: int
    hierarchy: HierarchyCounts
    outcomes: dict[int | None, Outcomes]


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """The sums of an image, and per category the rows (``ranking.row_type`` [D]) of its best predictions by falling
    score."""

    record: ImageRecord
    rows: dict[int | None, np.ndarray]


def score_image(protocol: Protocol, truth: Truth, found: Predictions, pairs: Pairs | None = None) -> ScoredImage:
    """Score the predictions of one image.

    pairs: the result of ``find_pairs`` for all predictions and true masks, if known.

    Raises ValueError if sizes differ, a score is not finite, or the true parents are not a forest.
    """
    if found.shapes.size != truth.shapes.size:
        raise ValueError(f"expected predictions of size {truth.shapes.size}, got {found.shapes.size}")
    if not np.isfinite(found.scores).all():
        raise ValueError(f"expected finite scores, got {found.scores[~np.isfinite(found.scores)][0]}")
    if pairs is None:
        pairs = find_pairs(found.shapes, truth.shapes, truth.crowd, protocol.min_iou)
    order = _rank(found)  # [N]
    best = order[: protocol.max_dets[-1]]  # [D]
    everything = np.arange(len(truth.crowd))  # [M]
    outcomes: dict[int | None, Outcomes] = {}
    ranked: dict[int | None, np.ndarray] = {}
    if protocol.class_aware:
        if truth.categories is None or found.categories is None:
            raise ValueError("expected categories, as the protocol is class-aware")
        for category in np.union1d(truth.categories, found.categories).tolist():
            rows = order[found.categories[order] == category][: protocol.max_dets[-1]]
            columns = np.flatnonzero(truth.categories == category)
            outcomes[category], ranked[category] = _score_some(protocol, truth, found, pairs, rows, columns)
    else:
        outcomes[None], ranked[None] = _score_some(protocol, truth, found, pairs, best, everything)

    hierarchy = HierarchyCounts()
    if truth.parents is not None:
        among_best = select_pairs(pairs, best, everything, (len(order), len(everything)))
        match = match_by_iou(among_best, len(truth.crowd), truth.crowd)  # [M], into best
        match = np.append(best, -1)[match]  # [M], into the predictions as given
        hierarchy = count_hierarchy(match, truth.parents, found.parents, truth.crowd)
    return ScoredImage(ImageRecord(len(found.scores), hierarchy, outcomes), ranked)


def _rank(found: Predictions) -> np.ndarray:
    """Indices of the predictions by falling score, int64 [N]. Ties: the lower category first, as in pycocotools even
    without categories, then the lower index."""
    categories = found.categories
    if categories is None or (categories[1:] >= categories[:-1]).all():
        return np.argsort(-found.scores, kind="stable")
    return np.lexsort((categories, -found.scores))


def _score_some(
    protocol: Protocol, truth: Truth, found: Predictions, pairs: Pairs, rows: np.ndarray, columns: np.ndarray
) -> tuple[Outcomes, np.ndarray]:
    """Match counts and rows of the predictions ``rows`` (int64 [D], by falling score) against the true masks
    ``columns`` (int64 [m], rising)."""
    crowd, gt_areas = truth.crowd[columns], truth.areas[columns]  # [m] each
    among = select_pairs(pairs, rows, columns, (len(found.scores), len(truth.crowd)))
    low, high = protocol.area_limits  # [A, 1] each
    gt_ignored = crowd | (gt_areas < low) | (gt_areas > high)  # [A, m]
    pred_areas = as_array(found.shapes.areas)[rows]  # [D]
    outside = (pred_areas < low) | (pred_areas > high)  # [A, D]
    matches = match_greedy(among, gt_ignored, crowd, protocol.capped_thresholds)

    ranked = np.zeros(len(rows), protocol.row_type)  # [D]
    ranked["score"], ranked["rank"] = found.scores[rows], np.arange(len(rows))
    ranked["outside"] = np.packbits(outside, axis=0, bitorder="little").T
    ranked["hit"][matches.pred], ranked["ignored"][matches.pred] = matches.hit, matches.ignored
    hit = np.unpackbits(matches.hit, axis=1, count=protocol.num_lanes, bitorder="little")  # [R, L]
    so_far = np.zeros((len(hit) + 1, protocol.num_lanes), np.int32)  # [R + 1, L]
    np.cumsum(hit, axis=0, out=so_far[1:])
    return Outcomes(
        num_gt=(~gt_ignored).sum(1),
        found=so_far[np.searchsorted(matches.pred, protocol.steps)],
        num_ranked=len(rows),
    ), ranked


def score_text(protocol: Protocol, gt: tuple[bytes, int], pred: tuple[bytes, int], size: Size) -> ScoredImage | None:
    """The result of ``score_image``, from the JSON of an image of ``size`` in one call of the compiled module.

    gt, pred: annotations as (JSON text, number). Faster, as threads do not wait for each other between the steps.

    Returns None if ``score_image`` is needed: for boxes, class-aware protocols, masks other than RLE, parents,
    annotators or invalid annotations, and without the compiled module.
    """
    binary = find_binary().module
    num_ranges, num_lanes = len(protocol.area_ranges), protocol.num_lanes
    if binary is None or protocol.class_aware or protocol.iou_type != "mask":
        return None
    if num_ranges > MAX_KERNEL_RANGES or num_lanes > MAX_KERNEL_LANES:
        return None
    (gt_text, num_gt), (pred_text, num_pred) = gt, pred
    needed = binary.coco_image_scratch(len(gt_text), len(pred_text), num_gt, num_pred, num_ranges)
    scratch = np.empty(needed // 8, np.int64).view(np.uint8)
    counts, found = np.empty(num_ranges, np.int64), np.empty((len(protocol.steps), num_lanes), np.int32)
    rows = np.empty(min(num_pred, protocol.max_dets[-1]), protocol.row_type)
    table = rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    given = (gt_text, pred_text, num_gt, num_pred, *size, protocol.min_iou)
    limits = (protocol.area_limits, protocol.capped_thresholds, np.array(protocol.steps))
    if not binary.coco_image(*given, *limits, scratch, counts, found, table):
        return None
    return ScoredImage(
        ImageRecord(num_pred, HierarchyCounts(), {None: Outcomes(counts, found, len(rows))}), {None: rows}
    )
