# SPDX-License-Identifier: Apache-2.0
"""COCO's greedy matching of the predictions of one image, for all IoU thresholds and area ranges in one pass."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from sohes.evaluation.overlap import Pairs
from sohes.evaluation.reference import matching as reference
from sohes.evaluation.reference.matching import Matches
from sohes.ops._binary import find_binary

__all__ = ["Matches", "match_greedy"]

LANES_OF_KERNEL = 64


def match_greedy(pairs: Pairs, gt_ignored: np.ndarray, crowd: np.ndarray, iou_thresholds: np.ndarray) -> Matches:
    """pairs of predictions (indices by falling score) and masks; ``gt_ignored`` bool [A, M], ``crowd`` bool [M];
    ``iou_thresholds`` float64 [T], rising. See ``reference.matching``, which defines it."""
    binary = find_binary().module
    if binary is None or gt_ignored.shape[0] * len(iou_thresholds) > LANES_OF_KERNEL:
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
