# SPDX-License-Identifier: Apache-2.0
"""All metrics of a set of scored images: recall and precision as COCO defines them, and the hierarchy's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sohes.evaluation.hierarchy import HierarchyCounts
from sohes.evaluation.image import ImageRecord, Outcomes
from sohes.evaluation.matching import MAX_KERNEL_LANES, MAX_KERNEL_RANGES
from sohes.evaluation.protocol import Protocol
from sohes.evaluation.ranking import Run, merge_runs
from sohes.evaluation.reference import precision as reference
from sohes.evaluation.reference.precision import RECALL_POINTS, PrecisionCounts
from sohes.ops._binary import find_binary


@dataclass
class _Totals:
    """Sums over images.

    num_gt, found: by category, as in ``Outcomes``. used: int64 [S], predictions among the best ``Protocol.steps[s]`` of
    their image and category.
    """

    used: np.ndarray
    num_gt: dict[int | None, np.ndarray] = field(default_factory=dict)
    found: dict[int | None, np.ndarray] = field(default_factory=dict)
    num_images: int = 0
    num_predictions: int = 0
    hierarchy: HierarchyCounts = field(default_factory=HierarchyCounts)


class Evaluation(ABC):
    """The metrics of scored images under one protocol: COCO's of masks or boxes, equal to pycocotools, and those of the
    hierarchy. Images are sorted by id, as in pycocotools."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    @abstractmethod
    def records(self) -> Iterable[tuple[Hashable, ImageRecord]]:
        """(id, record) of every image, sorted by id (see ``id_order``)."""

    @abstractmethod
    def runs(self, category: int | None) -> Sequence[Run]:
        """The predictions of a category (None in a class-agnostic protocol), in the order of the images."""

    @property
    def categories(self) -> list[int | None]:
        """The K categories of all images, sorted; [None] if class-agnostic. Metrics are means over them."""
        return _sorted_categories(self._totals()) if self.protocol.class_aware else [None]

    def recall(self, max_dets: int) -> np.ndarray:
        """Recall per IoU threshold, category and area range, float64 [T, K, A]; NaN where there are no true masks.

        Raises ValueError unless ``max_dets`` is one of the protocol's steps.
        """
        if max_dets not in self.protocol.steps:
            raise ValueError(f"max_dets: expected one of {self.protocol.steps}, got {max_dets}")
        return self._recall(self._totals(), max_dets)

    def precision(self, max_dets: int) -> np.ndarray:
        """Precision at the recalls 0, 0.01, ..., 1, float64 [T, 101, K, A]; NaN where there are no true masks.

        max_dets: at most the protocol's largest.
        """
        return self._precision(self._totals(), max_dets)

    def summary(self) -> dict[str, float]:
        """All metrics by name: fractions in 0..1, NaN if not defined.

        ``AR@k`` for each of ``max_dets``; ``AR-<range>``, ``AP``, ``AP50``, ``AP75`` and ``AP-<range>`` at the
        largest; the metrics of ``hierarchy``; ``num_images``; ``masks_per_image`` (predicted, before any limit).
        """
        totals = self._totals()
        largest, everywhere = self.protocol.max_dets[-1], self.protocol.everywhere
        result = {f"AR@{k}": _mean(self._recall(totals, k)[..., everywhere]) for k in reversed(self.protocol.max_dets)}
        result |= self._by_range("AR", self._recall(totals, largest))
        precisions = self._precision(totals, largest)
        result["AP"] = _mean(precisions[..., everywhere])
        for percent in (50, 75):
            at = np.isclose(self.protocol.iou_thresholds, percent / 100)
            result[f"AP{percent}"] = _mean(precisions[at][..., everywhere])
        result |= self._by_range("AP", precisions)
        result |= totals.hierarchy.metrics()
        result["num_images"] = float(totals.num_images)
        result["masks_per_image"] = _per_image(totals.num_predictions, totals)
        return result

    def granularity(self) -> list[dict[str, float]]:
        """Recall of the best 1, 2, 5, 10, ... masks of each image.

        One row per limit up to the largest of ``max_dets``: ``max_dets``; ``masks_per_image``, the mean number of
        predictions within the limit; ``AR`` and ``AR50``, the recall over all IoU thresholds and at 0.5.
        """
        totals = self._totals()
        at = np.isclose(self.protocol.iou_thresholds, 0.5)
        rows = []
        for k in self.protocol.curve:
            recalls = self._recall(totals, k)[..., self.protocol.everywhere]  # [T, K]
            used = _per_image(int(totals.used[self.protocol.steps.index(k)]), totals)
            rows.append({"max_dets": k, "masks_per_image": used, "AR": _mean(recalls), "AR50": _mean(recalls[at])})
        return rows

    def per_image(self) -> list[dict[str, float | str]]:
        """One row per image, sorted by id: id, number of true and predicted masks, AR and hierarchy metrics."""
        largest, everywhere = self.protocol.max_dets[-1], self.protocol.everywhere
        rows = []
        for image_id, record in self.records():
            outcomes = list(record.outcomes.values())
            row: dict[str, float | str] = {
                "image": "/".join(map(str, image_id)) if isinstance(image_id, tuple) else str(image_id),
                "true_masks": sum(int(one.num_gt[everywhere]) for one in outcomes),
                "predicted_masks": record.num_predictions,
            }
            # The mean over categories, as for all images.
            recalls = {k: self._stack([self.recall_of(one, k) for one in outcomes]) for k in self.protocol.max_dets}
            row |= {f"AR@{k}": _mean(recalls[k][..., everywhere]) for k in reversed(self.protocol.max_dets)}
            row |= self._by_range("AR", recalls[largest])
            row |= record.hierarchy.metrics()
            rows.append(row)
        return rows

    def recall_of(self, outcomes: Outcomes, max_dets: int) -> np.ndarray:
        """Recall of one image and category, float64 [T, A]."""
        return recall(outcomes.num_gt, outcomes.found[self.protocol.steps.index(max_dets)], self.protocol)

    def _totals(self) -> _Totals:
        steps = np.array(self.protocol.steps)  # [S]
        totals = _Totals(np.zeros(len(steps), np.int64))
        for _, record in self.records():
            totals.num_images += 1
            totals.num_predictions += record.num_predictions
            totals.hierarchy += record.hierarchy
            for category, one in record.outcomes.items():
                if category not in totals.num_gt:
                    totals.num_gt[category] = np.zeros(one.num_gt.shape, np.int64)
                    totals.found[category] = np.zeros(one.found.shape, np.int64)
                totals.num_gt[category] += one.num_gt
                totals.found[category] += one.found
                totals.used += np.minimum(steps, one.num_ranked)
        return totals

    def _recall(self, totals: _Totals, max_dets: int) -> np.ndarray:
        step = self.protocol.steps.index(max_dets)
        categories = _sorted_categories(totals)
        return self._stack([recall(totals.num_gt[c], totals.found[c][step], self.protocol) for c in categories])

    def _precision(self, totals: _Totals, max_dets: int) -> np.ndarray:
        categories = _sorted_categories(totals)
        values = [precision(self.runs(c), totals.num_gt[c], self.protocol, max_dets) for c in categories]
        return self._stack(values, middle=(len(RECALL_POINTS),))

    def _stack(self, values: Sequence[np.ndarray], middle: tuple[int, ...] = ()) -> np.ndarray:
        """[T, ..., A] per category -> [T, ..., K, A], the order in which pycocotools sums. Without categories: NaN,
        K = 1."""
        nothing = np.full((len(self.protocol.iou_thresholds), *middle, len(self.protocol.area_ranges)), np.nan)
        return np.stack(values or [nothing], axis=-2)

    def _by_range(self, name: str, values: np.ndarray) -> dict[str, float]:
        """The mean of values [..., A] in each area range except "all"."""
        ranges = self.protocol.area_ranges
        return {f"{name}-{label}": _mean(values[..., a]) for a, label in enumerate(ranges) if label != "all"}


def id_order(image_id: Hashable) -> list[tuple[str, Hashable]]:
    """Sort key of image ids, which may be numbers, strings, or (id, annotator) tuples of these."""
    parts = image_id if isinstance(image_id, tuple) else (image_id,)
    return [(type(part).__name__, part) for part in parts]


def _sorted_categories(totals: _Totals) -> list[int | None]:
    return sorted(totals.num_gt, key=lambda category: -1 if category is None else category)


def _per_image(count: int, totals: _Totals) -> float:
    return count / totals.num_images if totals.num_images else float("nan")


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(np.mean(defined)) if len(defined) else float("nan")


def recall(num_gt: np.ndarray, found: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Fraction of the true masks that are matched, float64 [T, A]; NaN where there are none.

    num_gt: int64 [A], masks that count in each area range. found: integers [A * T], matched masks in each lane.
    """
    hits = found.reshape(len(num_gt), len(protocol.iou_thresholds)).T  # [T, A]
    return np.divide(hits, num_gt, out=np.full(hits.shape, np.nan), where=num_gt > 0)


def precision(runs: Sequence[Run], num_gt: np.ndarray, protocol: Protocol, max_dets: int) -> np.ndarray:
    """Interpolated precision at 101 recall points, float64 [T, 101, A]; NaN where there are no true masks.

    Of the ``max_dets`` best predictions of each image; ``reference.precision`` defines it. runs: of predictions, which
    are ranked by score; ties in the order of the runs. num_gt: int64 [A].
    """
    shape = (len(protocol.iou_thresholds), len(RECALL_POINTS), len(protocol.area_ranges))
    if not num_gt.any():
        return np.full(shape, np.nan)
    counts = PrecisionCounts.start(num_gt, shape[0])
    for rows in merge_runs(runs):
        count_precision(rows, max_dets, counts)
    return np.where(num_gt > 0, counts.precision(), np.nan)


def count_precision(rows: np.ndarray, max_dets: int, counts: PrecisionCounts) -> None:
    """Count rows by falling score; ``reference.count_precision`` defines it."""
    binary = find_binary().module
    if binary is None or len(counts.inside) > MAX_KERNEL_RANGES or len(counts.hits) > MAX_KERNEL_LANES:
        reference.count_precision(rows, max_dets, counts)
        return
    table = rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    counted = (counts.needed, counts.inside, counts.hits, counts.change, counts.point, counts.best)
    binary.count_precision(table, max_dets, *counted)
