# SPDX-License-Identifier: Apache-2.0
"""Training views of a photo: a random crop, unchanged (weak) or with changed colours, blur and holes (strong).

Geometry and appearance are drawn separately, so that both views of a photo and its masks always align. All randomness
comes from the given numpy Generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as colour

from sohes.structures.masks import PackedMasks

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""Of ImageNet, in 0..1, as most published backbones use them."""


@dataclass(frozen=True)
class Geometry:
    """The part of a photo in a square view: resized, maybe mirrored, cropped, padded at the right and the bottom."""

    source: tuple[int, int]
    """(H, W) of the photo."""
    resized: tuple[int, int]
    """(H, W) after resizing; the aspect ratio of the photo, up to rounding."""
    top: int
    left: int
    """First row and column of the resized photo in the view."""
    mirrored: bool
    size: int
    """Side of the view in pixels."""

    @property
    def visible_size(self) -> tuple[int, int]:
        """(height, width) of the part of the view that shows the photo; the rest is padding."""
        return min(self.size, self.resized[0] - self.top), min(self.size, self.resized[1] - self.left)


@dataclass(frozen=True)
class StrongView:
    """Range of the changes from the weak to the strong view. Probabilities in 0..1."""

    jitter_probability: float = 0.8
    """Probability of changing brightness, contrast, saturation and hue. [sibling]"""
    brightness: float = 0.4
    """Factor drawn from 1 - value to 1 + value. [sibling]"""
    contrast: float = 0.4
    """Factor drawn from 1 - value to 1 + value. [sibling]"""
    saturation: float = 0.4
    """Factor drawn from 1 - value to 1 + value. [sibling]"""
    hue: float = 0.1
    """Shift drawn from -value to value, in full turns of the colour circle. [sibling]"""
    gray_probability: float = 0.2
    """Probability of conversion to gray. [sibling]"""
    blur_probability: float = 0.5
    """Probability of a Gaussian blur. [sibling]"""
    blur_sigma: tuple[float, float] = (0.0005, 0.004)
    """Range of the blur's sigma, as a share of the view's side. [ours: that of the sibling at 512 px]"""
    max_holes: int = 3
    """Largest number of gray rectangles drawn over the view; masks are unchanged. [sibling]"""
    hole_side: tuple[float, float] = (0.05, 0.2)
    """Range of the sides of a hole, as a share of the view's side. [ours]"""


def draw_geometry(rng: Generator, source: tuple[int, int], size: int, scale: tuple[float, float]) -> Geometry:
    """The geometry of a random view of a photo of size `source` (H, W).

    The longer side of the photo is resized to `size` times a factor uniform in `scale`; a side longer than the view is
    cropped at random. Half of the views are mirrored.
    """
    factor = rng.uniform(*scale) * size / max(source)
    resized = (max(1, round(source[0] * factor)), max(1, round(source[1] * factor)))
    top, left = (int(rng.integers(0, max(0, side - size) + 1)) for side in resized)
    return Geometry(source, resized, top, left, bool(rng.random() < 0.5), size)


def view_image(image: Tensor, geometry: Geometry) -> Tensor:
    """The view of a photo uint8 [3, H, W], uint8 [3, size, size], resized with antialiasing; padding is 0."""
    height, width = geometry.visible_size
    resized = F.interpolate(image[None], geometry.resized, mode="bilinear", antialias=True)[0]  # [3, h, w]
    if geometry.mirrored:
        resized = resized.flip(-1)
    window = resized[:, geometry.top : geometry.top + height, geometry.left : geometry.left + width]
    return F.pad(window, (0, geometry.size - width, 0, geometry.size - height))


def view_masks(masks: PackedMasks, geometry: Geometry) -> Tensor:
    """The view of N masks of the photo, bool [N, size, size], by nearest neighbour; padding is False."""
    height, width = geometry.visible_size
    rows, columns = (torch.arange(length, device=masks.device) for length in (height, width))
    rows = _nearest(geometry.top + rows, geometry.resized[0], geometry.source[0])  # [height]
    columns = geometry.left + columns
    if geometry.mirrored:
        columns = geometry.resized[1] - 1 - columns
    columns = _nearest(columns, geometry.resized[1], geometry.source[1])  # [width]
    # Only the bits in the view are read; the masks are not unpacked at the size of the photo.
    bit = (rows[:, None] + columns[None, :] * geometry.source[0]).flatten()  # [height * width]
    octets = masks.words.view(torch.uint8)  # [N, 8 * words]
    bits = octets.index_select(1, bit >> 3).bitwise_right_shift_((bit & 7).to(torch.uint8)).bitwise_and_(1)
    view = torch.zeros((len(masks), geometry.size, geometry.size), dtype=torch.bool, device=masks.device)
    view[:, :height, :width] = bits.view(-1, height, width)
    return view


def _nearest(position: Tensor, resized: int, source: int) -> Tensor:
    """Index, int64, of the source pixel under the centre of a pixel of the resized side."""
    return ((2 * position + 1) * source).div(2 * resized, rounding_mode="floor")


def view_valid(geometry: Geometry) -> Tensor:
    """bool [size, size]: True on the photo, False on padding."""
    height, width = geometry.visible_size
    valid = torch.zeros((geometry.size, geometry.size), dtype=torch.bool, device="cpu")
    valid[:height, :width] = True
    return valid


def visible_masks(masks: Tensor, ancestors: Tensor, min_area: int) -> Tensor:
    """Indices int64 of the masks that remain targets after a crop.

    A mask is dropped if fewer than `min_area` pixels are left, or if it equals one of its parts in the view, which
    would be the same target twice; the part is kept.

    Args:
        masks: bool [N, H, W], on the CPU. ancestors: bool [N, N], [i, j]: i is an ancestor of j.
    """
    # numpy counts bools about ten times faster than torch sums them.
    areas = torch.from_numpy(np.count_nonzero(masks.numpy(), axis=(1, 2)))  # [N]
    keep = areas >= min_area
    pairs = ancestors & keep[:, None] & keep[None, :] & (areas[:, None] == areas[None, :])
    for whole, part in pairs.nonzero().tolist():
        if torch.equal(masks[whole], masks[part]):
            keep[whole] = False
    return keep.nonzero().flatten()


def strong_view(rng: Generator, image: Tensor, settings: StrongView) -> Tensor:
    """The strong view, uint8 [3, size, size], of a weak view of the same shape; no pixel is moved."""
    size = image.shape[-1]
    if rng.random() < settings.jitter_probability:
        black = torch.zeros((), dtype=torch.float32, device=image.device)
        image = _blend(image, black, rng.uniform(1 - settings.brightness, 1 + settings.brightness))
        image = _blend(image, _gray(image).mean(), rng.uniform(1 - settings.contrast, 1 + settings.contrast))
        image = _blend(image, _gray(image), rng.uniform(1 - settings.saturation, 1 + settings.saturation))
        with torch.device(image.device):  # it creates a tensor on the default device
            image = colour.adjust_hue(image, rng.uniform(-settings.hue, settings.hue))
    if rng.random() < settings.gray_probability:
        image = _gray(image).to(torch.uint8).expand_as(image)
    if rng.random() < settings.blur_probability:
        sigma = size * rng.uniform(*settings.blur_sigma)
        image = colour.gaussian_blur(image, 2 * max(1, round(3 * sigma)) + 1, [sigma, sigma])
    image = image.clone()
    for _ in range(rng.integers(0, settings.max_holes + 1)):
        height, width = (max(1, round(size * rng.uniform(*settings.hole_side))) for _ in range(2))
        top, left = (int(rng.integers(0, size - side + 1)) for side in (height, width))
        image[:, top : top + height, left : left + width] = 128
    return image


def _gray(image: Tensor) -> Tensor:
    """Gray levels of uint8 [3, H, W], whole numbers in float32 [1, H, W], as of torchvision's `rgb_to_grayscale`."""
    red, green, blue = image.to(torch.float32).unbind(-3)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[None]


def _blend(image: Tensor, other: Tensor, ratio: float) -> Tensor:
    """`ratio` of an image uint8 [3, H, W] plus the rest of `other`, as in torchvision's `adjust_*`, but always in
    float32, not in torch's default dtype."""
    mixed = image.to(torch.float32).mul(ratio).add_(other, alpha=1 - ratio)
    return mixed.clamp_(0, 255).to(torch.uint8)


def normalize(images: Tensor, valid: Tensor | None = None) -> Tensor:
    """uint8 [..., 3, H, W] -> float32, by ImageNet's mean and std; 0 where `valid` bool [..., H, W] is False."""
    mean = torch.tensor(IMAGE_MEAN, dtype=torch.float32, device=images.device)[:, None, None] * 255
    std = torch.tensor(IMAGE_STD, dtype=torch.float32, device=images.device)[:, None, None] * 255
    normalized = (images.float() - mean) / std
    return normalized if valid is None else normalized * valid.unsqueeze(-3)
