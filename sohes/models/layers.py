# SPDX-License-Identifier: Apache-2.0
"""Small layers of the decoders: attention, MLP, sine position embedding, group norm."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or the greatest common divisor of 32 and `channels`."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def sine_position(coords: Tensor, num_channels: int) -> Tensor:
    """Sine embedding of points, as in DETR and Mask2Former.

    Args:
        coords: float [..., 2], (x, y) as a fraction of the map, 0..1.
        num_channels: even; half describe y (first), half x. Channel pairs (sin, cos) share a frequency.

    Returns:
        float [..., num_channels].
    """
    half = num_channels // 2
    index = torch.arange(half, device=coords.device, dtype=torch.float32)
    frequency = 10000.0 ** (2.0 * torch.div(index, 2, rounding_mode="floor") / half)  # [C/2]
    angle = coords.float().flip(-1)[..., None] * (2.0 * math.pi) / frequency  # [..., 2 (y, x), C/2]
    pairs = torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1)  # [..., 2, C/4, 2]
    return pairs.flatten(-3)


def sine_position_map(height: int, width: int, num_channels: int, device: torch.device) -> Tensor:
    """Sine embedding of every cell of a map, row-major: float [h*w, C].

    Cell i of n has the coordinate (i + 1) / n: Mask2Former counts cells from one, and its weights expect that.
    """
    y = torch.arange(1, height + 1, device=device, dtype=torch.float32) / height
    x = torch.arange(1, width + 1, device=device, dtype=torch.float32) / width
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # [h, w, 2]
    return sine_position(grid, num_channels).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention with separate projections of queries, keys, values and output."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} must be divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None = None) -> Tensor:
        """query [B,Q,C], key and value [B,S,C], attend bool [B,Q,S] (True: may attend) -> [B,Q,C]."""
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, K, Q or S, D]
            for x in (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        )
        mask = None if attend is None else attend[:, None]  # [B, 1, Q, S]
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)  # [B, K, Q, D]
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Sequential):
    """`num_layers` linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(dims):
            layers += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(*layers[:-1])
