# SPDX-License-Identifier: Apache-2.0
"""Pairs of predictions and true masks by IoU, and COCO's greedy matching of them, for one image."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from sohes.evaluation.reference import matching as reference
from sohes.evaluation.reference.matching import Matches, Pairs, box_pairs, mask_pairs
from sohes.evaluation.shapes import Boxes, RunMasks, Shapes
from sohes.ops._binary import find_binary

__all__ = ["Matches", "Pairs", "find_pairs", "match_greedy", "select_pairs"]

# Limits of the kernels; beyond them the reference runs.
MAX_KERNEL_RANGES = 8
MAX_KERNEL_LANES = 64


def find_pairs(pred: Shapes, gt: Shapes, crowd: np.ndarray, min_iou: float) -> Pairs:
    """Every pair of IoU >= ``min_iou`` > 0 between N predicted and M true shapes of the same kind.

    crowd: bool [M].
    """
    if isinstance(pred, Boxes):
        return box_pairs(pred, gt, crowd, min_iou)
    binary = find_binary().module
    if isinstance(pred, RunMasks) and binary is not None:
        return _run_pairs(binary, pred, gt, crowd, min_iou)
    return mask_pairs(pred, gt, crowd, min_iou)


def select_pairs(pairs: Pairs, rows: np.ndarray, columns: np.ndarray, sizes: tuple[int, int]) -> Pairs:
    """The pairs between the predictions ``rows`` and the true shapes ``columns`` of ``sizes`` (N, M), counted by their
    place in ``rows`` (int64 [n], in any order) and ``columns`` (int64 [m], rising)."""
    place_of_row, place_of_column = np.full(sizes[0], -1), np.full(sizes[1], -1)
    place_of_row[rows], place_of_column[columns] = np.arange(len(rows)), np.arange(len(columns))
    pred, gt = place_of_row[pairs.pred], place_of_column[pairs.gt]  # [P] each
    kept = np.flatnonzero((pred >= 0) & (gt >= 0))  # [p]
    kept = kept[np.argsort(pred[kept], kind="stable")]  # of one prediction, true shapes rise already
    return Pairs(pred[kept], gt[kept], pairs.iou[kept])


def empty_pairs(num_pred: int, num_gt: int) -> Pairs:
    """Empty arrays for all pairs there could be; memory that is not written to is never taken."""
    room = num_pred * num_gt
    return Pairs(np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.float64))


def first_pairs(pairs: Pairs, count: int) -> Pairs:
    """The first ``count``, copied, so that the rest of the room is let go."""
    return Pairs(pairs.pred[:count].copy(), pairs.gt[:count].copy(), pairs.iou[:count].copy())


def run_arrays(masks: RunMasks) -> list[np.ndarray]:
    """As the kernels take them."""
    return [masks.starts, masks.stops, masks.bounds, masks.areas, masks.boxes]


def _run_pairs(binary: ModuleType, pred: RunMasks, gt: RunMasks, crowd: np.ndarray, min_iou: float) -> Pairs:
    pairs = empty_pairs(len(pred), len(gt))
    found = (pairs.pred, pairs.gt, pairs.iou)
    count = binary.run_pairs(run_arrays(pred), run_arrays(gt), crowd, pred.size[0], min_iou, *found)
    return first_pairs(pairs, count)


def match_greedy(pairs: Pairs, gt_ignored: np.ndarray, crowd: np.ndarray, iou_thresholds: np.ndarray) -> Matches:
    """pairs of predictions (indices by falling score) and masks; ``gt_ignored`` bool [A, M], ``crowd`` bool [M];
    ``iou_thresholds`` float64 [T], rising. See ``reference.matching``, which defines it."""
    binary = find_binary().module
    if binary is None or gt_ignored.shape[0] * len(iou_thresholds) > MAX_KERNEL_LANES:
        return reference.match_greedy(pairs, gt_ignored, crowd, iou_thresholds)
    return _match_lanes(binary, pairs, gt_ignored, crowd, iou_thresholds)


def _match_lanes(
    binary: ModuleType, pairs: Pairs, gt_ignored: np.ndarray, crowd: np.ndarray, iou_thresholds: np.ndarray
) -> Matches:
    room = len(pairs.pred)
    matches = Matches(np.empty(room, np.int64), np.empty((room, 8), np.uint8), np.empty((room, 8), np.uint8))
    scratch = np.empty((3, len(crowd)), np.int64)
    found = (matches.pred, matches.hit, matches.ignored)
    count = binary.match_lanes(pairs.pred, pairs.gt, pairs.iou, gt_ignored, crowd, iou_thresholds, scratch, *found)
    num_bytes = -(-gt_ignored.shape[0] * len(iou_thresholds) // 8)
    # Copies: the rest of the room is let go.
    return Matches(found[0][:count].copy(), found[1][:count, :num_bytes].copy(), found[2][:count, :num_bytes].copy())
