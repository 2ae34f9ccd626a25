# SPDX-License-Identifier: Apache-2.0
"""Pairs of predictions and true masks by IoU, and COCO's greedy matching of them, in numpy.

One (area range, IoU threshold) is a *lane*: lane ``a * T + t``. A set of lanes is a Python integer with one bit per
lane, so a few bit operations per pair match all lanes at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sohes.evaluation.reference.runs import intersect
from sohes.evaluation.shapes import Boxes, RunMasks, as_array, take
from sohes.ops.mask_overlap import mask_overlap
from sohes.structures.masks import PackedMasks

Masks = TypeVar("Masks", RunMasks, PackedMasks)


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of a prediction and a true mask, sorted by ``pred``, then ``gt``.

    pred, gt: int64 [P], indices. iou: float64 [P]; for a crowd the fraction of the prediction inside it, as in COCO.
    """

    pred: np.ndarray
    gt: np.ndarray
    iou: np.ndarray


def mask_pairs(pred: Masks, gt: Masks, crowd: np.ndarray, min_iou: float) -> Pairs:
    """All pairs of IoU >= ``min_iou`` > 0. pred: N masks; gt: M masks of the same type; crowd: bool [M].

    Boxes and areas first exclude the pairs that cannot reach ``min_iou``.
    """
    pred_areas, gt_areas = as_array(pred.areas), as_array(gt.areas)  # [N], [M]
    most = _bound_shared(as_array(pred.boxes), pred_areas, as_array(gt.boxes), gt_areas)  # [N, M]
    rows, columns = _nonzero(_iou_of(most, pred_areas[:, None], gt_areas, crowd) >= min_iou)  # [P] each
    shared = _intersect(pred, gt, rows, columns)  # [P]
    iou = _iou_of(shared, pred_areas[rows], gt_areas[columns], crowd[columns])  # [P]
    enough = iou >= min_iou
    return Pairs(rows[enough], columns[enough], iou[enough])


def box_pairs(pred: Boxes, gt: Boxes, crowd: np.ndarray, min_iou: float) -> Pairs:
    """As ``mask_pairs``, for boxes. The same operations as pycocotools in the same order, so results are bitwise
    equal."""
    low = np.maximum(pred.xywh[:, None, :2], gt.xywh[:, :2])  # [N, M, 2]
    high = np.minimum(pred.xywh[:, None, 2:] + pred.xywh[:, None, :2], gt.xywh[:, 2:] + gt.xywh[:, :2])  # [N, M, 2]
    sides = high - low  # [N, M, 2]
    shared = np.where((sides > 0).all(2), sides[..., 0] * sides[..., 1], 0.0)  # [N, M]
    pred_sizes = (pred.xywh[:, 2] * pred.xywh[:, 3])[:, None]  # [N, 1]
    union = np.where(crowd, pred_sizes, pred_sizes + gt.xywh[:, 2] * gt.xywh[:, 3] - shared)  # [N, M]
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)  # [N, M]
    rows, columns = _nonzero(iou >= min_iou)
    return Pairs(rows, columns, iou[rows, columns])


def _iou_of(shared: np.ndarray, pred_areas: np.ndarray, gt_areas: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU, float64, of intersections, areas and crowd flags that broadcast; 0 where nothing is shared.

    For a crowd the union is the prediction alone (COCO). One division of exact integers, so the result is bitwise
    equal to pycocotools'.
    """
    union = np.where(crowd, pred_areas, pred_areas + gt_areas - shared)
    return shared / np.maximum(union, 1)


def _bound_shared(
    pred_boxes: np.ndarray, pred_areas: np.ndarray, gt_boxes: np.ndarray, gt_areas: np.ndarray
) -> np.ndarray:
    """Upper bound of the shared pixels of each pair, int64 [N, M]: the boxes' overlap and the smaller mask's area."""
    low = np.maximum(pred_boxes[:, None, :2], gt_boxes[:, :2])  # [N, M, 2]
    high = np.minimum(pred_boxes[:, None, 2:], gt_boxes[:, 2:])  # [N, M, 2]
    sides = np.maximum(high - low, 0)  # [N, M, 2]
    return np.minimum(sides[..., 0] * sides[..., 1], np.minimum(pred_areas[:, None], gt_areas))


def _intersect(pred: Masks, gt: Masks, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """See ``runs.intersect``. Of packed masks, only those in some pair are intersected."""
    if isinstance(pred, RunMasks):
        return intersect(pred, gt, rows, columns)
    near_pred, row = np.unique(rows, return_inverse=True)
    near_gt, column = np.unique(columns, return_inverse=True)
    shared = mask_overlap(_some(pred, near_pred), _some(gt, near_gt))  # [n, m]
    return shared.cpu().numpy()[row, column]


def _nonzero(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.nonzero(table)  # strided views of one array
    return np.ascontiguousarray(rows), np.ascontiguousarray(columns)


def _some(masks: PackedMasks, index: np.ndarray) -> PackedMasks:
    return masks if len(index) == len(masks) else take(masks, index)


@dataclass(frozen=True, eq=False)
class Matches:
    """The R predictions that are matched in some lane, and their lanes.

    pred: int64 [R], rising. hit, ignored: uint8 [R, ceil(A*T/8)], lanes (bit ``l % 8`` of byte ``l // 8``) in
    which the prediction is matched to a mask that counts, or to an ignored one.
    """

    pred: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray

    def lane(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(hit, ignored), bool [R] each, of one lane."""
        byte, bit = divmod(index, 8)
        return (self.hit[:, byte] >> bit & 1).astype(bool), (self.ignored[:, byte] >> bit & 1).astype(bool)


def match_greedy(pairs: Pairs, gt_ignored: np.ndarray, crowd: np.ndarray, iou_thresholds: np.ndarray) -> Matches:
    """COCO's greedy matching (``evaluateImg``) in every lane.

    Predictions are processed by falling score. Each takes the free mask with the largest IoU at or above the
    threshold, the last one of a tie; an ignored mask only if there is no other. A crowd can be matched many times.

    pairs: of predictions (indices by falling score) and masks. gt_ignored: bool [A, M]. crowd: bool [M].
    iou_thresholds: float64 [T], rising, as in ``Protocol.capped_thresholds``.
    """
    num_thresholds, num_ranges = len(iou_thresholds), len(gt_ignored)
    num_bytes = -(-num_thresholds * num_ranges // 8)
    row = (1 << num_thresholds) - 1  # all thresholds of one area range
    shifts = [num_thresholds * a for a in range(num_ranges)]
    every = sum(row << shift for shift in shifts)
    skip = [
        sum(row << s for s, ignored in zip(shifts, column, strict=True) if ignored) for column in gt_ignored.T.tolist()
    ]
    free = [every ^ lanes for lanes in skip]  # per mask: lanes in which it counts and is free
    spare = list(skip)  # per mask: lanes in which it is ignored and free
    is_crowd = crowd.tolist()
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
            if taken and not is_crowd[gt[k]]:
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
