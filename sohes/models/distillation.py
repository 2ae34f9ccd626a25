# SPDX-License-Identifier: Apache-2.0
"""A ViT with the heads of self-distillation: one for the class token, one for patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.pretrain_config import DistillConfig, VitConfig


@dataclass(frozen=True, eq=False)
class Views:
    """What a network says of B large and S small crops, K prototypes.

    class_tokens: [B, C] of the large ones, normalised by the ViT's last norm. class_logits: [B + S, K]. patch_logits:
    [M, K], of the M patches asked for, in the order of the large crops.
    """

    class_tokens: Tensor
    class_logits: Tensor
    patch_logits: Tensor


ARCHITECTURE = "vit_tiny_patch16_224"
"""The timm name behind every pretrained ViT here; its sizes are then replaced."""


def vit_arguments(config: VitConfig, image_size: int) -> dict[str, object]:
    """What `timm.create_model(ARCHITECTURE, ...)` needs for a config; positions are learned at `image_size`."""
    return {
        "img_size": image_size,
        "patch_size": config.patch,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "reg_tokens": config.register_tokens,
        "dynamic_img_size": True,
        "num_classes": 0,
        "global_pool": "token",
    }


class ProjectionHead(nn.Module):
    """Three layers, a unit sphere, and prototypes of unit length [DINO]."""

    def __init__(self, channels: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """[M, C] -> cosines with the prototypes, [M, K]."""
        return F.linear(F.normalize(self.layers(tokens), dim=-1), F.normalize(self.prototypes, dim=-1))


class DistillationModel(nn.Module):
    """Student or teacher: crops in, prototypes' logits of the class token and of chosen patches out."""

    def __init__(self, vit: VisionTransformer, config: DistillConfig) -> None:
        super().__init__()
        self.vit = vit
        self.mask_token = nn.Parameter(torch.zeros(vit.embed_dim))
        sizes = (config.head_hidden, config.head_bottleneck, config.prototypes)
        self.class_head = ProjectionHead(vit.embed_dim, *sizes)
        self.patch_head = ProjectionHead(vit.embed_dim, *sizes)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """None: everything starts from random weights and learns at one rate."""
        return iter(())

    def layers(self) -> list[nn.Module]:
        """The units that `engine.compile` compiles."""
        return list(self.vit.blocks)

    def forward(self, large: Tensor, chosen: Tensor, small: Tensor | None = None, hide: bool = False) -> Views:
        """All crops in one call, so that gradients of all processes meet once.

        Args:
            large: [B, 3, G, G], normalised. small: [S, 3, L, L] or None.
            chosen: bool [B, h, w], patches of the large crops to speak of. hide: these are not seen.
        """
        patches = self.vit.patch_embed(large)  # [B, h, w, C]
        if hide:
            patches = torch.where(chosen[..., None], self.mask_token.to(patches.dtype), patches)
        tokens = self.encode(patches)
        class_tokens = tokens[:, 0]
        own = tokens[:, self.vit.num_prefix_tokens :][chosen.flatten(1)]  # [M, C]
        all_classes = class_tokens
        if small is not None:
            all_classes = torch.cat((class_tokens, self.encode(self.vit.patch_embed(small))[:, 0]))  # [B + S, C]
        return Views(class_tokens, self.class_head(all_classes), self.patch_head(own))

    def encode(self, patches: Tensor) -> Tensor:
        """Embedded patches [B, h, w, C] -> tokens [B, prefix + h*w, C]."""
        return self.vit.norm(self.vit.blocks(self.vit.norm_pre(self.vit._pos_embed(patches))))


def build_distillation_model(vit: VitConfig, distill: DistillConfig, image_size: int) -> DistillationModel:
    """A network from random weights; `image_size` is the side of a large crop in pixels."""
    network = timm.create_model(ARCHITECTURE, **vit_arguments(vit, image_size), drop_path_rate=vit.drop_path)
    return DistillationModel(network, distill)
