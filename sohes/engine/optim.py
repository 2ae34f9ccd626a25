# SPDX-License-Identifier: Apache-2.0
"""AdamW with parameter groups, and the learning rate schedule, of all training phases."""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sohes.configs.run import OptimConfig
from sohes.models.base import TrainableModel


def build_optimizer(model: TrainableModel, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with one parameter group per learning rate and weight decay.

    Parameters in `model.backbone_parameters()` have their learning rate multiplied by `backbone_factor`, and by
    `layer_decay` for each layer of the ViT above them. Vectors, norms, biases and embeddings have no weight decay.
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
    """Number of ViT layers above a parameter, keyed by `id(parameter)`: the exponent of layer decay. [BEiT]

    0 for the last norm, 1 for the last block, `depth` for the first block, `depth` + 1 for patch embedding, positions
    and class token. Parameters outside a timm ViT have no entry.
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
    """Learning rate of a step: linear warm-up, then a cosine from `learning_rate` to `final_factor` of it."""
    warmup = min(config.warmup_steps, num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * cosine_between(1.0, config.final_factor, progress)


def cosine_between(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at progress 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group to `learning_rate` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_factor"]
