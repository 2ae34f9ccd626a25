# SPDX-License-Identifier: Apache-2.0
"""The model: backbone, pixel decoder, mask decoder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.configs.model import ModelConfig
from sohes.models.backbone import HierarchicalBackbone, build_backbone
from sohes.models.base import TrainableModel
from sohes.models.mask_decoder import MaskDecoder
from sohes.models.mask_heads import AnchorMasks, ProjectedMasks
from sohes.models.outputs import Outputs
from sohes.models.pixel_decoder import PixelDecoder
from sohes.models.queries import LearnedQueries, SeedQueries
from sohes.models.vit_adapter import ViTAdapter

PAD_MULTIPLE = 32  # the coarsest stride


class SohesModel(TrainableModel):
    """Images in, masks with scores and ancestors out. Keeps no state between calls."""

    def __init__(
        self, backbone: ViTAdapter | HierarchicalBackbone, pixel_decoder: PixelDecoder, mask_decoder: MaskDecoder
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.mask_decoder = mask_decoder

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the timm network, without those of the adapter."""
        timm_network = self.backbone.vit if isinstance(self.backbone, ViTAdapter) else self.backbone
        return timm_network.parameters()

    @property
    def num_queries(self) -> int:
        return self.mask_decoder.queries.num_queries

    def layers(self) -> list[nn.Module]:
        layers = [*self.pixel_decoder.layers, *self.mask_decoder.layers]
        if isinstance(self.backbone, ViTAdapter):
            layers += [*self.backbone.vit.blocks, *self.backbone.injectors, *self.backbone.extractors]
        return layers

    def forward(self, images: Tensor, valid: Tensor | None = None, grid_size: int | None = None) -> Outputs:
        """Predict the masks of a batch.

        Args:
            images: float [B, 3, H, W], normalised, H and W >= 1; padded here to multiples of 32.
            valid: bool [B, H, W], False where a pixel is padding; None: no padding.
            grid_size: for seed queries, cells along each side of the image; None: as in training. No weight depends on
                it, so a larger value gives more queries.

        Returns:
            Outputs of the last decoder layer, with those of the earlier layers in `aux`.

        Raises:
            ValueError: a `grid_size` for a model with learned queries.
        """
        height, width = images.shape[2:]
        pad = (0, -width % PAD_MULTIPLE, 0, -height % PAD_MULTIPLE)
        if any(pad):
            if valid is None:
                valid = images.new_ones((images.shape[0], height, width), dtype=torch.bool)
            images, valid = F.pad(images, pad), F.pad(valid, pad)
        maps = self.backbone(images, valid)
        pixels = self.pixel_decoder(maps, images, valid)
        return self.mask_decoder(pixels, (height, width), valid, grid_size)


def build_model(config: ModelConfig) -> SohesModel:
    """The model of a config, in float32, with random weights, except for the backbone weights that the config names.

    Raises:
        sohes.models.weights.WeightsError: the backbone weights are not available.
        ValueError: sizes do not fit together.
    """
    dim = config.hidden_dim
    if dim % 4 or dim % config.num_heads:
        raise ValueError(f"hidden_dim {dim} must be divisible by 4 and by num_heads {config.num_heads}")
    if PAD_MULTIPLE % config.vit_stride:
        raise ValueError(f"vit_stride must divide {PAD_MULTIPLE}, got {config.vit_stride}")
    backbone = build_backbone(config)
    if config.mask_stride < 4 and len(backbone.channels) < 5:
        raise ValueError(
            f"backbone {config.backbone!r} has no map of stride 2, which mask_stride {config.mask_stride} needs"
        )
    pixel_decoder = PixelDecoder(
        backbone.channels,
        dim,
        config.mask_dim,
        config.mask_stride,
        num_layers=config.encoder_layers,
        num_heads=config.num_heads,
        num_points=config.deform_points,
        ffn_dim=config.encoder_ffn_dim,
        dropout=config.dropout,
    )
    if config.query_init == "seeds":
        queries: LearnedQueries | SeedQueries = SeedQueries(
            config.grid_size, config.seeds_per_cell, config.num_granularities, dim
        )
        masks: ProjectedMasks | AnchorMasks = AnchorMasks(
            pixel_decoder.finest_dim, config.affinity_dim, config.num_granularities
        )
    else:
        queries = LearnedQueries(config.num_queries, dim)
        masks = ProjectedMasks(pixel_decoder.finest_dim, config.mask_dim)
    mask_decoder = MaskDecoder(
        queries,
        masks,
        dim,
        config.mask_stride,
        num_layers=config.decoder_layers,
        num_heads=config.num_heads,
        ffn_dim=config.decoder_ffn_dim,
        dropout=config.dropout,
        ancestor_head=config.ancestor_head,
        activation_checkpointing=config.activation_checkpointing,
    )
    return SohesModel(backbone, pixel_decoder, mask_decoder).float()
