# SPDX-License-Identifier: Apache-2.0
"""Settings of the model and its losses; `sohes/configs/run.py` explains the labels of sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from sohes.configs.ranges import above, at_least, between


@dataclass
class ModelConfig:
    """The segmentation model of phases 2 and 3. Defaults are the paper-scale model."""

    backbone: str = "vit_base_patch8_224.dino"
    """Name of a timm ViT (`vit_*`, gets a ViT-Adapter) or of a hierarchical timm backbone. [paper: DINO ViT-B/8]"""
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed on to `timm.create_model`, e.g. `{"depth": 4, "embed_dim": 128, "num_heads": 4}`."""
    backbone_weights: str = ""
    """Empty: random; `timm`: the published weights of that name; `sohes-micro`: those in the package, for a ViT of its
    shape; otherwise a local file with a ViT's weights."""
    vit_stride: Annotated[int, between(1, 32)] = 16
    """Pixels of the model's input per patch: 8, 16 or 32. The ViT's input is resized to match, so that an /8 ViT with
    stride 16 sees half the size. [cited]"""
    adapter_interactions: Annotated[int, at_least(1)] = 4
    """Groups of ViT blocks between which ViT and adapter exchange features. [ViT-Adapter]"""
    adapter_heads: Annotated[int, at_least(1)] = 12
    """Attention heads of injectors and extractors. [ViT-Adapter]"""
    adapter_stem: Annotated[int, at_least(1)] = 64
    """Channels of the adapter's convolutional stem. [ViT-Adapter]"""
    adapter_value_ratio: Annotated[float, above(0)] = 0.5
    """Channels of the adapter's attention values relative to the ViT's. [ViT-Adapter]"""
    adapter_ffn_ratio: Annotated[float, above(0)] = 0.25
    """Hidden channels of the extractors' feed-forward layers relative to the ViT's. [ViT-Adapter]"""
    deform_points: Annotated[int, at_least(1)] = 4
    """Sampling points per head and level of every deformable attention. [Deformable DETR]"""
    hidden_dim: Annotated[int, at_least(1)] = 256
    """Channels of pixel decoder and mask decoder, a multiple of `num_heads`. [Mask2Former]"""
    mask_dim: Annotated[int, at_least(1)] = 256
    """Channels of mask features and mask embeddings. [Mask2Former]"""
    mask_stride: Literal[1, 2, 4] = 4
    """Pixels of the input per cell of the mask maps. 4 [Mask2Former]; 2 adds the backbone's map of stride 2; 1 enlarges
    that: with `seeds`, whose masks start from the image's own colours, outlines are then as sharp as the image.
    [ours]"""
    num_heads: Annotated[int, at_least(1)] = 8
    """Attention heads of pixel and mask decoder. [Mask2Former]"""
    encoder_layers: Annotated[int, at_least(1)] = 6
    """Deformable-attention layers of the pixel decoder. [Mask2Former]"""
    encoder_ffn_dim: Annotated[int, at_least(1)] = 1024
    """Hidden channels of their feed-forward layers. [Mask2Former]"""
    decoder_layers: Annotated[int, at_least(1)] = 9
    """Layers of the mask decoder. [Mask2Former]"""
    decoder_ffn_dim: Annotated[int, at_least(1)] = 2048
    """Hidden channels of their feed-forward layers. [Mask2Former]"""
    dropout: Annotated[float, between(0, 1)] = 0.0
    """Dropout in both decoders. [Mask2Former]"""
    query_init: Literal["learned", "seeds"] = "learned"
    """`learned`: free embeddings [Mask2Former]. `seeds`: queries start from the features at points of the image, and
    masks from the similarity to those points; needs a fraction of the steps. [ours]"""
    num_queries: Annotated[int, at_least(1)] = 1000
    """With `learned`: number of queries. AR counts up to 1000 masks; UnSAM trains 2000. [ours]"""
    grid_size: Annotated[int, at_least(1)] = 16
    """With `seeds`: cells along each side of the image that have seed points. [ours]"""
    seeds_per_cell: Annotated[int, at_least(1)] = 2
    """With `seeds`: seed points per cell: its centre, then the point that differs most from those chosen. [ours]"""
    num_granularities: Annotated[int, at_least(1)] = 2
    """With `seeds`: queries per seed point, from fine to coarse. [ours]"""
    affinity_dim: Annotated[int, at_least(3)] = 16
    """With `seeds`: channels of the features whose similarity gives the first masks. [ours]"""
    ancestor_head: bool = True
    """Predict which mask is an ancestor of which. [paper]"""
    activation_checkpointing: bool = False
    """Recompute ViT blocks and decoder layers in the backward pass: less memory, about a third more time."""


@dataclass
class LossConfig:
    """Matching and losses of phases 2 and 3."""

    num_points: Annotated[int, at_least(1)] = 12544
    """Points sampled per mask for the mask losses. [sibling]"""
    num_match_points: Annotated[int, at_least(1)] = 12544
    """Points sampled per image for matching. [sibling]"""
    oversample_ratio: Annotated[float, at_least(1)] = 3.0
    """Candidate points per point that is kept, when the most uncertain are chosen. [Mask2Former]"""
    importance_ratio: Annotated[float, between(0, 1)] = 0.75
    """Share of a mask's points that are the most uncertain ones. [Mask2Former]"""
    local_ratio: Annotated[float, between(0, 1)] = 0.0
    """Share of the points, also in matching, sampled near the target masks, each mask with the same probability; the
    rest is uniform. With few points, uniform ones miss small masks. 0 [Mask2Former]; above [ours]."""
    match_layers: Literal["each", "last"] = "each"
    """`each`: every decoder layer has its own matching [Mask2Former]. `last`: all use that of the last layer. [ours]"""
    class_weight: Annotated[float, at_least(0)] = 2.0
    """Weight of the class loss, also in matching. [sibling]"""
    mask_weight: Annotated[float, at_least(0)] = 5.0
    """Weight of the pointwise binary cross-entropy, also in matching. [sibling]"""
    dice_weight: Annotated[float, at_least(0)] = 5.0
    """Weight of the dice loss, also in matching. [sibling]"""
    no_object_weight: Annotated[float, at_least(0)] = 0.1
    """Weight of unmatched queries in the class loss. [sibling]"""
    ancestor_weight: Annotated[float, at_least(0)] = 1.0
    """Weight of the ancestor loss. [ours]"""
