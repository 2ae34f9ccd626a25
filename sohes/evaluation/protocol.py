# SPDX-License-Identifier: Apache-2.0
"""What an evaluation measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from sohes.evaluation.hierarchy import MATCH_IOU
from sohes.evaluation.ranking import row_type
from sohes.utils.nearest import nearest

IouType = Literal["mask", "box"]
COCO_AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
CURVE_STEPS = (1, 2, 5)  # a granularity curve has points at these, ten times them, ...
MOST_DETS = 2**31 - 1
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    max_dets: how many of an image's best predictions count, rising; the metrics without a number in their name
    use the last. iou_thresholds: T thresholds in (0, 1], rising. area_ranges: name -> (least, most) pixels of a
    mask, both included; "all" must be there. iou_type: whether masks or their boxes are compared. class_aware:
    predictions are matched within their category (where max_dets counts as well), and metrics are means over
    categories too; otherwise categories are not looked at.
    """

    max_dets: tuple[int, ...] = (1, 10, 100, 1000)
    iou_thresholds: tuple[float, ...] = COCO_THRESHOLDS
    area_ranges: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(COCO_AREAS))
    iou_type: IouType = "mask"
    class_aware: bool = False

    def __post_init__(self) -> None:
        for name, values in (("max_dets", self.max_dets), ("iou_thresholds", self.iou_thresholds)):
            if not values or list(values) != sorted(set(values)) or not values[0] > 0:
                raise ValueError(f"{name}: expected rising numbers above 0, got {list(values)}")
        if self.max_dets[-1] > MOST_DETS:
            raise ValueError(f"max_dets: expected at most {MOST_DETS}, got {self.max_dets[-1]}")
        if not all(limit <= 1 for limit in self.iou_thresholds):
            raise ValueError(f"iou_thresholds: expected at most 1, got {list(self.iou_thresholds)}")
        if "all" not in self.area_ranges:
            raise ValueError(f"area_ranges: expected a range named 'all', got {list(self.area_ranges)}")
        if self.iou_type not in ("mask", "box"):
            hint = nearest(str(self.iou_type), ("mask", "box"))
            raise ValueError(f"iou_type: {hint}expected 'mask' or 'box', got {self.iou_type!r}")

    @property
    def min_iou(self) -> float:
        """Pairs below this IoU change no metric."""
        return min(self.iou_thresholds[0], MATCH_IOU, 1 - 1e-10)

    @property
    def capped_thresholds(self) -> np.ndarray:
        """float64 [T]: COCO takes an IoU within 1e-10 of 1 for a full match."""
        return np.minimum(self.iou_thresholds, 1 - 1e-10)

    @property
    def everywhere(self) -> int:
        """Index of the area range "all"."""
        return list(self.area_ranges).index("all")

    @cached_property
    def curve(self) -> list[int]:
        """Numbers of masks that a granularity curve has points at, rising: 1, 2, 5, 10, ..., the largest of
        ``max_dets``."""
        largest = self.max_dets[-1]
        steps = {step * 10**power for power in range(len(str(largest))) for step in CURVE_STEPS}
        return sorted({step for step in steps if step < largest} | {largest})

    @cached_property
    def steps(self) -> list[int]:
        """How many of an image's best predictions recall is counted for, S numbers, rising."""
        return sorted({*self.curve, *self.max_dets})

    @property
    def num_lanes(self) -> int:
        """L = A * T, see ``reference.matching``."""
        return len(self.area_ranges) * len(self.iou_thresholds)

    @cached_property
    def row_type(self) -> np.dtype:
        """Of a scored prediction, see ``ranking.row_type``."""
        return row_type(len(self.area_ranges), self.num_lanes)

    @cached_property
    def area_limits(self) -> np.ndarray:
        """Least and most of each area range, float64 [2, A, 1]."""
        return np.ascontiguousarray(np.array(list(self.area_ranges.values()), np.float64).T)[:, :, None]
