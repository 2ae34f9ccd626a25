# SPDX-License-Identifier: Apache-2.0
"""Where queries come from: free embeddings, or the features at seed points of the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.models.layers import sine_position
from sohes.models.pixel_decoder import PixelFeatures


@dataclass(frozen=True)
class Queries:
    """The start of the mask decoder."""

    content: Tensor
    """[B, Q, C]."""
    position: Tensor
    """[B, Q, C], added wherever queries attend."""
    anchors: Tensor | None = None
    """float32 [B, Q, 2], (x, y) as fractions of the image; None for learned queries."""


class LearnedQueries(nn.Module):
    """Two free embeddings per query, as in Mask2Former."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.content = nn.Parameter(torch.randn(num_queries, dim))
        self.position = nn.Parameter(torch.randn(num_queries, dim))

    def forward(self, pixels: PixelFeatures) -> Queries:
        """Equal for every image of the batch."""
        batch = pixels.fine.shape[0]
        return Queries(self.content.expand(batch, -1, -1), self.position.expand(batch, -1, -1))


class SeedQueries(nn.Module):
    """One query per seed point and granularity. [ours]

    A query starts as the image's own feature at its seed plus an embedding of its granularity, and carries the sine
    position of its seed, which is the form keys carry: it knows from the first step where it is and what is there.
    """

    def __init__(self, grid_size: int, seeds_per_cell: int, num_granularities: int, dim: int) -> None:
        super().__init__()
        self.grid_size, self.seeds_per_cell = grid_size, seeds_per_cell
        self.num_queries = grid_size**2 * seeds_per_cell * num_granularities
        self.granularity = nn.Parameter(torch.randn(num_granularities, dim))
        self.project = nn.Linear(dim, dim)

    def forward(self, pixels: PixelFeatures, likeness: Tensor, grid_size: int | None = None) -> Queries:
        """likeness: [B, A, h, w], the features in which the seeds of a cell are to differ. grid_size: see the model."""
        seeds = find_seeds(likeness, grid_size or self.grid_size, self.seeds_per_cell)  # [B, S, 2]
        features = self.project(sample_map(pixels.fine, seeds))  # [B, S, C]
        num_granularities, dim = self.granularity.shape
        content = (features[:, :, None] + self.granularity).flatten(1, 2)  # [B, Q = S*m, C]
        anchors = seeds.repeat_interleave(num_granularities, dim=1)  # [B, Q, 2]
        return Queries(content, sine_position(anchors, dim), anchors)


def sample_map(features: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of features [B, C, h, w] at points [B, P, 2], (x, y) as fractions -> [B, P, C]."""
    dtype = torch.promote_types(features.dtype, points.dtype)  # half types would move the points
    grid = (points * 2.0 - 1.0)[:, None].to(dtype)  # [B, 1, P, 2]
    return F.grid_sample(features.to(dtype), grid, padding_mode="border", align_corners=False)[:, :, 0].transpose(1, 2)


@torch.no_grad()
def find_seeds(likeness: Tensor, grid_size: int, seeds_per_cell: int) -> Tensor:
    """Points that stand for an image: in each cell of a grid its centre, then whatever differs most from those chosen.

    A regular grid alone misses what lies between its points; farthest points within each cell find small things at
    no more queries than a grid of twice the density. Ties go to the upper left pixel.

    Args:
        likeness: [B, A, h, w].
        grid_size: g cells along each side.
        seeds_per_cell: k.

    Returns:
        float32 [B, g*g*k, 2], (x, y) as fractions of the map; seeds of one round after the other.
    """
    B, _, h, w = likeness.shape
    g, device = grid_size, likeness.device
    flat = likeness.float().flatten(2).transpose(1, 2)  # [B, h*w, A]
    y, x = torch.arange(h, device=device), torch.arange(w, device=device)
    cell = ((y * g // h)[:, None] * g + x * g // w).flatten().expand(B, -1)  # [B, h*w]
    centre = (torch.arange(g, dtype=torch.float32, device=device) + 0.5) / g
    row, column = (centre * h).long(), (centre * w).long()  # [g]
    seed = (row[:, None] * w + column).flatten().expand(B, -1)  # [B, g*g], pixel of the cell's centre
    index = torch.arange(h * w, device=device).expand(B, -1)
    chosen, distance = [seed], torch.full((B, h * w), torch.inf, dtype=torch.float32, device=device)
    while len(chosen) < seeds_per_cell:
        known = flat.gather(1, seed.gather(1, cell)[..., None].expand_as(flat))  # [B, h*w, A], seed of own cell
        distance = torch.minimum(distance, (flat - known).square().sum(-1))
        farthest = distance.new_zeros(B, g * g).scatter_reduce(1, cell, distance, "amax")
        candidate = torch.where(distance >= farthest.gather(1, cell), index, h * w)
        first = torch.full_like(seed, h * w).scatter_reduce(1, cell, candidate, "amin")
        seed = torch.where(first < h * w, first, chosen[0])  # a cell without a pixel keeps its centre
        chosen.append(seed)
    pixel = torch.cat(chosen, dim=1)
    x, y = (pixel % w).float(), (pixel // w).float()
    return torch.stack(((x + 0.5) / w, (y + 0.5) / h), dim=-1)
