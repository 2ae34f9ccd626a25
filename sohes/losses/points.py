# SPDX-License-Identifier: Apache-2.0
"""Losses and matching read masks at sampled points instead of at every pixel (PointRend, Mask2Former).

Points are (x, y) as fractions of the image, 0..1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def random_points(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform points, float32 [*shape, 2]. Drawn where the generator lives, so a seed gives the same anywhere."""
    home = device if generator is None else generator.device
    return torch.rand(*shape, 2, generator=generator, device=home).to(device)


def sample_logits(maps: Tensor, points: Tensor, extent: tuple[float, float]) -> Tensor:
    """Bilinear values of maps [B, C, h, w] at points [B, P, 2] -> [B, C, P].

    `extent` is the share (x, y) of the map that the image covers: a map of stride 4 reaches past an image whose sides
    4 does not divide.
    """
    grid = points * (2.0 * points.new_tensor(extent)) - 1.0  # [B, P, 2]
    values = F.grid_sample(maps, grid[:, None], padding_mode="border", align_corners=False)  # [B, C, 1, P]
    return values[:, :, 0]


def sample_labels(masks: Tensor, points: Tensor) -> Tensor:
    """The pixel of masks bool [N, H, W] under each of points [N or 1, P, 2] -> float32 [N, P].

    Labels are read, not interpolated: that needs no float copy of the masks, which is their largest.
    """
    N, H, W = masks.shape
    x = (points[..., 0] * W).long().clamp(max=W - 1)
    y = (points[..., 1] * H).long().clamp(max=H - 1)
    index = (y * W + x).expand(N, -1)  # [N, P]
    return masks.flatten(1).gather(1, index).float()


def uncertain_points(
    maps: Tensor,
    num_points: int,
    extent: tuple[float, float],
    *,
    oversample_ratio: float,
    importance_ratio: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Points where a mask is least decided, and some anywhere.

    Args:
        maps: logits [M, h, w].
        num_points: P.
        extent: see `sample_logits`.
        oversample_ratio: P times this many points are drawn to choose from.
        importance_ratio: share of the P points that are those with logits nearest zero; the others are uniform.

    Returns:
        float32 [M, P, 2], without gradient.
    """
    M = maps.shape[0]
    num_drawn = int(num_points * oversample_ratio)
    num_chosen = int(num_points * importance_ratio)
    drawn = random_points((M, num_drawn), generator, maps.device)
    uniform = random_points((M, num_points - num_chosen), generator, maps.device)
    with torch.no_grad():
        logits = sample_logits(maps[:, None], drawn, extent)[:, 0]  # [M, drawn]
        chosen = logits.abs().topk(num_chosen, dim=1, largest=False, sorted=False).indices  # [M, chosen]
        points = drawn.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat((points, uniform), dim=1)
