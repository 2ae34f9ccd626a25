# SPDX-License-Identifier: Apache-2.0
"""Reads ViT weights from published files: a plain state dict, or a checkpoint of a training run.

DINO stores `{"student": ..., "teacher": {"module.backbone.blocks.0...": ...}}`, DINOv2 `{"teacher": {"backbone. ...}}`,
MAE `{"model": ...}` with encoder and decoder, Lightning `{"state_dict": {"model. ...}}`, and so on.
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
"""Entries of a checkpoint that may hold weights, in order of preference: teacher before student."""
_FIRST_WEIGHTS = ("patch_embed.proj.weight", "patch_embed.backbone.conv.weight")
"""First weights of a ViT in timm's names. The prefix before them shows which modules contain the ViT."""
_NOT_IN_VIT = ("head.", "fc_norm.", "mask_token", "decoder_")
"""Prefixes of other weights in published files: a classifier, the decoder of MAE."""


def read_vit_state(path: Path) -> dict[str, Tensor]:
    """State dict of the ViT in a .safetensors or .pth file, without containers, prefixes and decoders.

    Raises:
        WeightsError: the file is missing, unreadable or without weights; a message of one line.
    """
    if not path.is_file():
        raise WeightsError(f"backbone weights not found: {path}")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # options of the run
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"backbone weights in {path} cannot be read: {reason}") from error
    return strip_prefix(find_tensors(content, path), path)


def find_tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The dictionary of tensors in the content of a file, inside any containers."""
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
    """State dict without the prefix of the ViT, such as `module.backbone.`, and without tensors outside of it."""
    prefixes = {key.removesuffix(name) for key in state for name in _FIRST_WEIGHTS if key.endswith(name)}
    whole = {prefix for prefix in prefixes if prefix == "" or prefix.endswith(".")}
    if len(whole) > 1:
        whole = {prefix for prefix in whole if "teacher" in prefix} or whole
    if len(whole) > 1:
        names = ", ".join(repr(prefix) for prefix in sorted(whole))
        raise WeightsError(f"backbone weights in {path}: expected one ViT, found several, below {names}")
    if not whole:  # other names, such as CLIP's, are translated by timm
        return dict(state)
    (prefix,) = whole
    stripped = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in stripped.items() if not key.startswith(_NOT_IN_VIT)}


def _inside(containers: list[str]) -> str:
    return f" in {'.'.join(containers)}" if containers else ""
