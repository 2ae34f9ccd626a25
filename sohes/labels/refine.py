# SPDX-License-Identifier: Apache-2.0
"""Refiners, which sharpen masks to the pixel: snapping to basins, the guided filter, dense CRF; CascadePSP as plug-in.

They are meant for masks of patches (masks of basins are sharp already), and run on the CPU or a GPU. Masks are
processed in chunks, so that memory does not grow with their number. All but CascadePSP need no human labels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.configs.run import ExploreConfig
from sohes.labels.basins import color_gradient
from sohes.labels.view import View
from sohes.ops import catchment_basins
from sohes.structures.masks import PackedMasks
from sohes.utils.devices import pick_device
from sohes.utils.errors import SohesError

# Refiners that were trained on human masks; labels made with them are marked.
USES_HUMAN_LABELS = ("cascadepsp",)
_CASCADE_URL = "https://github.com/hkchengrex/CascadePSP/releases/download/v1.0/model"
# Masks unpacked at a time.
_CHUNK = 8
# CRF, values of MaskCut: weights and widths of the smoothness and the appearance kernel. [sibling]
_SMOOTH_WEIGHT, _SMOOTH_WIDTH = 7.0, 3.0
_COLOR_WEIGHT, _COLOR_PLACE_WIDTH, _COLOR_WIDTH = 10.0, 50.0, 5.0
_CONFIDENCE = 0.7
# Cell size of a lattice in kernel widths: splatting, blurring and slicing together then blur by about one width.
_CELL = 1.2
# Guided filter: pixels per cell of the coarse grid, radius in cells, variance of Lab that counts as flat.
_STRIDE, _RADIUS, _FLAT = 4, 3, 4.0


class RefinerMissing(SohesError, RuntimeError):
    """The plug-in of a refiner is not installed; the message says how to install it."""


def refine_masks(
    masks: PackedMasks, view: View, config: ExploreConfig, device: torch.device | None = None
) -> tuple[PackedMasks, Tensor]:
    """The masks with outlines moved to edges of the image, and which of them to keep, bool [N].

    A mask whose IoU with its unrefined self is under `refine_min_iou` is not kept: it was replaced, not sharpened.

    device: where a refiner's network runs. Default: the current GPU if there is one.
    """
    sharpen = build_refiner(view, config, pick_device() if device is None else device)
    starts = range(0, len(masks), _CHUNK)
    parts = [PackedMasks.from_dense(sharpen(masks[start : start + _CHUNK].to_dense())) for start in starts]
    refined = PackedMasks.cat([PackedMasks.empty(masks.size, masks.device), *parts])
    intersection = PackedMasks(refined.words & masks.words, masks.size).areas  # [N]
    iou = intersection / (refined.areas + masks.areas - intersection).clamp(min=1)
    return refined, iou >= config.refine_min_iou


def build_refiner(view: View, config: ExploreConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The refiner of a config for masks of one view, a function bool [n, H, W] -> bool [n, H, W]."""
    if config.refiner == "snap":
        labels = catchment_basins(color_gradient(view.lab, config.basin_sigma))
        return lambda masks: snap_to_regions(masks, labels)
    if config.refiner == "guided":
        return GuidedFilter(view.lab)
    if config.refiner == "cascadepsp":
        pixels, network = view.image.permute(1, 2, 0).cpu().numpy(), load_cascadepsp(device)
        return lambda masks: torch.stack([_cascade(network, pixels, mask) for mask in masks])
    positions = position_features((view.image.shape[1], view.image.shape[2]), view.image.device)
    smooth, color = Lattice(positions / _SMOOTH_WIDTH), Lattice(color_features(view.image))
    return lambda masks: mean_field(masks, smooth, color, config.crf_steps)


@cache
def load_cascadepsp(device: torch.device) -> Any:
    """The network of the package segmentation-refinement, trained on human masks; it downloads its weights.

    device: for a GPU with its index.

    Raises:
        RefinerMissing: the package is not installed, or its weights are absent and cannot be fetched.
    """
    try:
        import segmentation_refinement  # only here: an optional plug-in
    except ImportError as error:
        raise RefinerMissing(
            "refiner 'cascadepsp' needs the package segmentation-refinement (pip install segmentation-refinement): "
            f"{error}; refiners without human labels: snap, guided, crf"
        ) from error
    # The package creates the file before the download, keeps it even if empty, and asserts its checksum.
    path = Path.home() / ".segmentation-refinement" / "model"
    try:
        return segmentation_refinement.Refiner(device=str(device))
    except (OSError, AssertionError) as error:
        raise RefinerMissing(
            f"refiner 'cascadepsp' could not fetch its weights ({type(error).__name__}); without a network put the "
            f"file {_CASCADE_URL} at {path}; refiners without human labels: snap, guided, crf"
        ) from error


def _cascade(network: Any, pixels: np.ndarray, mask: Tensor) -> Tensor:
    refined = network.refine(pixels, mask.cpu().numpy().astype(np.uint8) * 255, fast=False)  # uint8 [H, W]
    return torch.from_numpy(refined > 127).to(mask.device)


class Lattice:
    """A Gaussian filter over points of any dimension, on a sparse bilateral grid (Chen, Paris and Durand, 2007).

    Values are summed in the nearest cell of each point, blurred by (1, 2, 1) / 4 along every dimension between
    occupied cells, read back, and divided by the result for a constant 1.

    points: float32 [P, D], in widths of the kernel.
    """

    def __init__(self, points: Tensor) -> None:
        cells = (points / _CELL).round().long()  # [P, D]
        cells = cells - cells.amin(0) + 1  # room for a neighbour below
        extent = cells.amax(0) + 2
        strides = torch.cat([extent.flip(0).cumprod(0).flip(0)[1:], extent.new_ones(1)])  # [D]
        keys, self.cell = torch.unique((cells * strides).sum(1), return_inverse=True)  # [M], [P]
        num_cells, num_points = len(keys), len(points)
        self.neighbours = []  # per dimension int64 [2, M]: the cells below and above, M if empty
        for stride in strides.tolist():
            wanted = torch.stack([keys - stride, keys + stride])
            place = torch.searchsorted(keys, wanted).clamp(max=num_cells - 1)
            self.neighbours.append(torch.where(keys[place] == wanted, place, num_cells))
        ones = torch.ones(num_points, device=points.device)
        order = self.cell.argsort(stable=True)
        place = torch.stack([self.cell[order], order])
        self.splat = torch.sparse_coo_tensor(
            place, ones, (num_cells, num_points), check_invariants=True, is_coalesced=True
        )
        self.norm = self._filter(ones[:, None]).clamp_min(1e-6)  # [P, 1]

    def __call__(self, values: Tensor) -> Tensor:
        """The weighted mean of the values float32 [P, n] around each point, [P, n]."""
        return self._filter(values) / self.norm

    def _filter(self, values: Tensor) -> Tensor:
        cells = self.splat @ values  # [M, n]
        for below, above in self.neighbours:
            padded = F.pad(cells, (0, 0, 0, 1))  # a cell of zeros at the end, for empty neighbours
            cells = cells / 2 + (padded[below] + padded[above]) / 4
        return cells[self.cell]


def position_features(size: tuple[int, int], device: torch.device) -> Tensor:
    """(y, x) of every pixel, float32 [H*W, 2]."""
    sides = [torch.arange(side, dtype=torch.float32, device=device) for side in size]
    return torch.cartesian_prod(*sides).view(-1, 2)


def color_features(image: Tensor) -> Tensor:
    """Position and colour of every pixel of uint8 [3, H, W], float32 [H*W, 5], in widths of the appearance kernel."""
    positions = position_features((image.shape[1], image.shape[2]), image.device) / _COLOR_PLACE_WIDTH
    return torch.cat([positions, image.flatten(1).T.float() / _COLOR_WIDTH], 1)


def mean_field(masks: Tensor, smooth: Lattice, color: Lattice, steps: int) -> Tensor:
    """Masks after mean field of a dense CRF (Kraehenbuehl and Koltun, 2011), bool [n, H, W] -> bool [n, H, W].

    Two classes, Potts terms of weight w_k, normalised kernels K_k: q = sigmoid(u + sum_k w_k K_k (2 q - 1)), where the
    unary u is the logit of `_CONFIDENCE` for the class of the mask.
    """
    confident = torch.tensor(_CONFIDENCE, device=masks.device).logit()
    unary = torch.where(masks.flatten(1).T, confident, -confident)  # [P, n]
    belief = torch.tanh(unary / 2)  # 2 q - 1
    for _ in range(steps):
        logit = unary + _SMOOTH_WEIGHT * smooth(belief) + _COLOR_WEIGHT * color(belief)
        belief = torch.tanh(logit / 2)
    return (belief > 0).T.reshape(masks.shape)


class GuidedFilter:
    """Masks fitted by a locally linear function of a guide image, thresholded at 0.5.

    The fast guided filter (He and Sun, 2015): window means are taken on a coarse grid and the coefficients enlarged. In
    a window with a variance below `_FLAT` the mask is only blurred.

    lab: float32 [3, H, W], the guide.
    """

    def __init__(self, lab: Tensor) -> None:
        self.lab = lab
        self.coarse = (max(1, lab.shape[1] // _STRIDE), max(1, lab.shape[2] // _STRIDE))
        self.guide = F.adaptive_avg_pool2d(lab[None], self.coarse)  # [1, 3, h, w]
        self.mean = _box(self.guide)  # [1, 3, h, w]
        products = self.guide[:, :, None] * self.guide[:, None]  # [1, 3, 3, h, w]
        covariance = _box(products.flatten(1, 2)).view(products.shape) - self.mean[:, :, None] * self.mean[:, None]
        covariance = covariance[0].permute(2, 3, 0, 1) + _FLAT * torch.eye(3, device=lab.device)  # [h, w, 3, 3]
        self.inverse = torch.linalg.inv(covariance).permute(2, 3, 0, 1).contiguous()  # [3, 3, h, w]

    def __call__(self, masks: Tensor) -> Tensor:
        """bool [n, H, W] -> bool [n, H, W]."""
        size = (self.lab.shape[1], self.lab.shape[2])
        values = F.adaptive_avg_pool2d(masks[:, None].float(), self.coarse)  # [n, 1, h, w]
        means = _box(values)
        cross = _box(self.guide * values) - self.mean * means  # [n, 3, h, w]
        slope = (self.inverse * cross[:, None]).sum(2)  # [n, 3, h, w]
        offset = means - (slope * self.mean).sum(1, keepdim=True)  # [n, 1, h, w]
        smooth = _box(torch.cat([slope, offset], 1))  # [n, 4, h, w]
        result = F.interpolate(smooth[:, 3:], size, mode="bilinear")[:, 0]  # [n, H, W]
        for channel in range(3):  # one by one, as four enlarged maps of all masks take much memory
            result += F.interpolate(smooth[:, channel : channel + 1], size, mode="bilinear")[:, 0] * self.lab[channel]
        return result > 0.5


def snap_to_regions(masks: Tensor, labels: Tensor) -> Tensor:
    """Masks bool [n, H, W] -> unions of the regions of labels int64 [H, W] that lie in them by more than half."""
    flat = labels.flatten()
    sizes = torch.bincount(flat)  # [N]
    snapped = torch.empty_like(masks)
    for mask, out in zip(masks, snapped, strict=True):
        inside = torch.bincount(flat[mask.flatten()], minlength=len(sizes))  # [N]
        torch.index_select(2 * inside > sizes, 0, flat, out=out.view(-1))
    return snapped


def _box(values: Tensor) -> Tensor:
    """Mean over windows of [n, c, h, w]; at the edges over the pixels inside."""
    side = 2 * _RADIUS + 1
    rows = F.avg_pool2d(values, (side, 1), 1, (_RADIUS, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), 1, (0, _RADIUS), count_include_pad=False)
