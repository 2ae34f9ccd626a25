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


def ema_decay_at(step: int, decay: float, warmup_steps: int = 0) -> float:
    """The decay of a step: `decay`, after a linear rise over the first `warmup_steps` steps, 0 at step 0."""
    return decay * min(1.0, step / warmup_steps) if warmup_steps else decay


def _own_part(parameter: nn.Parameter) -> torch.Tensor:
    """The part of a parameter that this process holds: all of it, unless FSDP has parted it."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
