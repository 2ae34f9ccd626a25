# SPDX-License-Identifier: Apache-2.0
"""Pixel decoder: deformable attention over strides 8, 16, 32, then a feature pyramid up to stride 4 or 2.

The structure is that of Mask2Former (Cheng et al., CVPR 2022), with the parameter names of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.models.layers import group_norm, sine_position_map
from sohes.models.ms_deform_attn_module import MSDeformAttn, reference_points
from sohes.models.vit_adapter import Shapes, conv_norm_act, split_levels


@dataclass(frozen=True)
class PixelFeatures:
    """Feature maps for the mask decoder."""

    levels: list[Tensor]
    """[B, C, h, w] of strides 32, 16 and 8, in this order."""
    fine: Tensor
    """[B, C, H/4, W/4]."""
    finest: Tensor
    """[B, M, h, w], the finest learned map: of stride 2, or `fine` for masks of stride 4."""
    colours: Tensor
    """[B, 3, H/s, W/s], the image, downsampled to the stride s of the masks."""


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then a feed-forward layer; post-norm."""

    def __init__(
        self, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(dim, num_heads, num_levels, num_points)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, position: Tensor, reference: Tensor, shapes: Shapes, valid: Tensor | None
    ) -> Tensor:
        """tokens [B, S, C], position [S, C], reference [S, 2] -> tokens [B, S, C]."""
        attended = self.self_attn(tokens + position, reference, tokens, shapes, valid)
        tokens = self.self_attn_layer_norm(tokens + self.dropout(attended))
        hidden = self.dropout(F.relu(self.fc1(tokens)))
        return self.final_layer_norm(tokens + self.dropout(self.fc2(hidden)))


class PixelDecoder(nn.Module):
    """Backbone maps in, `PixelFeatures` out.

    Args:
        channels: of the backbone maps, with strides (2,) 4, 8, 16, 32; stride 2 is needed for `mask_stride` below 4.
        dim: C, channels of the output levels.
        mask_dim: M, channels of the map of stride 2.
        mask_stride: 4, 2 or 1; for 1, the learned map of stride 2 is upsampled.
    """

    def __init__(
        self,
        channels: list[int],
        dim: int,
        mask_dim: int,
        mask_stride: int,
        *,
        num_layers: int,
        num_heads: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        fine, coarse = channels[-4], channels[-3:]
        self.dim = dim
        self.input_projections = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(c, dim, 1), group_norm(dim)) for c in reversed(coarse)]
        )
        self.level_embed = nn.Parameter(torch.randn(len(coarse), dim))
        self.layers = nn.ModuleList(
            [EncoderLayer(dim, num_heads, len(coarse), num_points, ffn_dim, dropout) for _ in range(num_layers)]
        )
        self.adapter_1 = nn.Sequential(nn.Conv2d(fine, dim, 1, bias=False), group_norm(dim))
        self.layer_1 = conv_norm_act(dim, dim, 1)
        self.mask_stride = mask_stride
        if mask_stride < 4:
            self.adapter_0 = nn.Sequential(nn.Conv2d(channels[0], mask_dim, 1, bias=False), group_norm(mask_dim))
            self.reduce_0 = nn.Conv2d(dim, mask_dim, 1)
            self.layer_0 = conv_norm_act(mask_dim, mask_dim, 1)
        self.finest_dim = mask_dim if mask_stride < 4 else dim

    def forward(self, maps: list[Tensor], images: Tensor, valid: Tensor | None = None) -> PixelFeatures:
        """maps: [B, c, h, w] from fine to coarse, as in `channels`; images: [B, 3, H, W]; valid: bool [B, H, W]."""
        fine, coarse = maps[-4], maps[-3:]
        coarse = [project(x) for project, x in zip(self.input_projections, reversed(coarse), strict=True)]
        shapes = [(x.shape[2], x.shape[3]) for x in coarse]
        device = fine.device
        position = torch.cat(
            [sine_position_map(h, w, self.dim, device) + e for (h, w), e in zip(shapes, self.level_embed, strict=True)]
        )  # [S, C]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in coarse], dim=1)  # [B, S, C]
        valid_tokens = None if valid is None else torch.cat(valid_cells(valid, shapes), dim=1)  # [B, S]
        reference = reference_points(shapes, device)
        for layer in self.layers:
            tokens = layer(tokens, position, reference, shapes, valid_tokens)
        levels = split_levels(tokens, shapes)
        fine = self.layer_1(self.adapter_1(fine) + upsample_like(levels[-1], fine))
        finest = fine
        if self.mask_stride < 4:
            finest = self.layer_0(self.adapter_0(maps[0]) + upsample_like(self.reduce_0(fine), maps[0]))
        colours = F.avg_pool2d(images, self.mask_stride) if self.mask_stride > 1 else images
        return PixelFeatures(levels, fine, finest, colours)


def upsample_like(coarse: Tensor, like: Tensor) -> Tensor:
    """[B, C, h', w'] -> [B, C, h, w], bilinear, to the size of `like`; unchanged if sizes agree."""
    size = like.shape[2:]
    if coarse.shape[2:] == size:
        return coarse
    return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)


def valid_cells(valid: Tensor, shapes: Shapes) -> list[Tensor]:
    """bool [B, H, W] -> per level bool [B, h*w]: cells with at least one valid pixel."""
    dense = valid[:, None].float()  # [B, 1, H, W]
    return [F.adaptive_max_pool2d(dense, shape).flatten(1) > 0 for shape in shapes]
