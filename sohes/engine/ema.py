# SPDX-License-Identifier: Apache-2.0
"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def make_teacher(student: nn.Module) -> nn.Module:
    """A frozen copy of `student` in evaluation mode."""
    teacher = copy.deepcopy(student).eval()
    return teacher.requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """teacher <- decay * teacher + (1 - decay) * student. Buffers (running statistics) are copied."""
    for model in (teacher, student):
        if isinstance(model, FSDPModule):
            model.reshard()  # a forward pass without a backward one leaves some weights joined
    averaged, current = ([_own_part(p) for p in model.parameters()] for model in (teacher, student))
    torch._foreach_lerp_(averaged, current, 1.0 - decay)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)


def ema_decay_at(step: int, decay: float) -> float:
    """The decay warmed up over the first steps, so that the teacher soon leaves its initial weights.

    min(decay, (1 + step) / (10 + step)): 0.1 at step 0, within 1 % of 0.99 after 900 steps.
    """
    return min(decay, (1 + step) / (10 + step))


def _own_part(parameter: nn.Parameter) -> torch.Tensor:
    """The part of a parameter that this process holds: all of it, unless FSDP has parted it."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
