# SPDX-License-Identifier: Apache-2.0
"""Interpolated precision, counted over predictions that come by falling score, in memory that does not grow.

At the k-th hit of a lane, with n predictions that count (not ignored) so far, recall is ``k / num_gt`` and precision
``k / (n + eps)``. The precision at a recall point is the best at that recall or beyond, 0 where that recall is not
reached. Only hits need be looked at, as precision falls and recall stands still between two; and as the number of hits
that each recall point takes is known before, only the best precision between one point and the next is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RECALL_POINTS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, eq=False)
class PrecisionCounts:
    """For A area ranges and L lanes (lane ``a * T + t``), what has been counted so far.

    needed: int64 [A, 101], the hits that reach a recall point. inside: int64 [A], predictions of an area within the
    range. hits: int64 [L]. change: int64 [L], what counts beyond those inside: hits from outside, less those inside
    that are matched to an ignored mask. point: int64 [L], the last recall point reached. best: float64 [L, 101], the
    best precision from each recall point up to before the next.
    """

    needed: np.ndarray
    inside: np.ndarray
    hits: np.ndarray
    change: np.ndarray
    point: np.ndarray
    best: np.ndarray

    @classmethod
    def start(cls, num_gt: np.ndarray, num_thresholds: int) -> PrecisionCounts:
        """num_gt: int64 [A], masks to find."""
        num_ranges, num_lanes = len(num_gt), len(num_gt) * num_thresholds
        zeros = [np.zeros(size, np.int64) for size in (num_ranges, num_lanes, num_lanes, num_lanes)]
        return cls(hits_needed(num_gt), *zeros, np.zeros((num_lanes, len(RECALL_POINTS))))

    def precision(self) -> np.ndarray:
        """float64 [T, 101, A]."""
        best = np.maximum.accumulate(self.best[:, ::-1], axis=1)[:, ::-1]  # [L, 101]
        return best.reshape(len(self.inside), -1, best.shape[1]).transpose(1, 2, 0)


def hits_needed(num_gt: np.ndarray) -> np.ndarray:
    """The least k >= 1 with ``k / num_gt >= r`` in floating point, for each recall point r: int64 [A, 101]."""
    total = np.maximum(num_gt, 1)[:, None]  # [A, 1]
    guess = np.ceil(RECALL_POINTS * total).astype(np.int64)  # [A, 101]; rounding may leave it one off
    for k in (guess + 1, guess, guess - 1):
        guess = np.where(k / total >= RECALL_POINTS, k, guess)
    return np.maximum(guess, 1)


def count_precision(rows: np.ndarray, max_dets: int, counts: PrecisionCounts) -> None:
    """Count some rows (see ``ranking.row_type``) by falling score; of each image those of rank < ``max_dets``."""
    rows = rows[rows["rank"] < max_dets]
    num_ranges, num_thresholds = len(counts.inside), len(counts.hits) // len(counts.inside)
    lanes = slice(0, len(counts.hits))
    inside = np.unpackbits(rows["outside"], axis=1, bitorder="little")[:, :num_ranges] == 0  # [n, A]
    total = counts.inside + np.cumsum(inside, 0)  # [n, A]
    hit = np.unpackbits(rows["hit"], axis=1, bitorder="little")[:, lanes].astype(bool)  # [n, L]
    ignored = np.unpackbits(rows["ignored"], axis=1, bitorder="little")[:, lanes].astype(bool)  # [n, L]
    for lane in range(len(counts.hits)):
        a = lane // num_thresholds
        # A hit counts whatever its area; what is matched to an ignored mask does not.
        change = (hit[:, lane] & ~inside[:, a]).astype(np.int64) - (ignored[:, lane] & inside[:, a])  # [n]
        counted = (total[:, a] + counts.change[lane] + np.cumsum(change))[hit[:, lane]]  # [hits]
        hits = counts.hits[lane] + np.arange(1, len(counted) + 1)  # [hits]
        point = np.searchsorted(counts.needed[a], hits, side="right") - 1  # [hits]
        # The same additions as pycocotools, so the same rounding.
        np.maximum.at(counts.best[lane], point, hits.astype(np.float64) / (counted + np.spacing(1)))
        counts.hits[lane] += len(counted)
        counts.change[lane] += change.sum()
        counts.point[lane] = point[-1] if len(point) else counts.point[lane]
    counts.inside[:] += inside.sum(0)
