# SPDX-License-Identifier: Apache-2.0
"""Bootstrap confidence intervals over photos, of recalls and of differences of two runs. [ours]

Every metric here is a ratio of sums over images, ``m = sum_i num_i / sum_i den_i``:

- average recall: ``num_i`` is the number of found true masks of image i, averaged over IoU thresholds, and ``den_i``
  the number of true masks;
- parent recall: true (parent, child) pairs found, and all of them;
- ancestor F1: twice the shared ancestor pairs, and true plus predicted ones;
- level accuracy and edit similarity: matched masks with the correct level or parent, and all matched masks (for these
  four see ``hierarchy``).

A resample draws P of the P photos with replacement: ``w_p`` is how often photo p was drawn, and
``m* = sum_p w_p num_p / sum_p w_p den_p``. The interval is from the ``(1 - level) / 2`` to the ``(1 + level) / 2``
quantile of m* over all resamples (percentile bootstrap, Efron 1979). All annotators of a photo are drawn together, as
they share its predictions. All runs use the same weights: a difference of two runs is resampled as ``m_b* - m_a*``,
which removes the difficulty of a photo that both runs share.

There is no interval if fewer than five photos have true masks, as these are too few to estimate the variance.

Average precision ranks the predictions of all images together, so it is not a ratio of sums and has no interval.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from sohes.evaluation.metrics import Evaluation
from sohes.utils.nearest import nearest

MIN_PHOTOS = 5


@dataclass(frozen=True, eq=False)
class PhotoSums:
    """Numerators and denominators of the metrics of one run: ``sums[name]`` is float64 [P, 2] for P photos.

    photos: their ids, as in the ground truth, in a fixed order.
    """

    photos: list[Hashable]
    sums: dict[str, np.ndarray]

    def of(self, name: str) -> np.ndarray:
        """``sums[name]``. Raises ValueError for an unknown metric."""
        if name not in self.sums:
            raise ValueError(f"metric {name}: {nearest(name, self.sums)}expected one of {', '.join(self.sums)}")
        return self.sums[name]

    def value(self, name: str) -> float:
        """The metric over all photos, NaN if the denominator is 0."""
        num, den = self.of(name).sum(0)
        return float(num / den) if den else float("nan")

    def of_photo(self, name: str) -> np.ndarray:
        """The metric of each photo, float64 [P], NaN if its denominator is 0."""
        num, den = self.of(name).T
        return np.divide(num, den, out=np.full(len(num), np.nan), where=den > 0)


@dataclass(frozen=True)
class Interval:
    """A metric, or a difference of two, with its confidence interval; NaN if not defined."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is significant."""
        return self.low > 0 or self.high < 0


def collect_sums(evaluation: Evaluation) -> PhotoSums:
    """The sums of ``AR@k``, ``AR-<range>`` and the hierarchy's metrics per photo, over its annotators.

    Raises ValueError for a class-aware evaluation, whose recall is a mean over categories, not a ratio of sums.
    """
    if evaluation.protocol.class_aware:
        raise ValueError("expected a class-agnostic evaluation")
    protocol, largest = evaluation.protocol, evaluation.protocol.max_dets[-1]
    place: dict[Hashable, int] = {}
    rows: dict[str, list[tuple[int, float, float]]] = {}
    for key, record in evaluation.records():
        photo = place.setdefault(key[0] if isinstance(key, tuple) else key, len(place))
        outcomes = record.outcomes[None]
        for k in protocol.max_dets:
            found = np.nan_to_num(evaluation.recall_of(outcomes, k).mean(0)) * outcomes.num_gt  # [A]
            for a, label in enumerate(protocol.area_ranges):
                name = f"AR@{k}" if label == "all" else f"AR-{label}"
                if label == "all" or k == largest:
                    rows.setdefault(name, []).append((photo, found[a], outcomes.num_gt[a]))
        counts = record.hierarchy
        hierarchy = {
            "parent_recall": (counts.parent_pairs_found, counts.parent_pairs),
            "ancestor_f1": (2 * counts.shared_ancestors, counts.true_ancestors + counts.pred_ancestors),
            "level_accuracy": (counts.levels_right, counts.matched),
            "edit_similarity": (counts.parents_right, counts.matched),
        }
        for name, pair in hierarchy.items():
            rows.setdefault(name, []).append((photo, *pair))
    sums = {}
    for name, values in rows.items():
        table = np.array(values, np.float64)  # [images, 3]
        sums[name] = np.zeros((len(place), 2))
        np.add.at(sums[name], table[:, 0].astype(np.int64), table[:, 1:])
    return PhotoSums(list(place), sums)


class Bootstrap:
    """B resamples of P photos, shared by all runs.

    num_resamples: B >= 1. level: confidence level in (0, 1). Equal seeds give equal intervals.
    """

    def __init__(self, num_photos: int, num_resamples: int, level: float, seed: int) -> None:
        chances = np.full(num_photos, 1 / num_photos)
        rng = np.random.default_rng(seed)
        self.weights = rng.multinomial(num_photos, chances, size=num_resamples).astype(np.float64)  # [B, P]
        self.tails = ((1 - level) / 2, (1 + level) / 2)

    def interval(self, run: PhotoSums, name: str) -> Interval:
        """The interval of a metric of a run."""
        return self._interval(run.value(name), self._resample(run, name), run.of(name)[:, 1])

    def difference(self, run: PhotoSums, base: PhotoSums, name: str) -> Interval:
        """The interval of run minus base. Raises ValueError if they are of different photos."""
        if run.photos != base.photos:
            raise ValueError("expected two runs over the same photos, in the same order")
        resampled = self._resample(run, name) - self._resample(base, name)
        both = np.minimum(run.of(name)[:, 1], base.of(name)[:, 1])
        return self._interval(run.value(name) - base.value(name), resampled, both)

    def _resample(self, run: PhotoSums, name: str) -> np.ndarray:
        """The metric of each resample, float64 [B], NaN if the denominator is 0."""
        num, den = (self.weights @ run.of(name)).T  # [B] each
        return np.divide(num, den, out=np.full(len(num), np.nan), where=den > 0)

    def _interval(self, value: float, resampled: np.ndarray, den: np.ndarray) -> Interval:
        defined = resampled[~np.isnan(resampled)]
        if (den > 0).sum() < MIN_PHOTOS or len(defined) == 0:
            return Interval(value, float("nan"), float("nan"))
        low, high = np.quantile(defined, self.tails)
        return Interval(value, float(low), float(high))


def defined_metrics(runs: Sequence[PhotoSums]) -> set[str]:
    """Names of the metrics that are defined for some run."""
    return {name for run in runs for name in run.sums if not np.isnan(run.value(name))}
