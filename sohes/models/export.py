# SPDX-License-Identifier: Apache-2.0
"""Saves a trained ViT in timm's folder format, for `timm.create_model(f"local-dir:{folder}", ...)`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer

from sohes.data.transforms import IMAGE_MEAN, IMAGE_STD
from sohes.models.weights import write_model


def save_vit(
    folder: Path,
    vit: VisionTransformer,
    architecture: str,
    arguments: Mapping[str, object],
    dtype: torch.dtype | None = None,
) -> None:
    """Write `model.safetensors` and `config.json`; each file appears complete or not at all.

    Args:
        architecture: timm name of the model.
        arguments: of `timm.create_model`, besides the name; JSON values.
        dtype: of the stored weights; None keeps the model's.
    """
    state = {key: value.to(dtype=dtype or value.dtype) for key, value in vit.state_dict().items()}
    side = arguments.get("img_size", vit.patch_embed.img_size[0])
    config = {
        "architecture": architecture,
        "num_classes": vit.num_classes,
        "num_features": vit.num_features,
        "model_args": dict(arguments),
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "mean": IMAGE_MEAN,
            "std": IMAGE_STD,
            "interpolation": "bicubic",
            "num_classes": vit.num_classes,
            "first_conv": "patch_embed.proj",
        },
    }
    write_model(folder, state, config)
