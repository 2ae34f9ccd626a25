# SPDX-License-Identifier: Apache-2.0
"""Where queries come from: free embeddings, or the features at a grid of anchor points."""

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


class LearnedQueries(nn.Module):
    """Two free embeddings per query, as in Mask2Former."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.randn(num_queries, dim))
        self.position = nn.Parameter(torch.randn(num_queries, dim))

    def forward(self, pixels: PixelFeatures) -> Queries:
        """Equal for every image of the batch."""
        batch = pixels.fine.shape[0]
        return Queries(self.content.expand(batch, -1, -1), self.position.expand(batch, -1, -1))


def grid_anchors(grid_size: int, num_granularities: int) -> Tensor:
    """Anchor of each query, (x, y) as fractions of the image: float [g*g*m, 2]; granularity varies fastest."""
    centres = (torch.arange(grid_size) + 0.5) / grid_size
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).flatten(0, 1)  # [g*g, 2]
    return grid.repeat_interleave(num_granularities, dim=0)


def sample_map(features: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of features [B, C, h, w] at points [Q, 2], (x, y) as fractions -> [B, Q, C]."""
    grid = (points * 2.0 - 1.0)[None, None].expand(features.shape[0], -1, -1, -1)  # [B, 1, Q, 2]
    values = F.grid_sample(features, grid.to(features.dtype), padding_mode="border", align_corners=False)
    return values[:, :, 0].transpose(1, 2)


class GridQueries(nn.Module):
    """One query per anchor point and granularity. [ours]

    A query starts as the image's own feature at its anchor plus an embedding of its granularity, and carries the sine
    position of its anchor, which is the form keys carry: it knows at step 0 where it is and what is there.
    """

    def __init__(self, grid_size: int, num_granularities: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("anchors", grid_anchors(grid_size, num_granularities), persistent=False)
        self.granularity = nn.Parameter(torch.randn(num_granularities, dim))
        self.project = nn.Linear(dim, dim)
        self.dim = dim

    def forward(self, pixels: PixelFeatures) -> Queries:
        """Content from the finest map."""
        features = self.project(sample_map(pixels.fine, self.anchors))  # [B, Q, C]
        repeats = self.anchors.shape[0] // self.granularity.shape[0]
        content = features + self.granularity.repeat(repeats, 1)
        position = sine_position(self.anchors, self.dim)  # [Q, C]
        return Queries(content, position.expand(content.shape[0], -1, -1))
