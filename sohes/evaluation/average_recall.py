# SPDX-License-Identifier: Apache-2.0
"""Recall and precision over all images, as COCO defines them. NaN where there is no true mask to find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sohes.evaluation.image import ImageRecord, Protocol
from sohes.evaluation.matching import Matches

RECALL_POINTS = np.linspace(0.0, 1.0, 101)


def recall(records: Sequence[ImageRecord], protocol: Protocol, max_dets: int) -> np.ndarray:
    """Share of the true masks matched by the ``max_dets`` best predictions of each image, float64 [T, A]."""
    num_thresholds, num_ranges = len(protocol.iou_thresholds), len(protocol.area_ranges)
    hits = np.zeros((num_thresholds, num_ranges), np.int64)  # [T, A]
    num_gt = np.zeros(num_ranges, np.int64)  # [A]
    for record in records:
        num_gt += record.num_gt
        first = record.matches.pred < max_dets  # [R]
        bits = np.unpackbits(record.matches.hit[first], axis=1, bitorder="little")  # [R, lanes of whole bytes]
        lanes = bits[:, : num_thresholds * num_ranges].sum(0, dtype=np.int64)  # [A*T]
        hits += lanes.reshape(num_ranges, num_thresholds).T
    return np.divide(hits, num_gt, out=np.full(hits.shape, np.nan), where=num_gt > 0)


def precision(records: Sequence[ImageRecord], protocol: Protocol, max_dets: int) -> np.ndarray:
    """Interpolated precision at 101 recall points, float64 [T, 101, A], of the ``max_dets`` best predictions of
    each image.

    All predictions are ranked by score, of equals the earlier image first. At the k-th hit, with n predictions
    that count (not ignored) so far, recall is ``k / num_gt`` and precision ``k / (n + eps)``; the precision at a
    recall point is the best at that recall or beyond, 0 where that recall is not reached. Only hits need be
    looked at, as precision falls and recall stands still between two.
    """
    shape = (len(protocol.iou_thresholds), len(RECALL_POINTS), len(protocol.area_ranges))
    result = np.full(shape, np.nan)
    if not records:
        return result
    scores = np.concatenate([record.scores[:max_dets].astype(np.float64) for record in records])  # [all]
    order = np.argsort(-scores, kind="stable")  # [all]
    place = np.empty_like(order)  # [all], rank of each prediction
    place[order] = np.arange(len(order))
    matches = _all_matches(records, max_dets)
    matched_place = place[matches.pred]  # [R]
    num_gt = np.sum([record.num_gt for record in records], axis=0)  # [A]
    for a in np.flatnonzero(num_gt):
        inside = np.concatenate([~record.outside_range(a)[:max_dets] for record in records])[order]  # [all]
        for t in range(shape[0]):
            hit, ignored = matches.lane(a * shape[0] + t)  # [R] each
            counts = inside.copy()
            counts[matched_place[hit]] = True
            counts[matched_place[ignored]] = False
            result[t, :, a] = _interpolate(np.sort(matched_place[hit]), np.cumsum(counts), num_gt[a])
    return result


def _all_matches(records: Sequence[ImageRecord], max_dets: int) -> Matches:
    """The matches of all images as if they were one, predictions counted through."""
    first, preds, hits, ignored = 0, [], [], []
    for record in records:
        kept = record.matches.pred < max_dets
        preds.append(record.matches.pred[kept] + first)
        hits.append(record.matches.hit[kept])
        ignored.append(record.matches.ignored[kept])
        first += min(max_dets, len(record.scores))
    return Matches(np.concatenate(preds), np.concatenate(hits), np.concatenate(ignored))


def _interpolate(hit_places: np.ndarray, counted: np.ndarray, num_gt: int) -> np.ndarray:
    """Ranks of the hits, rising; per rank how many predictions up to it count; masks to find -> precision [101]."""
    hits = np.arange(1, len(hit_places) + 1, dtype=np.float64)
    # The same additions as pycocotools, so the same rounding.
    at_hit = hits / (counted[hit_places] + np.spacing(1))
    best = np.maximum.accumulate(at_hit[::-1])[::-1]
    return np.append(best, 0.0)[np.minimum(np.searchsorted(hits / num_gt, RECALL_POINTS), len(best))]
