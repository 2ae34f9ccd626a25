# SPDX-License-Identifier: Apache-2.0
"""A ViT with heads for self-distillation: of the class token, of patches and of regions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.configs.pretrain import DistillConfig, VitConfig
from sohes.models.base import TrainableModel
from sohes.models.precision import no_autocast


@dataclass(frozen=True, eq=False)
class DistillationOutputs:
    """Outputs for B large and S small crops, with K prototypes.

    class_tokens: [B, C] of the large crops, after the ViT's last norm. class_logits: [B + S, K]. patch_logits: [M, K]
    of the M chosen patches, in the order of the large crops. regions: [B, R, D] of unit length, the mean patch of each
    region, projected. present: bool [B, R], False where a crop has no patch of the region and `regions` has no meaning.
    Both are None when no regions were given.
    """

    class_tokens: Tensor
    class_logits: Tensor
    patch_logits: Tensor
    regions: Tensor | None = None
    present: Tensor | None = None


ARCHITECTURE = "vit_tiny_patch16_224"
"""The timm name of every ViT pretrained here; `vit_arguments` replaces its sizes."""


def vit_arguments(config: VitConfig, image_size: int) -> dict[str, Any]:
    """Arguments of `timm.create_model(ARCHITECTURE, ...)`; position embeddings are learned at `image_size`."""
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
    """Projection head: an MLP of three layers, L2 normalisation, and prototypes of unit length. [DINO]"""

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
        """[M, C] -> cosine similarities with the prototypes, [M, K].

        In the type of the prototypes, also under autocast, since they are later divided by a small temperature.
        """
        embedded = self.layers(tokens).to(self.prototypes.dtype)
        with no_autocast(tokens.device):
            return F.linear(F.normalize(embedded, dim=-1), F.normalize(self.prototypes, dim=-1))


class RegionHead(nn.Module):
    """Projects pooled patches; the student then predicts the teacher's projection. [BYOL, DetCon]"""

    def __init__(self, channels: int, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        self.predict = nn.Sequential(nn.Linear(bottleneck, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))

    def forward(self, tokens: Tensor, is_student: bool) -> Tensor:
        """[B, R, C] -> [B, R, D] of unit length."""
        projected = F.normalize(self.project(tokens), dim=-1)
        return F.normalize(self.predict(projected), dim=-1) if is_student else projected


def pool_regions(tokens: Tensor, regions: Tensor, num_regions: int) -> tuple[Tensor, Tensor]:
    """Mean token of each region in each crop: tokens [B, L, C], regions int64 [B, L] in 0..R-1 -> [B, R, C].

    Also returns bool [B, R], True where the crop has a token of the region; means are 0 elsewhere.
    """
    belongs = F.one_hot(regions, num_regions).to(tokens.dtype)  # [B, L, R]
    counts = belongs.sum(1)  # [B, R]
    return belongs.mT @ tokens / counts.clamp_min(1)[..., None], counts > 0


class DistillationModel(TrainableModel):
    """Student or teacher: crops in, logits over prototypes of class tokens and chosen patches out."""

    def __init__(self, vit: VisionTransformer, config: DistillConfig) -> None:
        super().__init__()
        self.vit = vit
        self.mask_token = nn.Parameter(torch.zeros(vit.embed_dim))
        sizes = (config.head_hidden, config.head_bottleneck, config.prototypes)
        self.class_head = ProjectionHead(vit.embed_dim, *sizes)
        self.patch_head = ProjectionHead(vit.embed_dim, *sizes)
        self.num_regions = max(config.region_counts) if config.region_weight else 0
        if self.num_regions:
            self.region_head = RegionHead(vit.embed_dim, config.head_hidden, config.head_bottleneck)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """None: all weights start at random and have the same learning rate."""
        return iter(())

    def layers(self) -> list[nn.Module]:
        return list(self.vit.blocks)

    def forward(
        self,
        large: Tensor,
        chosen: Tensor,
        small: Tensor | None = None,
        regions: Tensor | None = None,
        is_student: bool = False,
    ) -> DistillationOutputs:
        """Outputs of all crops in one call, as DDP expects: one forward for each backward pass.

        Args:
            large: [B, 3, G, G], normalised.
            chosen: bool [B, h, w], patches of the large crops that give `patch_logits`; masked for the student.
            small: [S, 3, L, L], normalised, or None.
            regions: int64 [B, h, w], the region of every patch of the large crops, or None.
            is_student: mask the chosen patches and apply the predictor of the region head.
        """
        patches = self.vit.patch_embed(large)  # [B, h, w, C]
        if is_student:
            patches = torch.where(chosen[..., None], self.mask_token.to(patches.dtype), patches)
        tokens = self.encode(patches)
        class_tokens = tokens[:, 0]
        patch_tokens = tokens[:, self.vit.num_prefix_tokens :]  # [B, h*w, C]
        all_classes = class_tokens
        if small is not None:
            all_classes = torch.cat((class_tokens, self.encode(self.vit.patch_embed(small))[:, 0]))  # [B + S, C]
        pooled = present = None
        if regions is not None:
            means, present = pool_regions(patch_tokens, regions.flatten(1), self.num_regions)
            pooled = self.region_head(means, is_student)
        patch_logits = self.patch_head(patch_tokens[chosen.flatten(1)])  # [M, K]
        return DistillationOutputs(class_tokens, self.class_head(all_classes), patch_logits, pooled, present)

    def encode(self, patches: Tensor) -> Tensor:
        """Embedded patches [B, h, w, C] -> tokens [B, prefix + h*w, C]."""
        return self.vit.norm(self.vit.blocks(self.vit.norm_pre(self.vit._pos_embed(patches))))


def build_distillation_model(vit: VitConfig, distill: DistillConfig, image_size: int) -> DistillationModel:
    """A model with random weights; `image_size` is the side of a large crop in pixels."""
    network = timm.create_model(ARCHITECTURE, **vit_arguments(vit, image_size), drop_path_rate=vit.drop_path)
    assert isinstance(network, VisionTransformer)
    return DistillationModel(network, distill)
