# SPDX-License-Identifier: Apache-2.0
"""Evaluator: metrics of images that are added one at a time, in memory."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch

from sohes.evaluation.image import ImageRecord, Predictions, ScoredImage, Truth, score_image
from sohes.evaluation.metrics import Evaluation, id_order
from sohes.evaluation.protocol import IouType, Protocol
from sohes.evaluation.ranking import Run, RunInMemory
from sohes.evaluation.shapes import Shapes, as_array, boxes_of_masks
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks

PerMask = Sequence[float] | np.ndarray | torch.Tensor


class Evaluator(Evaluation):
    """The metrics of images that are added one at a time.

    Keeps about 23 bytes per prediction, not the masks. The order of images does not matter. See ``Protocol`` for the
    options.
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
        protocol = Protocol(tuple(sorted(max_dets)), iou_type=iou_type, class_aware=class_aware)
        if iou_thresholds is not None:
            protocol = replace(protocol, iou_thresholds=tuple(iou_thresholds))
        if area_ranges is not None:
            protocol = replace(protocol, area_ranges=dict(area_ranges))
        super().__init__(protocol)
        self._images: dict[Hashable, ScoredImage] = {}

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

        crowd: [M], masks that count neither as missed nor, if found, as false positives. gt_areas: [M] in pixels, for
        the area ranges; by default the masks' own. gt_parents: [M], index of each true mask's parent or -1; None: the
        image does not count for the hierarchy. gt_categories: [M] and pred_categories: [N], integers, for a class-aware
        protocol; 0 by default. If boxes are compared, they are the masks' bounding boxes.

        Raises ValueError for a repeated id and for invalid sizes, lengths, scores or parents.
        """
        shapes: list[Shapes] = [gt, pred.masks]
        try:
            if gt.size != pred.masks.size:
                raise ValueError(f"expected predictions of size {gt.size}, got {pred.masks.size}")
            if self.protocol.iou_type == "box":
                shapes = [boxes_of_masks(masks) for masks in (gt, pred.masks)]
            truth = Truth(
                shapes=shapes[0],
                areas=_per_mask("gt_areas", gt.areas if gt_areas is None else gt_areas, len(gt), np.float64),
                crowd=_per_mask("crowd", crowd, len(gt), np.bool_),
                categories=_per_mask("gt_categories", gt_categories, len(gt), np.int64),
                parents=None if gt_parents is None else _per_mask("gt_parents", gt_parents, len(gt), np.int64),
            )
            found = Predictions(
                shapes=shapes[1],
                scores=pred.scores.double().cpu().numpy(),
                parents=pred.parents.cpu().numpy(),
                categories=_per_mask("pred_categories", pred_categories, len(pred), np.int64),
            )
            scored = score_image(self.protocol, truth, found)
        except ValueError as error:
            raise ValueError(f"image {image_id}: {error}") from error
        self._add(image_id, scored)

    def merge(self, other: Evaluator) -> None:
        """Add all images of another evaluator, e.g. of another process."""
        if other.protocol != self.protocol:
            raise ValueError(f"expected an evaluator with {self.protocol}, got {other.protocol}")
        for image_id, scored in other._images.items():
            self._add(image_id, scored)

    def _add(self, image_id: Hashable, scored: ScoredImage) -> None:
        if image_id in self._images:
            raise ValueError(f"image {image_id} was added before")
        self._images[image_id] = scored

    def __len__(self) -> int:
        return len(self._images)

    def records(self) -> list[tuple[Hashable, ImageRecord]]:
        return [(image_id, scored.record) for image_id, scored in self._by_id()]

    def runs(self, category: int | None) -> list[Run]:
        return [RunInMemory(scored.rows[category]) for _, scored in self._by_id() if category in scored.rows]

    def _by_id(self) -> list[tuple[Hashable, ScoredImage]]:
        return sorted(self._images.items(), key=lambda item: id_order(item[0]))


def _per_mask(name: str, values: PerMask | None, count: int, dtype: type) -> np.ndarray:
    """The values as an array [count] of the type, zeros for None. Raises ValueError."""
    array = np.zeros(count) if values is None else _to_array(values)
    if array.shape != (count,):
        raise ValueError(f"{name}: expected one value for each of {count} masks, got shape {list(array.shape)}")
    if dtype is np.int64:
        return _whole(name, array)
    if dtype is np.float64 and not (array.dtype.kind in "iuf" and (np.isfinite(array) & (array >= 0)).all()):
        raise ValueError(f"{name}: expected finite numbers from 0 up, got {array.tolist()}")
    return array.astype(dtype)


def _to_array(values: PerMask) -> np.ndarray:
    return as_array(values) if isinstance(values, torch.Tensor) else np.asarray(values)


def _whole(name: str, array: np.ndarray) -> np.ndarray:
    """Whole numbers [N] as int64, dtype object if some are larger. Raises ValueError for other numbers."""
    if array.dtype.kind == "f" and (np.isfinite(array) & (array == np.round(array)) & (abs(array) < 2.0**63)).all():
        return array.astype(np.int64)
    if array.dtype.kind in "iub" and not (array > 2**63 - 1).any():
        return array.astype(np.int64)
    if array.dtype.kind in "uO" and all(type(value) is int for value in array.tolist()):
        return array.astype(object)
    raise ValueError(f"{name}: expected whole numbers, got {array.tolist()}")
