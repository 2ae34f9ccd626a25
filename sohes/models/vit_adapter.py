# SPDX-License-Identifier: Apache-2.0
"""ViT-Adapter: a plain ViT that exchanges features with a convolutional pyramid (Chen et al., ICLR 2023)."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sohes.models.layers import group_norm
from sohes.models.ms_deform_attn_module import MSDeformAttn, reference_points

Shapes = list[tuple[int, int]]


def conv_norm_act(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """3x3 convolution, group norm, ReLU.

    Group norm instead of the original's batch norm [ours], so that features do not depend on the rest of the batch.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        group_norm(out_channels),
        nn.ReLU(),
    )


class SpatialPrior(nn.Module):
    """A small convolutional pyramid: a map of stride 2, and maps of strides 4, 8, 16, 32 projected to `dim`."""

    def __init__(self, stem_channels: int, dim: int) -> None:
        super().__init__()
        s = stem_channels
        self.stem = nn.Sequential(conv_norm_act(3, s, 2), conv_norm_act(s, s, 1), conv_norm_act(s, s, 1))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.down = nn.ModuleList(
            [conv_norm_act(s, 2 * s, 2), conv_norm_act(2 * s, 4 * s, 2), conv_norm_act(4 * s, 4 * s, 2)]
        )
        self.project = nn.ModuleList([nn.Conv2d(c, dim, 1) for c in (s, 2 * s, 4 * s, 4 * s)])

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> [B, stem, H/2, W/2] and four maps [B, C, H/4, W/4] .. [B, C, H/32, W/32]."""
        finest = self.stem(images)
        maps = [self.pool(finest)]
        for down in self.down:
            maps.append(down(maps[-1]))
        return [finest, *(project(x) for project, x in zip(self.project, maps, strict=True))]


class ConvFFN(nn.Module):
    """Feed-forward layer with a depthwise 3x3 convolution over each level of the flattened pyramid."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, int(dim * ratio))
        self.fc1 = nn.Linear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, shapes: Shapes) -> Tensor:
        """[B, S, C] -> [B, S, C]."""
        hidden = self.fc1(tokens)
        levels = [self.depthwise(x).flatten(2).transpose(1, 2) for x in split_levels(hidden, shapes)]
        return self.fc2(F.gelu(torch.cat(levels, dim=1)))


class Injector(nn.Module):
    """ViT tokens attend to the pyramid. `gamma` starts at zero, so that at first the ViT works as pretrained."""

    def __init__(self, dim: int, num_heads: int, num_points: int, value_ratio: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim)
        self.source_norm = nn.LayerNorm(dim)
        self.attn = MSDeformAttn(dim, num_heads, 3, num_points, int(dim * value_ratio))
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, patches: Tensor, reference: Tensor, pyramid: Tensor, shapes: Shapes) -> Tensor:
        """patches [B, h*w, C], pyramid [B, S, C] -> patches [B, h*w, C]."""
        return patches + self.gamma * self.attn(self.query_norm(patches), reference, self.source_norm(pyramid), shapes)


class Extractor(nn.Module):
    """The pyramid attends to the ViT tokens, followed by a convolutional feed-forward layer."""

    def __init__(self, dim: int, num_heads: int, num_points: int, value_ratio: float, ffn_ratio: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim)
        self.source_norm = nn.LayerNorm(dim)
        self.attn = MSDeformAttn(dim, num_heads, 1, num_points, int(dim * value_ratio))
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = ConvFFN(dim, ffn_ratio)

    def forward(
        self, pyramid: Tensor, reference: Tensor, shapes: Shapes, patches: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """pyramid [B, S, C], patches [B, h*w, C] -> pyramid [B, S, C]."""
        pyramid = pyramid + self.attn(self.query_norm(pyramid), reference, self.source_norm(patches), [grid])
        return pyramid + self.ffn(self.ffn_norm(pyramid), shapes)


def split_levels(tokens: Tensor, shapes: Shapes) -> list[Tensor]:
    """[B, sum(h*w), C] -> one [B, C, h, w] per level."""
    parts = tokens.split([h * w for h, w in shapes], dim=1)
    return [x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(parts, shapes, strict=True)]


class ViTAdapter(nn.Module):
    """A timm ViT with injectors and extractors between groups of its blocks; gives maps of strides 2, 4, 8, 16, 32.

    Args:
        vit: its parameters and operations are not changed.
        vit_stride: pixels of the input image per patch; the image is resized accordingly for the ViT.
        num_interactions: groups of blocks, each with an injector and an extractor; two more extractors follow.
        activation_checkpointing: recompute the ViT's blocks in the backward pass to save memory.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        vit_stride: int,
        num_interactions: int,
        num_heads: int,
        num_points: int,
        stem_channels: int,
        value_ratio: float,
        ffn_ratio: float,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        dim = vit.embed_dim
        self.vit = vit
        self.vit_stride = vit_stride
        self.activation_checkpointing = activation_checkpointing
        self.channels = [stem_channels] + [dim] * 4
        depth = len(vit.blocks)
        if not 1 <= num_interactions <= depth:
            raise ValueError(f"num_interactions must be 1..{depth} (the ViT's depth), got {num_interactions}")
        bounds = [round(i * depth / num_interactions) for i in range(num_interactions + 1)]
        self.groups = list(itertools.pairwise(bounds))
        self.prior = SpatialPrior(stem_channels, dim)
        self.level_embed = nn.Parameter(torch.randn(3, dim))
        attn = (dim, num_heads, num_points, value_ratio)
        self.injectors = nn.ModuleList([Injector(*attn) for _ in self.groups])
        self.extractors = nn.ModuleList([Extractor(*attn, ffn_ratio) for _ in range(num_interactions + 2)])
        self.up = nn.ConvTranspose2d(dim, dim, 2, 2)
        self.norms = nn.ModuleList([group_norm(dim) for _ in range(4)])

    def forward(self, images: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """images [B, 3, H, W] with H and W multiples of 32; valid bool [B, H, W] -> five maps [B, C, h, w]."""
        c2, c4, *coarse = self.prior(images)  # strides 2; 4; 8, 16, 32
        shapes = [(x.shape[2], x.shape[3]) for x in coarse]
        levels = [x.flatten(2).transpose(1, 2) + e for x, e in zip(coarse, self.level_embed, strict=True)]
        pyramid = torch.cat(levels, dim=1)  # [B, S, C]

        tokens, grid = self.embed(images)  # [B, prefix + h*w, C]
        attend = None if valid is None else self.attention_mask(valid, grid)
        num_prefix = tokens.shape[1] - grid[0] * grid[1]
        vit_reference = reference_points([grid], images.device)  # [h*w, 2]
        pyramid_reference = reference_points(shapes, images.device)  # [S, 2]
        for (start, stop), injector, extractor in zip(self.groups, self.injectors, self.extractors, strict=False):
            prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
            patches = injector(patches, vit_reference, pyramid, shapes)
            tokens = self.run_blocks(start, stop, torch.cat((prefix, patches), dim=1), attend)
            pyramid = extractor(pyramid, pyramid_reference, shapes, tokens[:, num_prefix:], grid)
        patches = self.vit.norm(tokens)[:, num_prefix:]
        for extractor in self.extractors[len(self.groups) :]:
            pyramid = extractor(pyramid, pyramid_reference, shapes, patches, grid)

        coarse = split_levels(pyramid, shapes)
        maps = [c4 + self.up(coarse[0]), *coarse]
        vit_map = patches.transpose(1, 2).unflatten(2, grid)  # [B, C, h, w]
        return [c2] + [
            norm(x + F.interpolate(vit_map, size=x.shape[2:], mode="bilinear", align_corners=False))
            for norm, x in zip(self.norms, maps, strict=True)
        ]

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch and prefix tokens with positions, as in timm's forward pass, and the size (h, w) of the patch grid."""
        grid = (images.shape[2] // self.vit_stride, images.shape[3] // self.vit_stride)
        patch = self.vit.patch_embed.patch_size
        size = (grid[0] * patch[0], grid[1] * patch[1])
        if size != images.shape[2:]:
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        tokens = self.vit._pos_embed(self.vit.patch_embed(images))
        return self.vit.norm_pre(self.vit.patch_drop(tokens)), grid

    def attention_mask(self, valid: Tensor, grid: tuple[int, int]) -> Tensor:
        """bool [B, 1, 1, prefix + h*w]: tokens may attend to prefix tokens and to patches with a valid pixel."""
        patches = F.adaptive_max_pool2d(valid[:, None].float(), grid).flatten(1) > 0  # [B, h*w]
        return F.pad(patches, (self.vit.num_prefix_tokens, 0), value=True)[:, None, None]

    def run_blocks(self, start: int, stop: int, tokens: Tensor, attend: Tensor | None) -> Tensor:
        """Blocks start..stop-1 of the ViT on [B, prefix + h*w, C]."""
        for block in self.vit.blocks[start:stop]:
            run = block if attend is None else partial(block, attn_mask=attend)
            if self.activation_checkpointing and self.training:
                tokens = checkpoint(run, tokens, use_reentrant=False)
            else:
                tokens = run(tokens)
        return tokens
