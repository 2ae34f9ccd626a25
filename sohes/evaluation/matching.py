# SPDX-License-Identifier: Apache-2.0
"""Pairs of predictions and true masks by IoU, and COCO's greedy matching of them, for one image."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from sohes.evaluation.reference import matching as reference
from sohes.evaluation.reference.matching import Matches, Pairs, box_pairs, mask_pairs
from sohes.evaluation.shapes import Boxes, RunMasks, Shapes
from sohes.ops._binary import find_binary
from sohes.structures.masks import PackedMasks

__all__ = ["Matches", "Pairs", "find_pairs", "match_greedy", "select_pairs"]

# Limits of the kernels; beyond them the reference runs.
MAX_KERNEL_RANGES = 8
MAX_KERNEL_LANES = 64


def find_pairs(pred: Shapes, gt: Shapes, crowd: np.ndarray, min_iou: float) -> Pairs:
    """All pairs of IoU >= ``min_iou`` > 0 between N predicted and M true shapes, both of the same type.

    crowd: bool [M].
    """
    if isinstance(pred, Boxes) and isinstance(gt, Boxes):
        return box_pairs(pred, gt, crowd, min_iou)
    if isinstance(pred, RunMasks) and isinstance(gt, RunMasks):
        binary = find_binary().module
        return _run_pairs(binary, pred, gt, crowd, min_iou) if binary else mask_pairs(pred, gt, crowd, min_iou)
    if isinstance(pred, PackedMasks) and isinstance(gt, PackedMasks):
        return mask_pairs(pred, gt, crowd, min_iou)
    raise TypeError(f"expected shapes of one type, with pixels, got {type(pred).__name__} and {type(gt).__name__}")


def select_pairs(pairs: Pairs, rows: np.ndarray, columns: np.ndarray, sizes: tuple[int, int]) -> Pairs:
    """The pairs of a subset of the shapes, with indices into the subset.

    rows: int64 [n], predictions in any order. columns: int64 [m], true shapes, rising. sizes: (N, M), all shapes.
    """
    new_row, new_column = np.full(sizes[0], -1), np.full(sizes[1], -1)
    new_row[rows], new_column[columns] = np.arange(len(rows)), np.arange(len(columns))
    pred, gt = new_row[pairs.pred], new_column[pairs.gt]  # [P] each
    kept = np.flatnonzero((pred >= 0) & (gt >= 0))  # [p]
    kept = kept[np.argsort(pred[kept], kind="stable")]  # the true shapes of one prediction are sorted already
    return Pairs(pred[kept], gt[kept], pairs.iou[kept])


def empty_pairs(num_pred: int, num_gt: int) -> Pairs:
    """Uninitialized arrays for all possible pairs; the system reserves memory only for what is written."""
    size = num_pred * num_gt
    return Pairs(np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.float64))


def first_pairs(pairs: Pairs, count: int) -> Pairs:
    """A copy of the first ``count`` pairs, so that the large arrays are freed."""
    return Pairs(pairs.pred[:count].copy(), pairs.gt[:count].copy(), pairs.iou[:count].copy())


def run_arrays(masks: RunMasks) -> list[np.ndarray]:
    """The arrays of the masks in the order of the kernels' parameters."""
    return [masks.starts, masks.stops, masks.bounds, masks.areas, masks.boxes]


def _run_pairs(binary: ModuleType, pred: RunMasks, gt: RunMasks, crowd: np.ndarray, min_iou: float) -> Pairs:
    pairs = empty_pairs(len(pred), len(gt))
    found = (pairs.pred, pairs.gt, pairs.iou)
    count = binary.run_pairs(run_arrays(pred), run_arrays(gt), crowd, pred.size[0], min_iou, *found)
    return first_pairs(pairs, count)


def match_greedy(pairs: Pairs, gt_ignored: np.ndarray, crowd: np.ndarray, iou_thresholds: np.ndarray) -> Matches:
    """COCO's greedy matching; ``reference.match_greedy`` defines it.

    pairs: of predictions (indices by falling score) and masks. gt_ignored: bool [A, M]. crowd: bool [M].
    iou_thresholds: float64 [T], rising.
    """
    binary = find_binary().module
    if binary is None or gt_ignored.shape[0] * len(iou_thresholds) > MAX_KERNEL_LANES:
        return reference.match_greedy(pairs, gt_ignored, crowd, iou_thresholds)
    return _match_lanes(binary, pairs, gt_ignored, crowd, iou_thresholds)


def _match_lanes(
    binary: ModuleType, pairs: Pairs, gt_ignored: np.ndarray, crowd: np.ndarray, iou_thresholds: np.ndarray
) -> Matches:
    size = len(pairs.pred)
    matches = Matches(np.empty(size, np.int64), np.empty((size, 8), np.uint8), np.empty((size, 8), np.uint8))
    scratch = np.empty((3, len(crowd)), np.int64)
    found = (matches.pred, matches.hit, matches.ignored)
    count = binary.match_lanes(pairs.pred, pairs.gt, pairs.iou, gt_ignored, crowd, iou_thresholds, scratch, *found)
    num_bytes = -(-gt_ignored.shape[0] * len(iou_thresholds) // 8)
    # Copies, so that the large arrays are freed.
    return Matches(found[0][:count].copy(), found[1][:count, :num_bytes].copy(), found[2][:count, :num_bytes].copy())
