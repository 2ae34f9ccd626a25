# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention as a layer, built on `sohes.ops.ms_deform_attn_fused`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sohes.ops.ms_deform_attn_fused import ms_deform_attn_fused


def reference_points(shapes: list[tuple[int, int]], device: torch.device) -> Tensor:
    """Cell centres of every level as fractions of the map: float [sum(h*w), 2] in (x, y)."""
    points = []
    for height, width in shapes:
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        points.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))  # [h*w, 2]
    return torch.cat(points)


class MSDeformAttn(nn.Module):
    """Attention of each query to a few learned points around its reference point, on every level (Deformable DETR).

    Parameter names and initialisation are those of Deformable DETR, so that published weights load: initial offsets
    form a star, with one direction per head and one radius per point, and all weights are equal.

    Args:
        dim: channels of queries and of the output.
        num_heads, num_levels, num_points: K, L and P of the operator.
        value_dim: channels of the projected values; default `dim`. ViT-Adapter uses half of it.
    """

    def __init__(
        self, dim: int, num_heads: int, num_levels: int, num_points: int, value_dim: int | None = None
    ) -> None:
        super().__init__()
        value_dim = dim if value_dim is None else value_dim
        if value_dim % num_heads:
            raise ValueError(f"value_dim {value_dim} must be divisible by num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, value_dim)
        self.output_proj = nn.Linear(value_dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise with star-shaped offsets, equal attention weights and Xavier projections."""
        theta = torch.arange(self.num_heads, dtype=torch.float32) * (2.0 * math.pi / self.num_heads)  # [K]
        star = torch.stack((theta.cos(), theta.sin()), dim=-1)  # [K, 2]
        star = star / star.abs().amax(dim=-1, keepdim=True)
        ring = torch.arange(1, self.num_points + 1)  # [P]
        bias = star[:, None, None, :] * ring[None, None, :, None]  # [K, 1, P, 2]
        bias = bias.expand(-1, self.num_levels, -1, -1)  # [K, L, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.reshape(-1))
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        source: Tensor,
        shapes: list[tuple[int, int]],
        valid: Tensor | None = None,
    ) -> Tensor:
        """The attended values of each query.

        Args:
            query: [B, Q, C], including its position embedding.
            reference: float [Q, 2], reference points (x, y) as fractions of the map.
            source: [B, S, C], the flattened levels, concatenated.
            shapes: (height, width) of each level, S = sum(h*w).
            valid: bool [B, S], False where the source is padding, whose values are set to zero.

        Returns:
            [B, Q, C].
        """
        B, Q, _ = query.shape
        K, L, P = self.num_heads, self.num_levels, self.num_points
        value = self.value_proj(source)  # [B, S, K*D]
        if valid is not None:
            value = value.masked_fill(~valid[..., None], 0.0)
        value = value.unflatten(-1, (K, -1))  # [B, S, K, D]
        offsets = self.sampling_offsets(query).view(B, Q, K, L, P, 2)
        logits = self.attention_weights(query).view(B, Q, K, L, P)
        out = ms_deform_attn_fused(value, shapes, reference, offsets, logits)  # [B, Q, K*D]
        return self.output_proj(out)
