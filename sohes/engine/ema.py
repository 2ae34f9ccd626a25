# SPDX-License-Identifier: Apache-2.0
"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def make_teacher(student: ModuleT) -> ModuleT:
    """A frozen copy of `student` in evaluation mode."""
    teacher = copy.deepcopy(student).eval()
    return teacher.requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """teacher <- decay * teacher + (1 - decay) * student. Buffers (running statistics) are copied."""
    for model in (teacher, student):
        if isinstance(model, FSDPModule):
            model.reshard()  # a forward pass without backward leaves some weights unsharded
    averaged, current = ([_local_tensor(p) for p in model.parameters()] for model in (teacher, student))
    torch._foreach_lerp_(averaged, current, 1.0 - decay)
    for teacher_buffer, student_buffer in zip(teacher.buffers(), student.buffers(), strict=True):
        teacher_buffer.copy_(student_buffer)


def ema_decay_at(step: int, decay: float, warmup_steps: int = 0) -> float:
    """Decay of a step: rises linearly from 0 to `decay` over the first `warmup_steps` steps, then stays there."""
    return decay * min(1.0, step / warmup_steps) if warmup_steps else decay


def _local_tensor(parameter: nn.Parameter) -> torch.Tensor:
    """The shard of a parameter in this process: the whole parameter without FSDP."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
