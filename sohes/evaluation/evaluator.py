# SPDX-License-Identifier: Apache-2.0
"""The metrics of a set of images, added one at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch

from sohes.evaluation.average_recall import precision, recall
from sohes.evaluation.hierarchy import HierarchyCounts
from sohes.evaluation.image import Found, ImageRecord, Outcomes, Truth, score_image
from sohes.evaluation.protocol import IouType, Protocol
from sohes.evaluation.shapes import as_array, boxes_of_masks
from sohes.forest import Forest
from sohes.masks import PackedMasks

PerMask = Sequence[float] | np.ndarray | torch.Tensor
Metric = Callable[[Sequence[Outcomes], Protocol, int], np.ndarray]
CURVE_STEPS = (1, 2, 5)  # a granularity curve has points at these, ten times them, ...


class Evaluator:
    """Mask or box metrics, equal to pycocotools' where both are defined, and the hierarchy's beside them.

    Keeps a few kilobytes per image; the masks themselves are let go. The order in which images are added does not
    matter: they are ranked by id, as pycocotools ranks them. See ``Protocol`` for the options.
    """

    def __init__(
        self,
        max_dets: Sequence[int] = (1, 10, 100, 1000),
        iou_thresholds: Sequence[float] | None = None,
        area_ranges: dict[str, tuple[float, float]] | None = None,
        *,
        iou_type: IouType = "mask",
        class_aware: bool = False,
    ) -> None:
        chosen = {"max_dets": tuple(sorted(max_dets)), "iou_type": iou_type, "class_aware": class_aware}
        if iou_thresholds is not None:
            chosen["iou_thresholds"] = tuple(iou_thresholds)
        if area_ranges is not None:
            chosen["area_ranges"] = dict(area_ranges)
        self.protocol = Protocol(**chosen)
        self._records: dict[Hashable, ImageRecord] = {}

    def add(
        self,
        image_id: Hashable,
        gt: PackedMasks,
        pred: Forest,
        *,
        crowd: PerMask | None = None,
        gt_areas: PerMask | None = None,
        gt_parents: PerMask | None = None,
        gt_categories: PerMask | None = None,
        pred_categories: PerMask | None = None,
    ) -> None:
        """Score the predictions ``pred`` of one image against its M true masks ``gt``.

        crowd: [M], masks that are neither missed nor wrong to find. gt_areas: [M] in pixels, for the area ranges;
        the masks' own by default. gt_parents: [M], index of each true mask's parent or -1; None leaves the image
        out of the hierarchy. gt_categories: [M] and pred_categories: [N], integers, for a class-aware protocol; 0
        where not given. Where boxes are compared, they are those around the masks.

        Raises ValueError for a repeated id, and where sizes, lengths, scores or parents are wrong.
        """
        shapes = [gt, pred.masks]
        try:
            if gt.size != pred.masks.size:
                raise ValueError(f"expected predictions of size {gt.size}, got {pred.masks.size}")
            if self.protocol.iou_type == "box":
                shapes = [boxes_of_masks(masks) for masks in shapes]
            truth = Truth(
                shapes=shapes[0],
                areas=_per_mask("gt_areas", gt.areas if gt_areas is None else gt_areas, len(gt), np.float64),
                crowd=_per_mask("crowd", crowd, len(gt), np.bool_),
                categories=_per_mask("gt_categories", gt_categories, len(gt), np.int64),
                parents=None if gt_parents is None else _per_mask("gt_parents", gt_parents, len(gt), np.int64),
            )
            found = Found(
                shapes=shapes[1],
                scores=pred.scores.double().cpu().numpy(),
                parents=pred.parents.cpu().numpy(),
                categories=_per_mask("pred_categories", pred_categories, len(pred), np.int64),
            )
            record = score_image(self.protocol, truth, found)
        except ValueError as error:
            raise ValueError(f"image {image_id}: {error}") from error
        self.add_record(image_id, record)

    def add_record(self, image_id: Hashable, record: ImageRecord) -> None:
        """Add an image that ``score_image`` scored under this evaluator's protocol."""
        if image_id in self._records:
            raise ValueError(f"image {image_id} was added before")
        self._records[image_id] = record

    def merge(self, other: Evaluator) -> None:
        """Add all images of another evaluator, as ranks and threads do."""
        if other.protocol != self.protocol:
            raise ValueError(f"expected an evaluator with {self.protocol}, got {other.protocol}")
        for image_id, record in other._records.items():
            self.add_record(image_id, record)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def categories(self) -> list[int | None]:
        """The K categories that metrics are means over, rising: those of some image; [None] if class-agnostic."""
        if not self.protocol.class_aware:
            return [None]
        return sorted({category for record in self._records.values() for category in record.outcomes})

    def records(self) -> list[tuple[Hashable, ImageRecord]]:
        """(id, record) of every image, by id."""
        return sorted(self._records.items(), key=lambda item: _sort_key(item[0]))

    def recall(self, max_dets: int) -> np.ndarray:
        """float64 [T, K, A]: per IoU threshold, category and area range, NaN where there is nothing to find."""
        return self._per_category(recall, max_dets, axis=1)

    def precision(self, max_dets: int) -> np.ndarray:
        """float64 [T, 101, K, A]: at the recalls 0, 0.01, ..., 1, NaN where there is nothing to find."""
        return self._per_category(precision, max_dets, axis=2)

    def summary(self) -> dict[str, float]:
        """All metrics by name: fractions in 0..1, NaN where not defined.

        ``AR@k`` for each of ``max_dets``; ``AR-<range>``, ``AP``, ``AP50``, ``AP75`` and ``AP-<range>`` at the
        largest; the metrics of ``hierarchy``; ``num_images``; ``masks_per_image`` (predicted, before any cut).
        """
        largest, everywhere = self.protocol.max_dets[-1], self.protocol.everywhere
        result = {f"AR@{k}": _mean(self.recall(k)[..., everywhere]) for k in reversed(self.protocol.max_dets)}
        result |= self._by_range("AR", self.recall(largest))
        precisions = self.precision(largest)
        result["AP"] = _mean(precisions[..., everywhere])
        for percent in (50, 75):
            at = np.isclose(self.protocol.iou_thresholds, percent / 100)
            result[f"AP{percent}"] = _mean(precisions[at][..., everywhere])
        result |= self._by_range("AP", precisions)
        hierarchy = sum((record.hierarchy for record in self._records.values()), HierarchyCounts())
        result |= hierarchy.metrics()
        result["num_images"] = float(len(self))
        predicted = np.array([record.num_predictions for record in self._records.values()], np.float64)
        result["masks_per_image"] = _mean(predicted)
        return result

    def granularity(self) -> list[dict[str, float]]:
        """Recall against the number of masks: what the best 1, 2, 5, 10, ... masks of each image find.

        One row for each such number up to the largest of ``max_dets``: ``max_dets``; ``masks_per_image``, the mean
        number of predictions within that limit; ``AR`` and ``AR50``, the recall over all IoU thresholds and at 0.5.
        """
        everywhere, largest = self.protocol.everywhere, self.protocol.max_dets[-1]
        steps = {step * 10**power for power in range(len(str(largest))) for step in CURVE_STEPS}
        at = np.isclose(self.protocol.iou_thresholds, 0.5)
        outcomes = [list(record.outcomes.values()) for record in self._records.values()]
        rows = []
        for k in sorted({step for step in steps if step < largest} | {largest}):
            recalls = self.recall(k)[..., everywhere]  # [T, K]
            used = np.array([sum(min(k, len(one.scores)) for one in image) for image in outcomes], np.float64)
            rows.append(
                {"max_dets": k, "masks_per_image": _mean(used), "AR": _mean(recalls), "AR50": _mean(recalls[at])}
            )
        return rows

    def per_image(self) -> list[dict[str, float | str]]:
        """One row per image, by id: its id, its true and predicted masks, its own AR and hierarchy metrics."""
        largest, everywhere = self.protocol.max_dets[-1], self.protocol.everywhere
        rows = []
        for image_id, record in self.records():
            outcomes = list(record.outcomes.values())
            row: dict[str, float | str] = {
                "image": "/".join(map(str, image_id)) if isinstance(image_id, tuple) else str(image_id),
                "true_masks": sum(int(one.num_gt[everywhere]) for one in outcomes),
                "predicted_masks": record.num_predictions,
            }
            # Of several categories the mean, as for all images.
            recalls = {
                k: np.stack([recall([one], self.protocol, k) for one in outcomes] or [self._nothing()], axis=1)
                for k in self.protocol.max_dets
            }
            row |= {f"AR@{k}": _mean(recalls[k][..., everywhere]) for k in reversed(self.protocol.max_dets)}
            row |= self._by_range("AR", recalls[largest])
            rows.append(row | record.hierarchy.metrics())
        return rows

    def _by_range(self, name: str, values: np.ndarray) -> dict[str, float]:
        """The mean of values [..., A] in each area range but "all"."""
        ranges = self.protocol.area_ranges
        return {f"{name}-{label}": _mean(values[..., a]) for a, label in enumerate(ranges) if label != "all"}

    def _nothing(self) -> np.ndarray:
        return recall([], self.protocol, self.protocol.max_dets[-1])

    def _per_category(self, metric: Metric, max_dets: int, axis: int) -> np.ndarray:
        """``metric`` of each category, stacked along ``axis`` as pycocotools does, so that a mean adds in its order."""
        by_category: dict[int | None, list[Outcomes]] = {category: [] for category in self.categories}
        for _, record in self.records():
            for category, outcomes in record.outcomes.items():
                by_category[category].append(outcomes)
        values = [metric(outcomes, self.protocol, max_dets) for outcomes in by_category.values()]
        return np.stack(values or [metric([], self.protocol, max_dets)], axis=axis)


def _sort_key(image_id: Hashable) -> list[tuple[str, Hashable]]:
    """So that 3 and "3" can stand in one set, also as annotators of one image."""
    parts = image_id if isinstance(image_id, tuple) else (image_id,)
    return [(type(part).__name__, part) for part in parts]


def _per_mask(name: str, values: PerMask | None, count: int, dtype: type) -> np.ndarray:
    array = np.zeros(count) if values is None else np.asarray(as_array(values))
    if array.shape != (count,):
        raise ValueError(f"{name}: expected one value for each of {count} masks, got shape {list(array.shape)}")
    return array.astype(dtype)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(np.mean(defined)) if len(defined) else float("nan")
