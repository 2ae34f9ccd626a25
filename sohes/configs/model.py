# SPDX-License-Identifier: Apache-2.0
"""Settings of the model and its losses; see `sohes/configs/run.py` for the labels that say where a value comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class ModelConfig:
    """The segmentation model of phases 2 and 3. Defaults are the paper-scale model."""

    backbone: str = "vit_base_patch8_224.dino"
    """Name of a timm ViT (`vit_*`, gets a ViT-Adapter) or of a hierarchical timm backbone. [paper: DINO ViT-B/8]"""
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed on to `timm.create_model`, e.g. `{"depth": 4, "embed_dim": 128, "num_heads": 4}`."""
    backbone_weights: str = ""
    """Empty: random; `timm`: the published weights of that name; `sohes-micro`: those in the package, for a ViT of its
    shape; else a local file of a ViT's weights."""
    vit_stride: int = 16
    """Pixels of the model's input per patch; the ViT's own image is resized to fit, so that an /8 ViT sees half the
    size and acts as /16. 8, 16 or 32. [cited]"""
    adapter_interactions: int = 4
    """Groups of ViT blocks between which ViT and adapter exchange features, >= 1. [ViT-Adapter]"""
    adapter_heads: int = 12
    """Attention heads of injectors and extractors, >= 1. [ViT-Adapter]"""
    adapter_stem: int = 64
    """Channels of the adapter's convolutional stem, >= 1. [ViT-Adapter]"""
    adapter_value_ratio: float = 0.5
    """Channels of the adapter's attention values relative to the ViT's, > 0. [ViT-Adapter]"""
    adapter_ffn_ratio: float = 0.25
    """Hidden channels of the extractors' feed-forward layers relative to the ViT's, > 0. [ViT-Adapter]"""
    deform_points: int = 4
    """Points a head samples per level in every deformable attention, >= 1. [Deformable DETR]"""
    hidden_dim: int = 256
    """Channels of pixel decoder and mask decoder, >= 1, a multiple of `num_heads`. [Mask2Former]"""
    mask_dim: int = 256
    """Channels of mask features and mask embeddings, >= 1. [Mask2Former]"""
    mask_stride: Literal[1, 2, 4] = 4
    """Pixels of the input per cell of the mask maps. 4 [Mask2Former]; 2 adds the backbone's map of stride 2; 1 enlarges
    that: with `seeds`, whose masks start from the image's own colours, outlines are then as sharp as the image. [ours]
    """
    num_heads: int = 8
    """Attention heads of pixel and mask decoder, >= 1. [Mask2Former]"""
    encoder_layers: int = 6
    """Deformable-attention layers of the pixel decoder, >= 1. [Mask2Former]"""
    encoder_ffn_dim: int = 1024
    """Hidden channels of their feed-forward layers, >= 1. [Mask2Former]"""
    decoder_layers: int = 9
    """Layers of the mask decoder, >= 1. [Mask2Former]"""
    decoder_ffn_dim: int = 2048
    """Hidden channels of their feed-forward layers, >= 1. [Mask2Former]"""
    dropout: float = 0.0
    """Dropout in both decoders, 0..1. [Mask2Former]"""
    query_init: Literal["learned", "seeds"] = "learned"
    """`learned`: free embeddings [Mask2Former]. `seeds`: queries start from the features at points of the image, and
    masks as likeness with those points; learns in a fraction of the steps. [ours]"""
    num_queries: int = 1000
    """Learned queries, >= 1. AR counts up to 1000 masks; UnSAM trains 2000. [ours]"""
    grid_size: int = 16
    """Cells along each side of the image, each with seeds of its own, for `seeds`, >= 1. [ours]"""
    seeds_per_cell: int = 2
    """Seed points of a cell: its centre, then what differs most from those chosen, for `seeds`, >= 1. [ours]"""
    num_granularities: int = 2
    """Queries per seed point, from fine to coarse, for `seeds`, >= 1. [ours]"""
    affinity_dim: int = 16
    """Channels of the features in which masks of `seeds` start as likeness, >= 3. [ours]"""
    ancestor_head: bool = True
    """Predict which mask is an ancestor of which. [paper]"""
    activation_checkpointing: bool = False
    """Recompute ViT blocks and decoder layers in the backward pass: less memory, about a third more time."""


@dataclass
class LossConfig:
    """Matching and losses of phases 2 and 3."""

    num_points: int = 12544
    """Points sampled per mask for the mask losses, >= 1. [sibling]"""
    num_match_points: int = 12544
    """Points sampled per image for matching, >= 1. [sibling]"""
    oversample_ratio: float = 3.0
    """This many times more points are drawn before the most uncertain are kept, >= 1. [Mask2Former]"""
    importance_ratio: float = 0.75
    """Share of the points of a mask that are the most uncertain ones, 0..1. [Mask2Former]"""
    local_ratio: float = 0.0
    """Share of the points, also in matching, drawn near the target masks, each mask as likely as another, 0..1; what is
    left is uniform. With few points, uniform ones miss small masks. 0 [Mask2Former]; above [ours]."""
    match_layers: Literal["each", "last"] = "each"
    """`each`: every decoder layer has a matching of its own [Mask2Former]. `last`: all share the last one's. [ours]"""
    class_weight: float = 2.0
    """Weight of the class loss, also in matching, >= 0. [sibling]"""
    mask_weight: float = 5.0
    """Weight of the pointwise binary cross-entropy, also in matching, >= 0. [sibling]"""
    dice_weight: float = 5.0
    """Weight of the dice loss, also in matching, >= 0. [sibling]"""
    no_object_weight: float = 0.1
    """Weight of queries without a mask in the class loss, >= 0. [sibling]"""
    ancestor_weight: float = 1.0
    """Weight of the ancestor loss, >= 0. [ours]"""
