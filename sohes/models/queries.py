# SPDX-License-Identifier: Apache-2.0
"""Initial queries of the mask decoder: learned embeddings, or features at seed points of the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.models.layers import sine_position
from sohes.models.pixel_decoder import PixelFeatures


@dataclass(frozen=True)
class Queries:
    """Initial queries of the mask decoder."""

    content: Tensor
    """[B, Q, C]."""
    position: Tensor
    """[B, Q, C], position embedding, added to the queries in attention."""
    anchors: Tensor | None = None
    """float32 [B, Q, 2], seed points (x, y) as fractions of the image; None for learned queries."""


class LearnedQueries(nn.Module):
    """Two learned embeddings per query, as in Mask2Former."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.content = nn.Parameter(torch.randn(num_queries, dim))
        self.position = nn.Parameter(torch.randn(num_queries, dim))

    def forward(self, pixels: PixelFeatures) -> Queries:
        """The same queries for every image of the batch."""
        batch = pixels.fine.shape[0]
        return Queries(self.content.expand(batch, -1, -1), self.position.expand(batch, -1, -1))


class SeedQueries(nn.Module):
    """One query per seed point and granularity. [ours]

    The content of a query is the image feature at its seed point plus an embedding of its granularity. Its position is
    the sine embedding of the seed point, as for the keys, so attention depends on position from the first step.
    """

    def __init__(self, grid_size: int, seeds_per_cell: int, num_granularities: int, dim: int) -> None:
        super().__init__()
        self.grid_size, self.seeds_per_cell = grid_size, seeds_per_cell
        self.num_queries = grid_size**2 * seeds_per_cell * num_granularities
        self.granularity = nn.Parameter(torch.randn(num_granularities, dim))
        self.project = nn.Linear(dim, dim)

    def forward(self, pixels: PixelFeatures, affinity: Tensor, grid_size: int | None = None) -> Queries:
        """affinity: [B, A, h, w], features in which the seed points of a cell differ. grid_size: see the model."""
        seeds = find_seeds(affinity, grid_size or self.grid_size, self.seeds_per_cell)  # [B, S, 2]
        features = self.project(sample_map(pixels.fine, seeds))  # [B, S, C]
        num_granularities, dim = self.granularity.shape
        content = (features[:, :, None] + self.granularity).flatten(1, 2)  # [B, Q = S*m, C]
        anchors = seeds.repeat_interleave(num_granularities, dim=1)  # [B, Q, 2]
        return Queries(content, sine_position(anchors, dim), anchors)


def sample_map(features: Tensor, points: Tensor) -> Tensor:
    """Features [B, C, h, w], interpolated at points [B, P, 2], (x, y) as fractions -> [B, P, C]."""
    dtype = torch.promote_types(features.dtype, points.dtype)  # 16-bit coordinates would move the points
    grid = (points * 2.0 - 1.0)[:, None].to(dtype)  # [B, 1, P, 2]
    return F.grid_sample(features.to(dtype), grid, padding_mode="border", align_corners=False)[:, :, 0].transpose(1, 2)


@torch.no_grad()
def find_seeds(features: Tensor, grid_size: int, seeds_per_cell: int) -> Tensor:
    """Seed points by farthest point sampling in each cell of a grid, starting from the cell's centre.

    Each further point is the pixel of the cell whose features differ most from those of the points chosen before. This
    finds small objects, which a regular grid of as many points misses. Ties go to the first pixel in row-major order.

    Args:
        features: [B, A, h, w].
        grid_size: g cells along each side.
        seeds_per_cell: k.

    Returns:
        float32 [B, g*g*k, 2], (x, y) as fractions of the map: the first points of all cells, then the second, ...
    """
    B, _, h, w = features.shape
    g, device = grid_size, features.device
    flat = features.float().flatten(2).transpose(1, 2)  # [B, h*w, A]
    y, x = torch.arange(h, device=device), torch.arange(w, device=device)
    cell = ((y * g // h)[:, None] * g + x * g // w).flatten().expand(B, -1)  # [B, h*w]
    centre = (torch.arange(g, dtype=torch.float32, device=device) + 0.5) / g
    row, column = (centre * h).long(), (centre * w).long()  # [g]
    seed = (row[:, None] * w + column).flatten().expand(B, -1)  # [B, g*g], the pixel at the cell's centre
    index = torch.arange(h * w, device=device).expand(B, -1)
    chosen, distance = [seed], torch.full((B, h * w), torch.inf, dtype=torch.float32, device=device)
    while len(chosen) < seeds_per_cell:
        known = flat.gather(
            1, seed.gather(1, cell)[..., None].expand_as(flat)
        )  # [B, h*w, A], features at the seed of the pixel's cell
        distance = torch.minimum(distance, (flat - known).square().sum(-1))
        farthest = distance.new_zeros(B, g * g).scatter_reduce(1, cell, distance, "amax")
        candidate = torch.where(distance >= farthest.gather(1, cell), index, h * w)
        first = torch.full_like(seed, h * w).scatter_reduce(1, cell, candidate, "amin")
        seed = torch.where(first < h * w, first, chosen[0])  # a cell without pixels repeats its centre
        chosen.append(seed)
    pixel = torch.cat(chosen, dim=1)
    x, y = (pixel % w).float(), (pixel // w).float()
    return torch.stack(((x + 0.5) / w, (y + 0.5) / h), dim=-1)
