# SPDX-License-Identifier: Apache-2.0
"""The metrics of a set of images, added one at a time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch

from sohes.evaluation.average_recall import precision, recall
from sohes.evaluation.hierarchy import HierarchyCounts
from sohes.evaluation.image import ImageRecord, Protocol, Truth, score_image
from sohes.forest import Forest
from sohes.masks import PackedMasks


class Evaluator:
    """Class-agnostic mask metrics, equal to pycocotools' where both are defined, and the hierarchy's beside them.

    Keeps a few kilobytes per image; the masks themselves are let go. The order in which images are added does not
    matter: they are ranked by id, as pycocotools ranks them.
    """

    def __init__(
        self,
        max_dets: Sequence[int] = (1, 10, 100, 1000),
        iou_thresholds: Sequence[float] | None = None,
        area_ranges: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        chosen = {"max_dets": tuple(sorted(max_dets))}
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
        crowd: Sequence[bool] | np.ndarray | torch.Tensor | None = None,
        gt_areas: Sequence[float] | np.ndarray | torch.Tensor | None = None,
        gt_parents: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    ) -> None:
        """Score the predictions ``pred`` of one image against its M true masks ``gt``.

        crowd: [M], masks that are neither missed nor wrong to find. gt_areas: [M] in pixels, for the area ranges;
        the masks' own by default. gt_parents: [M], index of each true mask's parent or -1; None leaves the image
        out of the hierarchy.

        Raises ValueError for a repeated id, and where sizes, lengths, scores or parents are wrong.
        """
        try:
            truth = Truth(
                areas=_per_mask("gt_areas", gt.areas if gt_areas is None else gt_areas, len(gt), np.float64),
                crowd=_per_mask("crowd", np.zeros(len(gt)) if crowd is None else crowd, len(gt), np.bool_),
                parents=None if gt_parents is None else _per_mask("gt_parents", gt_parents, len(gt), np.int64),
            )
            scores = pred.scores.double().cpu().numpy()
            record = score_image(self.protocol, gt, truth, pred.masks, scores, pred.parents.cpu().numpy())
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

    def recall(self, max_dets: int) -> np.ndarray:
        """float64 [T, A]: per IoU threshold and area range, NaN where there is nothing to find."""
        return recall(self._sorted(), self.protocol, max_dets)

    def precision(self, max_dets: int) -> np.ndarray:
        """float64 [T, 101, A]: at the recalls 0, 0.01, ..., 1, NaN where there is nothing to find."""
        return precision(self._sorted(), self.protocol, max_dets)

    def summary(self) -> dict[str, float]:
        """All metrics by name: fractions in 0..1, NaN where not defined.

        ``AR@k`` for each of ``max_dets``; ``AR-<range>``, ``AP``, ``AP50``, ``AP75`` and ``AP-<range>`` at the
        largest; ``parent_recall``, ``ancestor_f1`` (see ``hierarchy``); ``num_images``; ``masks_per_image``
        (predicted, before any cut).
        """
        names, largest = list(self.protocol.area_ranges), self.protocol.max_dets[-1]
        everywhere = names.index("all")
        recalls = {k: self.recall(k) for k in self.protocol.max_dets}
        precisions = self.precision(largest)
        result = {f"AR@{k}": _mean(recalls[k][:, everywhere]) for k in reversed(self.protocol.max_dets)}
        result |= {f"AR-{n}": _mean(recalls[largest][:, a]) for a, n in enumerate(names) if n != "all"}
        result["AP"] = _mean(precisions[:, :, everywhere])
        for percent in (50, 75):
            at = np.isclose(self.protocol.iou_thresholds, percent / 100)
            result[f"AP{percent}"] = _mean(precisions[at][:, :, everywhere])
        result |= {f"AP-{n}": _mean(precisions[:, :, a]) for a, n in enumerate(names) if n != "all"}
        hierarchy = sum((record.hierarchy for record in self._records.values()), HierarchyCounts())
        result["parent_recall"], result["ancestor_f1"] = hierarchy.parent_recall, hierarchy.ancestor_f1
        result["num_images"] = float(len(self))
        predicted = np.array([record.num_predictions for record in self._records.values()], np.float64)
        result["masks_per_image"] = _mean(predicted)
        return result

    def per_image(self) -> list[dict[str, float | str]]:
        """One row per image, by id: its id, its true and predicted masks, and its own AR and parent recall."""
        names, largest = list(self.protocol.area_ranges), self.protocol.max_dets[-1]
        everywhere = names.index("all")
        rows = []
        for image_id, record in sorted(self._records.items(), key=lambda item: _sort_key(item[0])):
            at_largest = recall([record], self.protocol, largest)
            row: dict[str, float | str] = {
                "image": "/".join(map(str, image_id)) if isinstance(image_id, tuple) else str(image_id),
                "true_masks": int(record.num_gt[everywhere]),
                "predicted_masks": record.num_predictions,
            }
            for k in reversed(self.protocol.max_dets):
                row[f"AR@{k}"] = _mean(recall([record], self.protocol, k)[:, everywhere])
            row |= {f"AR-{n}": _mean(at_largest[:, a]) for a, n in enumerate(names) if n != "all"}
            row["parent_recall"] = record.hierarchy.parent_recall
            row["ancestor_f1"] = record.hierarchy.ancestor_f1
            rows.append(row)
        return rows

    def _sorted(self) -> list[ImageRecord]:
        return [record for _, record in sorted(self._records.items(), key=lambda item: _sort_key(item[0]))]


def _sort_key(image_id: Hashable) -> tuple[str, Hashable]:
    return type(image_id).__name__, image_id  # so that 3 and "3" can stand in one set


def _per_mask(name: str, values: Sequence | np.ndarray | torch.Tensor, count: int, dtype: type) -> np.ndarray:
    array = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.shape != (count,):
        raise ValueError(f"{name}: expected one value for each of {count} masks, got shape {list(array.shape)}")
    return array.astype(dtype)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(np.mean(defined)) if len(defined) else float("nan")
