# SPDX-License-Identifier: Apache-2.0
"""N shapes of one image: packed masks, masks as runs, measured masks, or boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, final

import numpy as np
import torch

from sohes.structures.masks import PackedMasks, Size


@final
@dataclass(frozen=True, eq=False)
class RunMasks:
    """N masks of one size (H, W) as runs of set pixels, in column-major pixel order.

    starts, stops: int64 [R], half-open, not empty, rising within a mask. bounds: int64 [N, 2], mask n has the runs
    ``bounds[n, 0]`` to ``bounds[n, 1]`` (exclusive). areas: int64 [N] in pixels. boxes: int64 [N, 4], x0, y0, x1, y1,
    half-open, zeros for an empty mask.
    """

    size: Size
    starts: np.ndarray
    stops: np.ndarray
    bounds: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)


@final
@dataclass(frozen=True, eq=False)
class MeasuredMasks:
    """Sizes, areas and boxes of N masks, as in ``RunMasks``, without their pixels."""

    size: Size
    areas: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)


@final
@dataclass(frozen=True, eq=False)
class Boxes:
    """N boxes. xywh: float64 [N, 4], left, top, width, height in pixels. areas: float64 [N], which decide the area
    range; as in COCO, width * height of an annotated box, or the pixels of the mask that a box was computed from."""

    xywh: np.ndarray
    areas: np.ndarray
    size: Size | None = None  # None: any image size

    def __len__(self) -> int:
        return len(self.areas)


Shapes = PackedMasks | RunMasks | MeasuredMasks | Boxes
AnyShapes = TypeVar("AnyShapes", PackedMasks, RunMasks, MeasuredMasks, Boxes)


def take(shapes: AnyShapes, index: np.ndarray) -> AnyShapes:
    """The shapes at ``index`` (int64 [n]), in that order."""
    if isinstance(shapes, Boxes):
        return Boxes(shapes.xywh[index], shapes.areas[index], shapes.size)
    if isinstance(shapes, MeasuredMasks):
        return MeasuredMasks(shapes.size, shapes.areas[index], shapes.boxes[index])
    if isinstance(shapes, RunMasks):
        arrays = (shapes.bounds[index], shapes.areas[index], shapes.boxes[index])
        return RunMasks(shapes.size, shapes.starts, shapes.stops, *arrays)
    return shapes[torch.from_numpy(index).to(shapes.device)]


def boxes_of_masks(masks: PackedMasks | RunMasks | MeasuredMasks) -> Boxes:
    """The bounding boxes of masks."""
    corners, areas = as_array(masks.boxes).astype(np.float64), as_array(masks.areas).astype(np.float64)
    return Boxes(np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1), areas)


def as_array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    """The values as a numpy array on the CPU."""
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values
