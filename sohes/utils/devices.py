# SPDX-License-Identifier: Apache-2.0
"""The device that a command or a module runs on; the only place that chooses one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import torch

from sohes.utils.errors import SohesError

DeviceName = Literal["auto", "cpu", "cuda"]


class DeviceError(SohesError, ValueError):
    """A device that does not exist; the message says what torch finds."""


def pick_device(name: DeviceName = "auto", local_rank: int | None = None) -> torch.device:
    """The CPU, or one GPU with its index, as the threads of a pool do not share the current GPU.

    Args:
        name: "auto" takes a GPU if there is one.
        local_rank: of this process on its machine: the index of its GPU, which becomes the current one. Index 0 if
            SLURM shows each process only its own GPU (`--gpus-per-task`). Default: the current GPU.

    Raises:
        DeviceError: torch finds no GPU for "cuda", or fewer GPUs than processes on this machine.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch sees no CUDA device")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda", torch.cuda.current_device())
    if _has_its_own_gpu(os.environ):
        local_rank = 0
    if local_rank >= torch.cuda.device_count():
        raise DeviceError(f"process {local_rank} of this machine has no GPU: torch sees {torch.cuda.device_count()}")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def require_device(device: torch.device | str) -> None:
    """Raise DeviceError for a CUDA device that torch does not see."""
    chosen = torch.device(device)
    if chosen.type == "cuda" and not 0 <= (chosen.index or 0) < torch.cuda.device_count():
        raise DeviceError(f"device {chosen}: torch sees {torch.cuda.device_count()} CUDA devices")


def _has_its_own_gpu(env: Mapping[str, str]) -> bool:
    """Whether this process finds one GPU because SLURM hides the others, not because the machine has only one."""
    by_task = "SLURM_GPUS_PER_TASK" in env or "gpu" in env.get("SLURM_TRES_PER_TASK", "")
    return by_task and torch.cuda.device_count() == 1
