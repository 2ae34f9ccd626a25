# SPDX-License-Identifier: Apache-2.0
"""Which predictions overlap which true shapes enough to matter, and how much: the pairs that matching works on."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from sohes.evaluation.reference.pairs import Pairs, box_pairs, mask_pairs
from sohes.evaluation.shapes import Boxes, RunMasks, Shapes
from sohes.ops._binary import find_binary

__all__ = ["Pairs", "find_pairs", "restrict"]


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


def restrict(pairs: Pairs, rows: np.ndarray, columns: np.ndarray, sizes: tuple[int, int]) -> Pairs:
    """The pairs between the predictions ``rows`` and the true shapes ``columns`` of ``sizes`` (N, M), counted by their
    place in ``rows`` (int64 [n], in any order) and ``columns`` (int64 [m], rising)."""
    place_of_row, place_of_column = np.full(sizes[0], -1), np.full(sizes[1], -1)
    place_of_row[rows], place_of_column[columns] = np.arange(len(rows)), np.arange(len(columns))
    pred, gt = place_of_row[pairs.pred], place_of_column[pairs.gt]  # [P] each
    kept = np.flatnonzero((pred >= 0) & (gt >= 0))  # [p]
    kept = kept[np.argsort(pred[kept], kind="stable")]  # of one prediction, true shapes rise already
    return Pairs(pred[kept], gt[kept], pairs.iou[kept])


def room_for_pairs(num_pred: int, num_gt: int) -> Pairs:
    """Empty arrays for all pairs there could be; memory that is not written to is never taken."""
    room = num_pred * num_gt
    return Pairs(np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.float64))


def first_pairs(pairs: Pairs, count: int) -> Pairs:
    """The first ``count``, copied, so that the rest of the room is let go."""
    return Pairs(pairs.pred[:count].copy(), pairs.gt[:count].copy(), pairs.iou[:count].copy())


def as_arguments(masks: RunMasks) -> list[np.ndarray]:
    """As the kernels take them."""
    return [masks.starts, masks.stops, masks.bounds, masks.areas, masks.boxes]


def _run_pairs(binary: ModuleType, pred: RunMasks, gt: RunMasks, crowd: np.ndarray, min_iou: float) -> Pairs:
    pairs = room_for_pairs(len(pred), len(gt))
    found = (pairs.pred, pairs.gt, pairs.iou)
    count = binary.run_pairs(as_arguments(pred), as_arguments(gt), crowd, pred.size[0], min_iou, *found)
    return first_pairs(pairs, count)
