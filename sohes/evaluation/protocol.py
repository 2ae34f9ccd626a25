# SPDX-License-Identifier: Apache-2.0
"""The parameters of an evaluation: detection limits, IoU thresholds, area ranges."""

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
CURVE_STEPS = (1, 2, 5)  # the points of a granularity curve, times powers of ten
MAX_DETS_LIMIT = 2**31 - 1
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())


@dataclass(frozen=True)
class Protocol:
    """The parameters of an evaluation.

    max_dets: how many of an image's best predictions count, rising; metrics without a number in their name use the
    last. iou_thresholds: T thresholds in (0, 1], rising. area_ranges: A ranges, name -> (min, max) area in pixels,
    both inclusive; "all" is required. iou_type: compare masks or their boxes. class_aware: match predictions within
    their category (max_dets then counts per category) and average metrics over categories; else categories are
    ignored.
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
        if self.max_dets[-1] > MAX_DETS_LIMIT:
            raise ValueError(f"max_dets: expected at most {MAX_DETS_LIMIT}, got {self.max_dets[-1]}")
        if not all(limit <= 1 for limit in self.iou_thresholds):
            raise ValueError(f"iou_thresholds: expected at most 1, got {list(self.iou_thresholds)}")
        if "all" not in self.area_ranges:
            raise ValueError(f"area_ranges: expected a range named 'all', got {list(self.area_ranges)}")
        if self.iou_type not in ("mask", "box"):
            hint = nearest(str(self.iou_type), ("mask", "box"))
            raise ValueError(f"iou_type: {hint}expected 'mask' or 'box', got {self.iou_type!r}")

    @property
    def min_iou(self) -> float:
        """The smallest IoU of a pair that can change a metric."""
        return min(self.iou_thresholds[0], MATCH_IOU, 1 - 1e-10)

    @property
    def capped_thresholds(self) -> np.ndarray:
        """IoU thresholds, float64 [T], at most 1 - 1e-10 as in COCO."""
        return np.minimum(self.iou_thresholds, 1 - 1e-10)

    @property
    def everywhere(self) -> int:
        """Index of the area range "all"."""
        return list(self.area_ranges).index("all")

    @cached_property
    def curve(self) -> list[int]:
        """The detection limits of a granularity curve, rising: 1, 2, 5, 10, ..., the largest of ``max_dets``."""
        largest = self.max_dets[-1]
        steps = {step * 10**power for power in range(len(str(largest))) for step in CURVE_STEPS}
        return sorted({step for step in steps if step < largest} | {largest})

    @cached_property
    def steps(self) -> list[int]:
        """All S detection limits that recall is computed for, rising: ``curve`` and ``max_dets``."""
        return sorted({*self.curve, *self.max_dets})

    @property
    def num_lanes(self) -> int:
        """Number of lanes, L = A * T, see ``reference.matching``."""
        return len(self.area_ranges) * len(self.iou_thresholds)

    @cached_property
    def row_type(self) -> np.dtype:
        """The dtype of a scored prediction, see ``ranking.row_type``."""
        return row_type(len(self.area_ranges), self.num_lanes)

    @cached_property
    def area_limits(self) -> np.ndarray:
        """Minimum and maximum of each area range, float64 [2, A, 1]."""
        return np.ascontiguousarray(np.array(list(self.area_ranges.values()), np.float64).T)[:, :, None]
