# SPDX-License-Identifier: Apache-2.0
"""COCO's greedy matching of the predictions of one image, for all IoU thresholds and area ranges in one pass.

One (area range, IoU threshold) is a *lane*: lane ``a * T + t``. A set of lanes is a Python integer with one bit a
lane, so that what COCO does lane by lane is done here with a few bit operations a pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sohes.evaluation.reference.pairs import Pairs


@dataclass(frozen=True, eq=False)
class Matches:
    """What became of the predictions that some lane matched; all others are unmatched in every lane.

    pred: int64 [R], rising. hit, ignored: uint8 [R, ceil(A*T/8)], lanes (bit ``l % 8`` of byte ``l // 8``) in
    which the prediction is matched to a mask that counts, or to one that is ignored.
    """

    pred: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray

    def lane(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(hit, ignored), bool [R] each, of one lane."""
        byte, bit = divmod(index, 8)
        return (self.hit[:, byte] >> bit & 1).astype(bool), (self.ignored[:, byte] >> bit & 1).astype(bool)


def match_greedy(pairs: Pairs, gt_ignored: np.ndarray, crowd: np.ndarray, iou_thresholds: np.ndarray) -> Matches:
    """pairs of predictions (indices by falling score) and masks; ``gt_ignored`` bool [A, M], ``crowd`` bool [M].

    In each lane, every prediction in turn takes the free mask of largest IoU at or above the threshold, of equals
    the last one; ignored masks are taken only when no other is to be had; a crowd is never used up. (COCO's
    ``evaluateImg``.)

    ``iou_thresholds``: float64 [T], rising, as ``Protocol.capped_thresholds`` has them.
    """
    num_thresholds, num_ranges = len(iou_thresholds), len(gt_ignored)
    num_bytes = -(-num_thresholds * num_ranges // 8)
    row = (1 << num_thresholds) - 1  # every threshold, of one area range
    shifts = [num_thresholds * a for a in range(num_ranges)]
    every = sum(row << shift for shift in shifts)
    skip = [
        sum(row << s for s, ignored in zip(shifts, column, strict=True) if ignored) for column in gt_ignored.T.tolist()
    ]
    free = [every ^ lanes for lanes in skip]  # per mask: lanes in which it counts and is not taken
    spare = list(skip)  # per mask: lanes in which it is ignored and not taken
    keep = crowd.tolist()
    reach = [sum(((1 << met) - 1) << shift for shift in shifts) for met in range(num_thresholds + 1)]

    order = np.lexsort((-pairs.gt, -pairs.iou, pairs.pred))  # best pair of each prediction first
    pred, gt, iou = pairs.pred[order], pairs.gt[order].tolist(), pairs.iou[order]
    lanes_of = [reach[met] for met in np.searchsorted(iou_thresholds, iou, side="right").tolist()]
    preds, starts = np.unique(pred, return_index=True)
    stops = np.append(starts, len(pred))[1:]

    matched: list[int] = []
    hits, misses = bytearray(), bytearray()
    for index, start, stop in zip(preds.tolist(), starts.tolist(), stops.tolist(), strict=True):
        want = every  # lanes in which this prediction has no mask yet
        for k in range(start, stop):
            taken = want & lanes_of[k] & free[gt[k]]
            free[gt[k]] ^= taken
            want ^= taken
        hit = every ^ want
        ignored = 0
        for k in range(start, stop):
            taken = want & lanes_of[k] & spare[gt[k]]
            if taken and not keep[gt[k]]:
                spare[gt[k]] ^= taken
            want ^= taken
            ignored |= taken
        if hit or ignored:
            matched.append(index)
            hits += hit.to_bytes(num_bytes, "little")
            misses += ignored.to_bytes(num_bytes, "little")
    shape = (len(matched), num_bytes)
    return Matches(
        np.array(matched, np.int64),
        np.frombuffer(bytes(hits), np.uint8).reshape(shape),
        np.frombuffer(bytes(misses), np.uint8).reshape(shape),
    )
