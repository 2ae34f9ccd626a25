# SPDX-License-Identifier: Apache-2.0
"""Recall and precision over all images, as COCO defines them. NaN where there is no true mask to find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sohes.evaluation.image import Outcomes
from sohes.evaluation.matching import Matches
from sohes.evaluation.protocol import Protocol

RECALL_POINTS = np.linspace(0.0, 1.0, 101)


def recall(outcomes: Sequence[Outcomes], protocol: Protocol, max_dets: int) -> np.ndarray:
    """Share of the true masks matched by the ``max_dets`` best predictions of each image, float64 [T, A]."""
    num_thresholds, num_ranges = len(protocol.iou_thresholds), len(protocol.area_ranges)
    hits = np.zeros((num_thresholds, num_ranges), np.int64)  # [T, A]
    num_gt = np.zeros(num_ranges, np.int64)  # [A]
    if outcomes:
        num_gt = np.sum([one.num_gt for one in outcomes], axis=0)  # [A]
        hit = np.concatenate([one.matches.hit[one.matches.pred < max_dets] for one in outcomes])  # [R, bytes]
        lanes = np.unpackbits(hit, axis=1, bitorder="little").sum(0, dtype=np.int64)  # [lanes of whole bytes]
        hits = lanes[: num_ranges * num_thresholds].reshape(num_ranges, num_thresholds).T
    return np.divide(hits, num_gt, out=np.full(hits.shape, np.nan), where=num_gt > 0)


def precision(outcomes: Sequence[Outcomes], protocol: Protocol, max_dets: int) -> np.ndarray:
    """Interpolated precision at 101 recall points, float64 [T, 101, A], of the ``max_dets`` best predictions of
    each image.

    All predictions are ranked by score, of equals the earlier image first. At the k-th hit, with n predictions
    that count (not ignored) so far, recall is ``k / num_gt`` and precision ``k / (n + eps)``; the precision at a
    recall point is the best at that recall or beyond, 0 where that recall is not reached. Only hits need be
    looked at, as precision falls and recall stands still between two.
    """
    shape = (len(protocol.iou_thresholds), len(RECALL_POINTS), len(protocol.area_ranges))
    result = np.full(shape, np.nan)
    num_gt = np.sum([one.num_gt for one in outcomes], axis=0) if outcomes else np.zeros(shape[2], np.int64)  # [A]
    if not num_gt.any():
        return result
    scores = np.concatenate([one.scores[:max_dets].astype(np.float64) for one in outcomes])  # [all]
    order = np.argsort(-scores, kind="stable")  # [all]
    place = np.empty_like(order)  # [all], rank of each prediction
    place[order] = np.arange(len(order))
    matches = _all_matches(outcomes, max_dets)
    by_place = np.argsort(place[matches.pred])  # [R]
    matched_place = place[matches.pred][by_place]  # [R], rising
    matches = Matches(matches.pred[by_place], matches.hit[by_place], matches.ignored[by_place])
    for a in np.flatnonzero(num_gt):
        inside = np.concatenate([_is_inside(one, a, max_dets) for one in outcomes])[order]  # [all]
        # What counts up to each matched prediction if none were matched: those of an area within the range.
        unmatched = np.cumsum(inside)[matched_place]  # [R]
        inside = inside[matched_place]  # [R]
        for t in range(shape[0]):
            hit, ignored = matches.lane(a * shape[0] + t)  # [R] each
            # A hit counts whatever its area; what is matched to an ignored mask does not.
            change = np.cumsum((hit & ~inside).astype(np.int8) - (ignored & inside), dtype=np.int64)  # [R]
            result[t, :, a] = _interpolate((unmatched + change)[hit], num_gt[a])
    return result


def _is_inside(outcomes: Outcomes, index: int, max_dets: int) -> np.ndarray:
    """bool [min(D, max_dets)]: the prediction's own area is within this area range."""
    count = min(len(outcomes.scores), max_dets)
    return np.unpackbits(outcomes.outside[index], count=count) == 0


def _all_matches(outcomes: Sequence[Outcomes], max_dets: int) -> Matches:
    """The matches of all images as if they were one, predictions counted through."""
    first, preds, hits, ignored = 0, [], [], []
    for one in outcomes:
        kept = one.matches.pred < max_dets
        preds.append(one.matches.pred[kept] + first)
        hits.append(one.matches.hit[kept])
        ignored.append(one.matches.ignored[kept])
        first += min(max_dets, len(one.scores))
    return Matches(np.concatenate(preds), np.concatenate(hits), np.concatenate(ignored))


def _interpolate(counted: np.ndarray, num_gt: int) -> np.ndarray:
    """counted: int64 [hits], the predictions that count up to each hit, itself included; masks to find -> precision
    [101]."""
    hits = np.arange(1, len(counted) + 1, dtype=np.float64)
    # The same additions as pycocotools, so the same rounding.
    at_hit = hits / (counted + np.spacing(1))
    best = np.maximum.accumulate(at_hit[::-1])[::-1]
    return np.append(best, 0.0)[np.minimum(np.searchsorted(hits / num_gt, RECALL_POINTS), len(best))]
