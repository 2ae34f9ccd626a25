# SPDX-License-Identifier: Apache-2.0
"""Interpolated precision, counted over predictions by falling score in constant memory.

At the k-th hit of a lane, with n predictions that count (not ignored) so far, recall is ``k / num_gt`` and precision
``k / (n + eps)``. The precision at a recall point is the maximum at that recall or higher, 0 if that recall is not
reached. Only hits matter: between two hits, recall is constant and precision falls. The number of hits at each recall
point is known in advance, so only the maximum precision between two points is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RECALL_POINTS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, eq=False)
class PrecisionCounts:
    """Running counts for A area ranges and L lanes (lane ``a * T + t``).

    needed: int64 [A, 101], hits needed for each recall point. inside: int64 [A], predictions with an area inside the
    range. hits: int64 [L]. change: int64 [L], correction to ``inside``: plus hits with an area outside, minus
    predictions inside that are matched to an ignored mask. point: int64 [L], the last recall point reached. best:
    float64 [L, 101], maximum precision from each recall point up to the next (exclusive).
    """

    needed: np.ndarray
    inside: np.ndarray
    hits: np.ndarray
    change: np.ndarray
    point: np.ndarray
    best: np.ndarray

    @classmethod
    def start(cls, num_gt: np.ndarray, num_thresholds: int) -> PrecisionCounts:
        """Counts of no predictions. num_gt: int64 [A], masks to find."""
        num_lanes = len(num_gt) * num_thresholds
        return cls(
            needed=hits_needed(num_gt),
            inside=np.zeros(len(num_gt), np.int64),
            hits=np.zeros(num_lanes, np.int64),
            change=np.zeros(num_lanes, np.int64),
            point=np.zeros(num_lanes, np.int64),
            best=np.zeros((num_lanes, len(RECALL_POINTS))),
        )

    def precision(self) -> np.ndarray:
        """Interpolated precision, float64 [T, 101, A]."""
        best = np.maximum.accumulate(self.best[:, ::-1], axis=1)[:, ::-1]  # [L, 101]
        return best.reshape(len(self.inside), -1, best.shape[1]).transpose(1, 2, 0)


def hits_needed(num_gt: np.ndarray) -> np.ndarray:
    """The smallest k >= 1 with ``k / num_gt >= r`` in floating point, for each recall point r: int64 [A, 101]."""
    total = np.maximum(num_gt, 1)[:, None]  # [A, 1]
    guess = np.ceil(RECALL_POINTS * total).astype(np.int64)  # [A, 101]; may be off by one, by rounding
    for k in (guess + 1, guess, guess - 1):
        guess = np.where(k / total >= RECALL_POINTS, k, guess)
    return np.maximum(guess, 1)


def count_precision(rows: np.ndarray, max_dets: int, counts: PrecisionCounts) -> None:
    """Count the rows (see ``ranking.row_type``) of rank < ``max_dets``. Rows come by falling score."""
    rows = rows[rows["rank"] < max_dets]
    num_ranges, num_thresholds = len(counts.inside), len(counts.hits) // len(counts.inside)
    lanes = slice(0, len(counts.hits))
    inside = np.unpackbits(rows["outside"], axis=1, bitorder="little")[:, :num_ranges] == 0  # [n, A]
    total = counts.inside + np.cumsum(inside, 0)  # [n, A]
    hit = np.unpackbits(rows["hit"], axis=1, bitorder="little")[:, lanes].astype(bool)  # [n, L]
    ignored = np.unpackbits(rows["ignored"], axis=1, bitorder="little")[:, lanes].astype(bool)  # [n, L]
    for lane in range(len(counts.hits)):
        a = lane // num_thresholds
        # A hit always counts; a prediction matched to an ignored mask never does.
        change = (hit[:, lane] & ~inside[:, a]).astype(np.int64) - (ignored[:, lane] & inside[:, a])  # [n]
        counted = (total[:, a] + counts.change[lane] + np.cumsum(change))[hit[:, lane]]  # [hits]
        hits = counts.hits[lane] + np.arange(1, len(counted) + 1)  # [hits]
        point = np.searchsorted(counts.needed[a], hits, side="right") - 1  # [hits]
        # The same sum as in pycocotools, for the same rounding.
        np.maximum.at(counts.best[lane], point, hits.astype(np.float64) / (counted + np.spacing(1)))
        counts.hits[lane] += len(counted)
        counts.change[lane] += change.sum()
        counts.point[lane] = point[-1] if len(point) else counts.point[lane]
    counts.inside[:] += inside.sum(0)
