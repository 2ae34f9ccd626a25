# SPDX-License-Identifier: Apache-2.0
"""Which predictions overlap which true shapes enough to matter, and how much: the pairs that matching works on."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from sohes._binary import find_binary
from sohes.evaluation.reference.pairs import Pairs, box_pairs, mask_pairs
from sohes.evaluation.shapes import Boxes, RunMasks, Shapes

__all__ = ["Pairs", "find_pairs"]


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


def _run_pairs(binary: ModuleType, pred: RunMasks, gt: RunMasks, crowd: np.ndarray, min_iou: float) -> Pairs:
    room = len(pred) * len(gt)
    pairs = Pairs(np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.float64))
    sides = [[masks.starts, masks.stops, masks.bounds, masks.areas, masks.boxes] for masks in (pred, gt)]
    count = binary.run_pairs(*sides, crowd, pred.size[0], min_iou, pairs.pred, pairs.gt, pairs.iou)
    return Pairs(pairs.pred[:count], pairs.gt[:count], pairs.iou[:count])
