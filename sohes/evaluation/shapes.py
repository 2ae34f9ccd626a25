# SPDX-License-Identifier: Apache-2.0
"""What is compared: N shapes of one image, as masks in one form or another, or as boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sohes.structures.masks import PackedMasks, Size


@dataclass(frozen=True, eq=False)
class RunMasks:
    """N masks of one size (H, W) over column-major pixels, as runs of set pixels.

    starts, stops: int64 [R], rising within a mask, half-open, no run empty. bounds: int64 [N, 2], mask n has the runs
    ``bounds[n, 0]`` up to ``bounds[n, 1]``. areas: int64 [N] in pixels. boxes: int64 [N, 4], x0, y0, x1, y1,
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


@dataclass(frozen=True, eq=False)
class MeasuredMasks:
    """Masks of which only this is kept: size, areas and boxes as in ``RunMasks``."""

    size: Size
    areas: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)


@dataclass(frozen=True, eq=False)
class Boxes:
    """N boxes. xywh: float64 [N, 4], left, top, width, height in pixels. areas: float64 [N], what decides the area
    range: as COCO has it, width times height of a box that was given as one, the pixels of the mask it is taken from
    otherwise."""

    xywh: np.ndarray
    areas: np.ndarray
    size: Size | None = None  # boxes may stand on any image

    def __len__(self) -> int:
        return len(self.areas)


Shapes = PackedMasks | RunMasks | MeasuredMasks | Boxes


def take(shapes: Shapes, index: np.ndarray) -> Shapes:
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
    """The boxes around masks."""
    corners, areas = as_array(masks.boxes).astype(np.float64), as_array(masks.areas).astype(np.float64)
    return Boxes(np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1), areas)


def as_array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values
