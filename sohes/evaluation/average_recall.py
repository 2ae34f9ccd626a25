# SPDX-License-Identifier: Apache-2.0
"""Recall and precision over all images, as COCO defines them. NaN where there is no true mask to find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sohes.evaluation.matching import LANES_OF_KERNEL
from sohes.evaluation.protocol import Protocol
from sohes.evaluation.ranking import Run, merge_runs
from sohes.evaluation.reference import precision as reference
from sohes.evaluation.reference.precision import RECALL_POINTS, PrecisionCounts
from sohes.ops._binary import find_binary

RANGES_OF_KERNEL = 8


def recall(num_gt: np.ndarray, found: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Share of the true masks that were matched, float64 [T, A].

    num_gt: int64 [A], masks that count in each area range. found: integers [A * T], those matched in each lane.
    """
    hits = found.reshape(len(num_gt), len(protocol.iou_thresholds)).T  # [T, A]
    return np.divide(hits, num_gt, out=np.full(hits.shape, np.nan), where=num_gt > 0)


def precision(runs: Sequence[Run], num_gt: np.ndarray, protocol: Protocol, max_dets: int) -> np.ndarray:
    """Interpolated precision at 101 recall points, float64 [T, 101, A], of the ``max_dets`` best predictions of
    each image. (``reference.precision`` defines it.)

    runs: of predictions; all are ranked by score, of equals those of the earlier run first. num_gt: int64 [A].
    """
    shape = (len(protocol.iou_thresholds), len(RECALL_POINTS), len(protocol.area_ranges))
    if not num_gt.any():
        return np.full(shape, np.nan)
    counts = PrecisionCounts.start(num_gt, shape[0])
    for rows in merge_runs(runs):
        count_precision(rows, max_dets, counts)
    return np.where(num_gt > 0, counts.precision(), np.nan)


def count_precision(rows: np.ndarray, max_dets: int, counts: PrecisionCounts) -> None:
    """Count some predictions by falling score. See ``reference.precision``, which defines it."""
    binary = find_binary().module
    if binary is None or len(counts.inside) > RANGES_OF_KERNEL or len(counts.hits) > LANES_OF_KERNEL:
        reference.count_precision(rows, max_dets, counts)
        return
    table = rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    counted = (counts.needed, counts.inside, counts.hits, counts.change, counts.point, counts.best)
    binary.count_precision(table, max_dets, *counted)
