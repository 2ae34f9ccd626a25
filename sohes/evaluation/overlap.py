# SPDX-License-Identifier: Apache-2.0
"""Which predictions overlap which true masks enough to matter, and how much: the pairs that matching works on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sohes.evaluation.runs import RunMasks, intersect
from sohes.masks import PackedMasks
from sohes.ops.mask_overlap import mask_overlap

Masks = PackedMasks | RunMasks


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of a prediction and a true mask, in no particular order.

    pred, gt: int64 [P], indices. iou: float64 [P]; for a crowd the share of the prediction inside it, as in COCO.
    """

    pred: np.ndarray
    gt: np.ndarray
    iou: np.ndarray


def find_pairs(pred: Masks, gt: Masks, crowd: np.ndarray, order: np.ndarray, min_iou: float) -> Pairs:
    """Every pair of IoU >= ``min_iou`` > 0 between ``pred[order]`` and ``gt``.

    pred: N masks; gt: M masks, both packed or both runs. crowd: bool [M]. order: int64 [D], the predictions that
    count; ``Pairs.pred`` points into it. Boxes and areas first rule out the pairs that cannot reach ``min_iou``.
    """
    pred_areas, gt_areas = as_array(pred.areas)[order], as_array(gt.areas)  # [D], [M]
    most = _bound_shared(as_array(pred.boxes)[order], pred_areas, as_array(gt.boxes), gt_areas)  # [D, M]
    rows, columns = np.nonzero(iou_of(most, pred_areas[:, None], gt_areas, crowd) >= min_iou)  # [P] each
    if isinstance(pred, RunMasks):
        shared = intersect(pred, gt, order[rows], columns)  # [P]
    else:
        shared = _intersect_packed(pred, gt, order[rows], columns)  # [P]
    iou = iou_of(shared, pred_areas[rows], gt_areas[columns], crowd[columns])  # [P]
    enough = iou >= min_iou
    return Pairs(rows[enough], columns[enough], iou[enough])


def iou_of(shared: np.ndarray, pred_areas: np.ndarray, gt_areas: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Intersections, areas and crowd flags, broadcast together -> IoU, float64; 0 where nothing is shared.

    For a crowd the union is the prediction alone (COCO). One division of exact integers, so that the result is
    pycocotools' to the last bit.
    """
    union = np.where(crowd, pred_areas, pred_areas + gt_areas - shared)
    return shared / np.maximum(union, 1)


def _bound_shared(
    pred_boxes: np.ndarray, pred_areas: np.ndarray, gt_boxes: np.ndarray, gt_areas: np.ndarray
) -> np.ndarray:
    """The most pixels a pair can share, int64 [D, M]: those of the boxes' overlap, and those of the smaller mask."""
    low = np.maximum(pred_boxes[:, None, :2], gt_boxes[:, :2])  # [D, M, 2]
    high = np.minimum(pred_boxes[:, None, 2:], gt_boxes[:, 2:])  # [D, M, 2]
    sides = np.maximum(high - low, 0)  # [D, M, 2]
    return np.minimum(sides[..., 0] * sides[..., 1], np.minimum(pred_areas[:, None], gt_areas))


def _intersect_packed(pred: PackedMasks, gt: PackedMasks, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """As ``runs.intersect``; only masks that stand in some pair are intersected."""
    near_pred, row = np.unique(rows, return_inverse=True)
    near_gt, column = np.unique(columns, return_inverse=True)
    shared = mask_overlap(_take(pred, near_pred), _take(gt, near_gt))  # [n, m]
    return shared.cpu().numpy()[row, column]


def _take(masks: PackedMasks, index: np.ndarray) -> PackedMasks:
    return masks if len(index) == len(masks) else masks[torch.from_numpy(index).to(masks.device)]


def as_array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values
