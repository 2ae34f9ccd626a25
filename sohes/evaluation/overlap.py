# SPDX-License-Identifier: Apache-2.0
"""Which predictions overlap which true masks enough to matter, and how much: the pairs that matching works on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sohes.masks import PackedMasks
from sohes.ops.mask_overlap import mask_overlap


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of a prediction and a true mask, in no particular order.

    pred, gt: int64 [P], indices. iou: float64 [P]; for a crowd the share of the prediction inside it, as COCO
    counts.
    """

    pred: np.ndarray
    gt: np.ndarray
    iou: np.ndarray


def find_pairs(pred: PackedMasks, gt: PackedMasks, crowd: np.ndarray, min_iou: float) -> Pairs:
    """Every pair of ``pred`` (N masks) and ``gt`` (M masks, ``crowd`` bool [M]) whose IoU is at least ``min_iou``
    > 0.

    Boxes and areas first rule out the pairs that cannot reach ``min_iou``; only masks left in some pair are
    intersected.
    """
    may_reach = _bound_iou(pred, gt, crowd) >= min_iou  # [N, M]
    rows, columns = np.flatnonzero(may_reach.any(1)), np.flatnonzero(may_reach.any(0))
    if len(rows) == 0:
        return Pairs(rows, columns[:0], np.zeros(0))
    near_pred, near_gt = _take(pred, rows), _take(gt, columns)
    shared = mask_overlap(near_pred, near_gt).cpu().numpy()  # [n, m]
    iou = iou_of(shared, _areas(near_pred)[:, None], _areas(near_gt)[None], crowd[columns][None])  # [n, m]
    row, column = np.nonzero(iou >= min_iou)
    return Pairs(rows[row], columns[column], iou[row, column])


def iou_of(shared: np.ndarray, pred_area: np.ndarray, gt_area: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Intersections, areas and crowd flags, broadcast together -> IoU, float64; 0 where nothing is shared.

    For a crowd the union is the prediction alone (COCO). One division of exact integers, so that the result is
    pycocotools' to the last bit.
    """
    union = np.where(crowd, pred_area, pred_area + gt_area - shared)
    return shared / np.maximum(union, 1)


def _bound_iou(pred: PackedMasks, gt: PackedMasks, crowd: np.ndarray) -> np.ndarray:
    """The largest IoU that boxes and areas allow, float64 [N, M]: they share no more than the boxes do, or the
    smaller area.
    """
    pred_boxes, gt_boxes = pred.boxes.cpu().numpy()[:, None], gt.boxes.cpu().numpy()[None]  # [N, 1, 4], [1, M, 4]
    low = np.maximum(pred_boxes[..., :2], gt_boxes[..., :2])  # [N, M, 2]
    high = np.minimum(pred_boxes[..., 2:], gt_boxes[..., 2:])  # [N, M, 2]
    shared = np.maximum(high - low, 0).prod(-1)  # [N, M]
    pred_area, gt_area = _areas(pred)[:, None], _areas(gt)[None]  # [N, 1], [1, M]
    shared = np.minimum(shared, np.minimum(pred_area, gt_area))  # [N, M]
    return iou_of(shared, pred_area, gt_area, crowd[None])


def _areas(masks: PackedMasks) -> np.ndarray:
    return masks.areas.cpu().numpy()


def _take(masks: PackedMasks, index: np.ndarray) -> PackedMasks:
    return masks if len(index) == len(masks) else masks[torch.from_numpy(index).to(masks.words.device)]
