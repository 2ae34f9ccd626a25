# SPDX-License-Identifier: Apache-2.0
"""One image scored: everything the metrics need of it, in a few kilobytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sohes.evaluation.hierarchy import MATCH_IOU, HierarchyCounts, count_hierarchy, match_by_iou
from sohes.evaluation.matching import Matches, match_greedy
from sohes.evaluation.overlap import Masks, Pairs, as_array, find_pairs

COCO_AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    max_dets: how many of an image's best predictions count, rising; the metrics without a number in their name
    use the last. iou_thresholds: T thresholds in (0, 1], rising. area_ranges: name -> (least, most) pixels of a
    mask, both included; "all" must be there.
    """

    max_dets: tuple[int, ...] = (1, 10, 100, 1000)
    iou_thresholds: tuple[float, ...] = COCO_THRESHOLDS
    area_ranges: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(COCO_AREAS))

    def __post_init__(self) -> None:
        for name, values in (("max_dets", self.max_dets), ("iou_thresholds", self.iou_thresholds)):
            if not values or list(values) != sorted(set(values)) or values[0] <= 0:
                raise ValueError(f"{name}: expected rising numbers above 0, got {list(values)}")
        if self.iou_thresholds[-1] > 1:
            raise ValueError(f"iou_thresholds: expected at most 1, got {list(self.iou_thresholds)}")
        if "all" not in self.area_ranges:
            raise ValueError(f"area_ranges: expected a range named 'all', got {list(self.area_ranges)}")

    @property
    def min_iou(self) -> float:
        """Pairs below this IoU change no metric."""
        return min(self.iou_thresholds[0], MATCH_IOU, 1 - 1e-10)


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of the M true masks of one image beside their pixels.

    areas: [M] in pixels, what the area ranges are decided by. crowd: bool [M]. parents: int64 [M], -1 for a root;
    None where the image has no annotated hierarchy.
    """

    areas: np.ndarray
    crowd: np.ndarray
    parents: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """What is kept of an image: A area ranges, M true masks, and the D best predictions by falling score.

    num_gt: int64 [A], true masks that count. num_predictions: before the cut to D. scores: [D], float32 where
    that is exact, else float64. outside: uint8 [A, ceil(D/8)], bits of the predictions whose own area is out of
    the range.
    """

    num_gt: np.ndarray
    num_predictions: int
    scores: np.ndarray
    outside: np.ndarray
    matches: Matches
    hierarchy: HierarchyCounts

    def outside_range(self, index: int) -> np.ndarray:
        """bool [D]: the prediction's own area is out of this area range."""
        return np.unpackbits(self.outside[index], count=len(self.scores)).astype(bool)


def score_image(
    protocol: Protocol, gt: Masks, truth: Truth, pred: Masks, scores: np.ndarray, parents: np.ndarray
) -> ImageRecord:
    """Score the N predictions of one image against its M true masks. Pure.

    gt, pred: both packed, or both runs. scores: float64 [N]. parents: int64 [N], -1 for a root.

    Raises ValueError where the sizes differ, a score is not finite, or the true parents are no forest.
    """
    if pred.size != gt.size:
        raise ValueError(f"expected predictions of size {gt.size}, got {pred.size}")
    order = _rank_by_score(scores, protocol.max_dets[-1])  # [D]
    pairs = find_pairs(pred, gt, truth.crowd, order, protocol.min_iou)

    ranges = np.array(list(protocol.area_ranges.values()), np.float64)[:, :, None]  # [A, 2, 1]
    low, high = ranges[:, 0], ranges[:, 1]  # [A, 1] each
    gt_ignored = truth.crowd | (truth.areas < low) | (truth.areas > high)  # [A, M]
    areas = as_array(pred.areas)[order]  # [D]
    single = scores[order].astype(np.float32)  # [D]
    return ImageRecord(
        num_gt=(~gt_ignored).sum(1),
        num_predictions=len(scores),
        scores=single if (single == scores[order]).all() else scores[order],
        outside=np.packbits((areas < low) | (areas > high), axis=1),
        matches=match_greedy(pairs, gt_ignored, truth.crowd, np.array(protocol.iou_thresholds)),
        hierarchy=_score_hierarchy(truth, pairs, order, parents),
    )


def _rank_by_score(scores: np.ndarray, limit: int) -> np.ndarray:
    """Indices int64 [D] of the ``limit`` highest scores, highest first, of equals the lower index."""
    if not np.isfinite(scores).all():
        raise ValueError(f"expected finite scores, got {scores[~np.isfinite(scores)][0]}")
    return np.argsort(-scores, kind="stable")[:limit]


def _score_hierarchy(truth: Truth, pairs: Pairs, order: np.ndarray, parents: np.ndarray) -> HierarchyCounts:
    if truth.parents is None:
        return HierarchyCounts()
    match = match_by_iou(pairs, len(truth.crowd), truth.crowd)  # [M], into order
    match = np.append(order, -1)[match]  # [M], into the predictions as given
    return count_hierarchy(match, truth.parents, parents, truth.crowd)
