# SPDX-License-Identifier: Apache-2.0
"""Multi-crop views for self-distillation, made on the device that trains.

Photos are canvases of one size, and all random numbers are drawn for a whole batch from one generator. So every step
is batched, and the CPU only decodes the photos, once.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from sohes.configs.pretrain import CropConfig, DistortConfig

# RGB to YIQ: Rec. 601 luma, and two axes in which a change of hue is a rotation.
_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_BLUR_RADIUS_SIGMAS = 2.0


def draw_boxes(sizes: Tensor, scale: tuple[float, float], config: CropConfig, generator: Generator) -> Tensor:
    """One random box inside each photo, as in Inception's random resized crop.

    The area is uniform in `scale` of the photo's, the aspect ratio log-uniform in `config.aspect`; a box that is longer
    than the photo is shortened.

    Args:
        sizes: [B, 2], height and width of each photo in pixels of its canvas.

    Returns:
        float32 [B, 4]: x0, y0, x1, y1 in pixels, 0 <= x0 < x1 <= width.
    """
    height, width = sizes.float().unbind(1)  # [B]
    share, shape, left, top = _rand((4, len(sizes)), sizes.device, generator)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
    low, high = (math.log(value) for value in config.aspect)
    aspect = torch.exp(low + (high - low) * shape)
    box_width = torch.minimum((area * aspect).sqrt(), width)
    box_height = torch.minimum((area / aspect).sqrt(), height)
    x0, y0 = (width - box_width) * left, (height - box_height) * top
    return torch.stack((x0, y0, x0 + box_width, y0 + box_height), dim=1)


def cut_crops(canvases: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """The boxes of the canvases, resized to squares.

    Bilinear; if a box may be reduced, it is sampled at a multiple of `size` and averaged, to avoid aliasing.

    Args:
        canvases: float32 [B, 3, S, S] in 0..1. boxes: float32 [B, 4] in pixels. mirrored: bool [B].

    Returns:
        float32 [B, 3, size, size].
    """
    side = canvases.shape[-1]
    factor = max(1, math.ceil(side / size / 1.5))
    n = size * factor
    x, y = _sample_positions(boxes, mirrored, n)
    grid = torch.stack((x[:, None, :].expand(-1, n, n), y[:, :, None].expand(-1, n, n)), dim=-1)  # [B, n, n, 2]
    crops = F.grid_sample(canvases, 2 * grid / side - 1, padding_mode="border", align_corners=False)
    return F.avg_pool2d(crops, factor) if factor > 1 else crops


def cut_labels(maps: Tensor, boxes: Tensor, mirrored: Tensor, grid: int, side: int) -> Tensor:
    """The labels at the centres of the patches of crops as of `cut_crops`.

    Args:
        maps: [B, S', S'], labels of canvases of `side` pixels at any resolution. boxes, mirrored: as for `cut_crops`.
        grid: patches along the side of a crop.

    Returns:
        [B, grid, grid], of the dtype of `maps`.
    """
    scale = maps.shape[-1] / side
    x, y = _sample_positions(boxes, mirrored, grid)
    rows, columns = ((c * scale).long().clamp(0, maps.shape[-1] - 1) for c in (y, x))
    photo = torch.arange(len(maps), device=maps.device)
    return maps[photo[:, None, None], rows[:, :, None], columns[:, None, :]]


def distort(crops: Tensor, config: DistortConfig, blur: float, solarize: float, generator: Generator) -> Tensor:
    """Crops with changed colours, gray, blurred or solarized at random, independently for each crop.

    Brightness, contrast, saturation and hue are applied in this order.

    Args:
        crops: float32 [N, 3, h, w] in 0..1. blur, solarize: their probabilities for these crops.

    Returns:
        float32 [N, 3, h, w] in 0..1.
    """
    num = len(crops)

    def chance(probability: float) -> Tensor:
        return (_rand(num, crops.device, generator) < probability)[:, None, None, None]

    def spread(width: float) -> Tensor:
        """Uniform in -width..width, [N, 1, 1, 1]."""
        return ((2 * _rand(num, crops.device, generator) - 1) * width)[:, None, None, None]

    jittered = (crops * (1 + spread(config.brightness))).clamp(0, 1)
    middle = _gray(jittered).mean((2, 3), keepdim=True)  # [N, 1, 1, 1]
    jittered = (middle + (jittered - middle) * (1 + spread(config.contrast))).clamp(0, 1)
    gray = _gray(jittered)  # [N, 1, h, w]
    jittered = (gray + (jittered - gray) * (1 + spread(config.saturation))).clamp(0, 1)
    jittered = _rotate_hue(jittered, spread(config.hue).flatten())
    crops = torch.where(chance(config.jitter_probability), jittered, crops)
    crops = torch.where(chance(config.gray_probability), _gray(crops).expand_as(crops), crops)
    if blur > 0:
        low, high = config.blur_sigma
        sigma = low + (high - low) * _rand(num, crops.device, generator)
        crops = torch.where(chance(blur), gaussian_blur(crops, sigma, high), crops)
    if solarize > 0:
        crops = torch.where(chance(solarize) & (crops >= 0.5), 1 - crops, crops)
    return crops


def gaussian_blur(crops: Tensor, sigma: Tensor, max_sigma: float) -> Tensor:
    """Gaussian blur of [N, 3, h, w] with one sigma (pixels) per crop, [N]; edges are repeated.

    Separable, as a weighted sum of shifted copies, since each crop has its own kernel.
    """
    radius = max(1, math.ceil(_BLUR_RADIUS_SIGMAS * max_sigma))
    offset = torch.arange(-radius, radius + 1, device=crops.device)
    weights = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)  # [N, 2 * radius + 1]
    weights = weights / weights.sum(1, keepdim=True)
    for dim in (2, 3):
        length = crops.shape[dim]
        place = torch.arange(length, device=crops.device)
        shifted = (
            weights[:, k, None, None, None] * crops.index_select(dim, (place + k - radius).clamp(0, length - 1))
            for k in range(2 * radius + 1)
        )
        crops = sum(shifted, torch.zeros_like(crops))
    return crops


def draw_patch_masks(
    num: int, grid: tuple[int, int], share: tuple[float, float], probability: float, generator: Generator
) -> Tensor:
    """The patches hidden from the student, bool [num, h, w], in blobs.

    A crop is masked with `probability`, and then a share of its patches that is uniform in `share`: those where noise,
    drawn on a grid half as fine and enlarged, is highest [ours, in one batched step; iBOT draws rectangles].
    """
    h, w = grid
    device = generator.device
    coarse = _rand((num, 1, max(2, h // 2), max(2, w // 2)), device, generator)
    noise = F.interpolate(coarse, (h, w), mode="bicubic", align_corners=False).flatten(1)  # [num, h*w]
    rank = noise.argsort(1, descending=True).argsort(1)
    wanted = share[0] + (share[1] - share[0]) * _rand(num, device, generator)
    wanted = torch.where(_rand(num, device, generator) < probability, wanted, 0.0)
    return (rank < (wanted * h * w).round()[:, None]).view(num, h, w)


def _rand(shape: int | tuple[int, ...], device: torch.device, generator: Generator) -> Tensor:
    """Uniform random numbers in 0..1, always float32."""
    return torch.rand(shape, generator=generator, dtype=torch.float32, device=device)


def _sample_positions(boxes: Tensor, mirrored: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """x and y of the centres of n x n equal cells of each box, float32 [B, n] each, in pixels of the canvas."""
    place = (torch.arange(n, device=boxes.device, dtype=torch.float32) + 0.5) / n  # [n], 0..1 across the box
    across = torch.where(mirrored[:, None], 1 - place, place)  # [B, n]
    x = boxes[:, 0, None] + across * (boxes[:, 2] - boxes[:, 0])[:, None]  # [B, n]
    y = boxes[:, 1, None] + place * (boxes[:, 3] - boxes[:, 1])[:, None]  # [B, n]
    return x, y


def _gray(crops: Tensor) -> Tensor:
    """Luma of crops [N, 3, h, w], [N, 1, h, w]."""
    weights = crops.new_tensor(_TO_YIQ[0])[:, None, None]
    return (crops * weights).sum(1, keepdim=True)


def _rotate_hue(crops: Tensor, turns: Tensor) -> Tensor:
    """Crops with colours rotated about the gray axis by `turns` [N] of a full circle."""
    to_yiq = crops.new_tensor(_TO_YIQ)  # [3, 3]
    angle = 2 * math.pi * turns
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = (one, zero, zero, zero, angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos())
    matrix = torch.linalg.inv(to_yiq) @ torch.stack(rows, dim=1).view(-1, 3, 3) @ to_yiq  # [N, 3, 3]
    return torch.einsum("nij,njhw->nihw", matrix, crops).clamp(0, 1)
