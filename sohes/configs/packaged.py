# SPDX-License-Identifier: Apache-2.0
"""Backbones that come with the package, and their shapes as settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PACKAGED = Path(__file__).resolve().parents[1] / "weights"
"""A folder for each backbone, in timm's form, with a model card."""

_SHAPE = ("patch_size", "embed_dim", "depth", "num_heads", "reg_tokens")


def packaged_vit(name: str, image_size: int) -> dict[str, Any]:
    """The fields of `ModelConfig` for a packaged ViT: its architecture, shape and weights.

    Args:
        image_size: side of the image that the ViT sees, in pixels; position embeddings are resampled to it.
    """
    config = json.loads((PACKAGED / name / "config.json").read_text(encoding="utf-8"))
    return {
        "backbone": config["architecture"],
        "backbone_kwargs": {"img_size": image_size, **{key: config["model_args"][key] for key in _SHAPE}},
        "backbone_weights": name,
    }
