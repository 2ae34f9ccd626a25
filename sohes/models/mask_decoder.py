# SPDX-License-Identifier: Apache-2.0
"""Mask decoder: queries attend to the pixels in their own mask and to each other, with predictions after each layer.

The structure is that of Mask2Former (Cheng et al., CVPR 2022), without full-size mask logits: the product with an
embedding commutes with bilinear resizing, so attention masks are computed from resized features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sohes.models.ancestor_head import AncestorHead
from sohes.models.layers import MLP, Attention, sine_position_map
from sohes.models.mask_heads import AnchorMasks, ProjectedMasks
from sohes.models.outputs import Outputs
from sohes.models.pixel_decoder import PixelFeatures, valid_cells
from sohes.models.precision import no_autocast
from sohes.models.queries import LearnedQueries, SeedQueries, sample_map


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward layer; post-norm."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.cross_attn = Attention(dim, num_heads, dropout)
        self.cross_attn_layer_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads, dropout)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, position: Tensor, source: Tensor, source_position: Tensor, attend: Tensor) -> Tensor:
        """x, position [B,Q,C]; source [B,S,C]; source_position [S,C]; attend bool [B,Q,S] -> [B,Q,C]."""
        cross = self.cross_attn(x + position, source + source_position, source, attend)
        x = self.cross_attn_layer_norm(x + self.dropout(cross))
        x = self.self_attn_layer_norm(x + self.dropout(self.self_attn(x + position, x + position, x)))
        hidden = self.dropout(F.relu(self.fc1(x)))
        return self.final_layer_norm(x + self.dropout(self.fc2(hidden)))


def attention_mask(embeddings: Tensor, features: Tensor, valid: Tensor | None) -> Tensor:
    """Where each query may attend: inside its mask, or everywhere if its mask is empty.

    Args:
        embeddings: [B, Q, E].
        features: [B, E, h*w], mask features, resized to the level. The product is computed in their type, also under
            autocast, since terms of anchor masks cancel.
        valid: bool [B, h*w] or None.

    Returns:
        bool [B, Q, h*w].
    """
    with no_autocast(features.device):
        attend = torch.bmm(embeddings.to(features.dtype), features) >= 0
    if valid is None:
        return attend | ~attend.any(dim=-1, keepdim=True)
    attend = attend & valid[:, None]
    return torch.where(attend.any(dim=-1, keepdim=True), attend, valid[:, None])


class MaskDecoder(nn.Module):
    """`PixelFeatures` in, `Outputs` of every layer out.

    Args:
        queries: gives the initial queries.
        masks: form of the masks; `AnchorMasks` need `SeedQueries`.
        num_levels: feature levels; layer i attends to level i modulo `num_levels`, coarse first.
    """

    def __init__(
        self,
        queries: LearnedQueries | SeedQueries,
        masks: ProjectedMasks | AnchorMasks,
        dim: int,
        mask_stride: int,
        *,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        ancestor_head: bool,
        activation_checkpointing: bool,
        num_levels: int = 3,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.mask_stride = mask_stride
        self.activation_checkpointing = activation_checkpointing
        self.queries = queries
        self.masks = masks
        self.level_embed = nn.Embedding(num_levels, dim)
        self.layers = nn.ModuleList([DecoderLayer(dim, num_heads, ffn_dim, dropout) for _ in range(num_layers)])
        self.layernorm = nn.LayerNorm(dim)
        self.mask_embedder = MLP(dim, dim, masks.num_outputs, 3)
        last = self.mask_embedder[-1]
        if isinstance(masks, AnchorMasks) and isinstance(last, nn.Linear):  # masks start as similarity to the anchors
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.class_predictor = nn.Linear(dim, 2)
        self.ancestor_head = AncestorHead(dim) if ancestor_head else None

    def forward(
        self,
        pixels: PixelFeatures,
        image_size: tuple[int, int],
        valid: Tensor | None = None,
        grid_size: int | None = None,
    ) -> Outputs:
        """Predictions of all layers.

        Args:
            image_size: (H, W) before padding.
            valid: bool [B, H', W'] of the padded batch, or None.
            grid_size: see `SohesModel.forward`.
        """
        shapes = [(x.shape[2], x.shape[3]) for x in pixels.levels]
        positions = [sine_position_map(h, w, self.dim, pixels.fine.device) for h, w in shapes]
        sources = [
            x.flatten(2).transpose(1, 2) + embed  # [B, h*w, C]
            for x, embed in zip(pixels.levels, self.level_embed.weight, strict=True)
        ]
        valid_levels: Sequence[Tensor | None] = [None] * len(shapes) if valid is None else valid_cells(valid, shapes)
        features = self.masks.maps(pixels)  # [B, E, h, w]
        if isinstance(self.masks, AnchorMasks):
            g = features[:, : self.masks.affinity_dim]
            start = self.queries(pixels, g, grid_size)
            affinity = sample_map(g, start.anchors)  # [B, Q, A]
        elif grid_size is not None:
            raise ValueError(f"grid_size {grid_size} is for models with seed queries, this one has learned queries")
        else:
            start = self.queries(pixels)
        with torch.no_grad():
            pooled = F.avg_pool2d(features, 4 // self.mask_stride) if self.mask_stride < 4 else features
            small = [
                F.interpolate(pooled, size=shape, mode="bilinear", align_corners=False).flatten(2) for shape in shapes
            ]

        x = start.content  # [B, Q, C]
        normed: list[Tensor] = []
        embeddings: list[Tensor] = []

        def predict(x: Tensor) -> None:
            normed.append(self.layernorm(x))
            outputs = self.mask_embedder(normed[-1])
            if isinstance(self.masks, AnchorMasks):
                embeddings.append(self.masks.embeddings(outputs, start.anchors, affinity))
            else:
                embeddings.append(self.masks.embeddings(outputs))

        predict(x)
        for index, layer in enumerate(self.layers):
            level = index % len(shapes)
            attend = attention_mask(embeddings[-1].detach(), small[level], valid_levels[level])
            arguments = (x, start.position, sources[level], positions[level], attend)
            if self.activation_checkpointing and self.training:
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
            predict(x)
        return self.collect(torch.stack(normed), embeddings, features, image_size)

    def collect(
        self, normed: Tensor, embeddings: list[Tensor], features: Tensor, image_size: tuple[int, int]
    ) -> Outputs:
        """Apply class and ancestor heads to all layers at once; normed [layers + 1, B, Q, C]."""
        rows, columns = (-(-side // self.mask_stride) for side in image_size)
        features = features[:, :, :rows, :columns]
        class_logits = self.class_predictor(normed)  # [layers + 1, B, Q, 2]
        ancestor = [None] * len(embeddings) if self.ancestor_head is None else self.ancestor_head(normed)
        layers = [
            Outputs(c, e, features, a, image_size, self.mask_stride)
            for c, e, a in zip(class_logits, embeddings, ancestor, strict=True)
        ]
        return replace(layers[-1], aux=layers[:-1])
