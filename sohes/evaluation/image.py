# SPDX-License-Identifier: Apache-2.0
"""One image scored: everything the metrics need of it, in a few kilobytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sohes.evaluation.hierarchy import HierarchyCounts, count_hierarchy, match_by_iou
from sohes.evaluation.matching import Matches, match_greedy
from sohes.evaluation.overlap import Pairs, find_pairs, restrict
from sohes.evaluation.protocol import Protocol
from sohes.evaluation.shapes import Shapes, as_array


@dataclass(frozen=True, eq=False)
class Truth:
    """The M true masks (or boxes) of one image.

    areas: float64 [M] in pixels, what the area ranges are decided by. crowd: bool [M]. categories: int64 [M], where
    they are looked at. parents: int64 [M], -1 for a root; None where the image has no annotated hierarchy.
    """

    shapes: Shapes
    areas: np.ndarray
    crowd: np.ndarray
    categories: np.ndarray | None = None
    parents: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """The N predictions of one image. scores: float64 [N]. parents: int64 [N], -1 for a root. categories: int64 [N],
    where they are known: they decide ties."""

    shapes: Shapes
    scores: np.ndarray
    parents: np.ndarray
    categories: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What became of the D best predictions of one image, or of one of its categories, by falling score.

    num_gt: int64 [A], true masks that count in each area range. scores: [D], float32 where that is exact, else
    float64. outside: uint8 [A, ceil(D/8)], bits of the predictions whose own area is out of the range.
    """

    num_gt: np.ndarray
    scores: np.ndarray
    outside: np.ndarray
    matches: Matches


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """What is kept of an image. num_predictions: before any cut. outcomes: by category, in a class-agnostic protocol
    all under None."""

    num_predictions: int
    hierarchy: HierarchyCounts
    outcomes: dict[int | None, Outcomes]


def score_image(protocol: Protocol, truth: Truth, found: Found, pairs: Pairs | None = None) -> ImageRecord:
    """Score the predictions of one image. Pure.

    pairs: those of ``find_pairs`` where they are known, of all predictions and true masks.

    Raises ValueError where the sizes differ, a score is not finite, or the true parents are no forest.
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
    if protocol.class_aware:
        for category in np.union1d(truth.categories, found.categories).tolist():
            rows = order[found.categories[order] == category][: protocol.max_dets[-1]]
            columns = np.flatnonzero(truth.categories == category)
            outcomes[category] = _score_some(protocol, truth, found, pairs, rows, columns)
    else:
        outcomes[None] = _score_some(protocol, truth, found, pairs, best, everything)

    hierarchy = HierarchyCounts()
    if truth.parents is not None:
        among_best = restrict(pairs, best, everything, (len(order), len(everything)))
        match = match_by_iou(among_best, len(truth.crowd), truth.crowd)  # [M], into best
        match = np.append(best, -1)[match]  # [M], into the predictions as given
        hierarchy = count_hierarchy(match, truth.parents, found.parents, truth.crowd)
    return ImageRecord(len(found.scores), hierarchy, outcomes)


def _rank(found: Found) -> np.ndarray:
    """Indices of the predictions by falling score, int64 [N]; of equals first the lower category, as pycocotools goes
    through them also where categories do not matter, then the lower index."""
    categories = found.categories
    if categories is None or (categories[1:] >= categories[:-1]).all():
        return np.argsort(-found.scores, kind="stable")
    return np.lexsort((categories, -found.scores))


def _score_some(
    protocol: Protocol, truth: Truth, found: Found, pairs: Pairs, rows: np.ndarray, columns: np.ndarray
) -> Outcomes:
    """The predictions ``rows`` (int64 [D], by falling score) against the true masks ``columns`` (int64 [m], rising)."""
    crowd, gt_areas = truth.crowd[columns], truth.areas[columns]  # [m] each
    among = restrict(pairs, rows, columns, (len(found.scores), len(truth.crowd)))
    ranges = np.array(list(protocol.area_ranges.values()), np.float64)[:, :, None]  # [A, 2, 1]
    low, high = ranges[:, 0], ranges[:, 1]  # [A, 1] each
    gt_ignored = crowd | (gt_areas < low) | (gt_areas > high)  # [A, m]
    pred_areas = as_array(found.shapes.areas)[rows]  # [D]
    return Outcomes(
        num_gt=(~gt_ignored).sum(1),
        scores=compact(found.scores[rows]),
        outside=np.packbits((pred_areas < low) | (pred_areas > high), axis=1),
        matches=match_greedy(among, gt_ignored, crowd, protocol.capped_thresholds),
    )


def compact(scores: np.ndarray) -> np.ndarray:
    """float64 [D] as float32 where no digit is lost."""
    single = scores.astype(np.float32)  # [D]
    return single if (single == scores).all() else scores
