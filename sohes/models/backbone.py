# SPDX-License-Identifier: Apache-2.0
"""Backbones by timm name: a plain ViT inside a ViT-Adapter, or a hierarchical network."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import cast

import timm
from timm.models import eva
from timm.models._features import FeatureInfo
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from sohes.configs.model import ModelConfig
from sohes.configs.packaged import PACKAGED
from sohes.models.vit_adapter import ViTAdapter
from sohes.models.vit_weights import read_vit_state
from sohes.models.weights import WEIGHTS_FILE, WeightsError, load_strictly

STRIDES = (2, 4, 8, 16, 32)


def packaged_names() -> list[str]:
    """Names of the backbones in the package, which need no download."""
    return sorted(path.parent.name for path in PACKAGED.glob("*/config.json"))


def packaged_folder(name: str) -> Path | None:
    """The folder of a backbone in the package, or None if there is no such backbone."""
    return PACKAGED / name if name in packaged_names() else None


class HierarchicalBackbone(nn.Module):
    """A timm `features_only` network with maps of strides 4, 8, 16, 32, and possibly 2."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        info = cast(FeatureInfo, network.feature_info)  # torch types attributes of modules as Tensor | Module
        reductions = info.reduction()
        if tuple(reductions) not in (STRIDES, STRIDES[1:]):
            raise ValueError(f"backbone {name!r} has strides {reductions}, expected [(2,) 4, 8, 16, 32]")
        self.network = network
        self.channels: list[int] = info.channels()

    def forward(self, images: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """images [B, 3, H, W] -> four or five maps [B, C, h, w]. `valid` is not used."""
        return self.network(images)


def load_vit_weights(vit: VisionTransformer | eva.Eva, path: Path) -> None:
    """Load weights of timm, DINO, DINOv2, DINOv3 or MAE from a local file; see `sohes.models.vit_weights`.

    Position embeddings are resampled to the ViT's grid, patch embeddings to its patch size. Classifier heads are
    ignored.

    Raises:
        WeightsError: the file is missing or unreadable, or its keys do not fit.
    """
    state = read_vit_state(path)
    try:
        state = eva.checkpoint_filter_fn(state, vit) if isinstance(vit, eva.Eva) else checkpoint_filter_fn(state, vit)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # timm resamples while it renames, and fails for tensors of other shapes.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"weights in {path} do not fit a {type(vit).__name__}: {reason}") from error
    state = {key: value for key, value in state.items() if not key.startswith(("head.", "fc_norm."))}
    load_strictly(vit, state, str(path))


def create_timm_model(config: ModelConfig, **kwargs: object) -> nn.Module:
    """`timm.create_model` with the config's kwargs, and published weights if `backbone_weights` is "timm"."""
    pretrained = config.backbone_weights == "timm"
    try:
        return timm.create_model(config.backbone, pretrained=pretrained, **{**kwargs, **config.backbone_kwargs})
    except OSError as error:
        raise WeightsError(
            f"could not download weights of {config.backbone!r} ({type(error).__name__}); without network access, set "
            "backbone_weights to a local file"
        ) from error


def build_backbone(config: ModelConfig) -> ViTAdapter | HierarchicalBackbone:
    """The backbone of a config: a module with `channels`, one per map, and `forward(images, valid) -> maps`.

    Raises:
        WeightsError: the weights of the config are not available.
        ValueError: the network is neither a plain ViT nor one with strides (2,) 4, 8, 16, 32.
    """
    architecture = config.backbone.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {config.backbone!r}; similar names: {', '.join(near) or 'none'}")
    local = None
    if config.backbone_weights not in ("", "timm"):
        packaged = packaged_folder(config.backbone_weights)
        local = packaged / WEIGHTS_FILE if packaged else Path(config.backbone_weights)
    if not config.backbone.startswith("vit_"):
        if local is not None:
            raise ValueError(f"local backbone weights are for plain ViTs (vit_*), not {config.backbone!r}")
        network = create_timm_model(config, features_only=True)
        return HierarchicalBackbone(network, config.backbone)

    vit = create_timm_model(config, num_classes=0, global_pool="", dynamic_img_size=True)
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"backbone {config.backbone!r} is {type(vit).__name__}, expected a plain VisionTransformer")
    if local is not None:
        load_vit_weights(vit, local)
    return ViTAdapter(
        vit,
        vit_stride=config.vit_stride,
        num_interactions=config.adapter_interactions,
        num_heads=config.adapter_heads,
        num_points=config.deform_points,
        stem_channels=config.adapter_stem,
        value_ratio=config.adapter_value_ratio,
        ffn_ratio=config.adapter_ffn_ratio,
        activation_checkpointing=config.activation_checkpointing,
    )
