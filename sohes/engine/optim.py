# SPDX-License-Identifier: Apache-2.0
"""AdamW with the parameter groups and the schedule that both training phases share."""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sohes.configs.run import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over groups of equal learning rate and weight decay.

    A parameter is of the backbone when the model's `backbone_parameters()` yields it: it learns at `backbone_factor`,
    and each layer of a ViT at `layer_decay` times the rate of the layer above it. Vectors, norms, biases and embeddings
    are not decayed.
    """
    depth = layers_above(model)
    backbone = {id(p) for p in model.backbone_parameters()}
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        factor = 1.0
        if id(parameter) in backbone:
            factor = config.backbone_factor * config.layer_decay ** depth.get(id(parameter), 0)
        decays = parameter.ndim > 1 and id(parameter) not in embeddings
        groups.setdefault((factor, config.weight_decay if decays else 0.0), []).append(parameter)
    rows = [{"params": ps, "lr_factor": factor, "weight_decay": decay} for (factor, decay), ps in groups.items()]
    return torch.optim.AdamW(rows, lr=config.learning_rate, fused=True)


def layers_above(model: nn.Module) -> dict[int, int]:
    """How many layers of its ViT lie above a parameter, by the parameter's id. [BEiT]

    None above the last norm, one above the last block, `depth` above the first, one more above patches, positions and
    class token. Parameters outside a timm ViT are not in it.
    """
    above: dict[int, int] = {}
    for vit in (module for module in model.modules() if isinstance(module, VisionTransformer)):
        depth = len(vit.blocks)
        above |= dict.fromkeys(map(id, vit.parameters()), depth + 1)
        above |= dict.fromkeys(map(id, (*vit.norm.parameters(), *vit.fc_norm.parameters(), *vit.head.parameters())), 0)
        for index, block in enumerate(vit.blocks):
            above |= dict.fromkeys(map(id, block.parameters()), depth - index)
    return above


def learning_rate_at(step: int, num_steps: int, config: OptimConfig) -> float:
    """Linear warm-up, then half a cosine from `learning_rate` down to `final_factor` of it."""
    warmup = min(config.warmup_steps, num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * cosine_between(1.0, config.final_factor, progress)


def cosine_between(start: float, end: float, progress: float) -> float:
    """`start` at progress 0, `end` at progress 1, half a cosine between."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_factor"]
