# SPDX-License-Identifier: Apache-2.0
"""Weights of a ViT in the files that people publish: bare, or inside a checkpoint of a training run.

DINO stores `{"student": ..., "teacher": {"module.backbone.blocks.0...": ...}}`, DINOv2 `{"teacher": {"backbone. ...}}`,
MAE `{"model": ...}` with a decoder beside the encoder, Lightning `{"state_dict": {"model. ...}}`, and so on.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sohes.models.weights import WeightsError

_CONTAINERS = ("teacher", "state_dict", "model", "model_state", "module", "backbone", "student", "encoder")
"""Entries of a checkpoint that hold weights, first choice first: of teacher and student the teacher counts."""
_FIRST_WEIGHTS = ("patch_embed.proj.weight", "patch_embed.backbone.conv.weight")
"""Of a ViT whose names are timm's; what stands before says what it was wrapped in."""
_OTHERS = ("head.", "fc_norm.", "mask_token", "decoder_")
"""What published weights hold beside the ViT: a classifier, and the decoder of MAE."""


def read_vit_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a ViT in a .safetensors or .pth file by name, without containers, prefixes and decoders.

    Raises:
        WeightsError: no such file, not readable, or without weights; one line.
    """
    if not path.is_file():
        raise WeightsError(f"backbone weights not found: {path}")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # options of the run, in many checkpoints
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"backbone weights in {path} cannot be read: {reason}") from error
    return strip_prefix(find_tensors(content, path), path)


def find_tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The dictionary of tensors in what a file holds, however deep in containers."""
    seen: list[str] = []
    while isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        inner = next((name for name in _CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            if tensors:
                return tensors
            keys = ", ".join(sorted(map(str, content))[:5]) or "nothing"
            raise WeightsError(f"backbone weights in {path}{_inside(seen)}: expected tensors by name, found {keys}")
        seen.append(inner)
        content = content[inner]
    raise WeightsError(f"backbone weights in {path}: expected tensors by name, got {type(content).__name__}")


def strip_prefix(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Names without what the ViT was wrapped in, `module.backbone.` say; what is outside of that wrapper is dropped."""
    prefixes = {key.removesuffix(name) for key in state for name in _FIRST_WEIGHTS if key.endswith(name)}
    whole = {prefix for prefix in prefixes if prefix == "" or prefix.endswith(".")}
    if len(whole) > 1:
        whole = {prefix for prefix in whole if "teacher" in prefix} or whole
    if len(whole) > 1:
        names = ", ".join(repr(prefix) for prefix in sorted(whole))
        raise WeightsError(f"backbone weights in {path}: expected one ViT, found several, below {names}")
    if not whole:  # other names, such as CLIP's, are timm's to translate
        return dict(state)
    (prefix,) = whole
    stripped = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in stripped.items() if not key.startswith(_OTHERS)}


def _inside(containers: list[str]) -> str:
    return f" in {'.'.join(containers)}" if containers else ""
