# SPDX-License-Identifier: Apache-2.0
"""One image scored in one call of the compiled module: the common case, in which threads need not meet in between."""

from __future__ import annotations

import numpy as np

from sohes.evaluation.average_recall import RANGES_OF_KERNEL
from sohes.evaluation.hierarchy import HierarchyCounts
from sohes.evaluation.image import ImageRecord, Outcomes, ScoredImage
from sohes.evaluation.matching import LANES_OF_KERNEL
from sohes.evaluation.protocol import Protocol
from sohes.ops._binary import find_binary
from sohes.structures.masks import Size


def score_text(protocol: Protocol, gt: tuple[bytes, int], pred: tuple[bytes, int], size: Size) -> ScoredImage | None:
    """What ``score_image`` makes of the annotations in JSON (text, number) of an image of ``size``.

    None where that is to be used: masks are not compared or classes looked at, there is no compiled module, or
    something is not of the plainest form: other masks than RLE, parents, or an error.
    """
    binary = find_binary().module
    num_ranges, num_lanes = len(protocol.area_ranges), protocol.num_lanes
    if binary is None or protocol.class_aware or protocol.iou_type != "mask":
        return None
    if num_ranges > RANGES_OF_KERNEL or num_lanes > LANES_OF_KERNEL:
        return None
    (gt_text, num_gt), (pred_text, num_pred) = gt, pred
    needed = binary.coco_image_scratch(len(gt_text), len(pred_text), num_gt, num_pred, num_ranges)
    scratch = np.empty(needed // 8, np.int64).view(np.uint8)
    counts, found = np.empty(num_ranges, np.int64), np.empty((len(protocol.steps), num_lanes), np.int32)
    rows = np.empty(min(num_pred, protocol.max_dets[-1]), protocol.row_type)
    table = rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    given = (gt_text, pred_text, num_gt, num_pred, *size, protocol.min_iou)
    limits = (protocol.area_limits, protocol.capped_thresholds, np.array(protocol.steps))
    if not binary.coco_image(*given, *limits, scratch, counts, found, table):
        return None
    return ScoredImage(
        ImageRecord(num_pred, HierarchyCounts(), {None: Outcomes(counts, found, len(rows))}), {None: rows}
    )
