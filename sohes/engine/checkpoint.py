# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: everything a phase needs to go on exactly where it stopped.

All randomness of a step is a function of (seed, phase, step), see `engine/loop.py`, so a checkpoint holds no generator
state: weights, teacher, optimiser and the step suffice for a bitwise equal continuation.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sohes.errors import SohesError

_NAME = re.compile(r"step-(\d{8})\.pt")


class CheckpointError(SohesError, RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file."""


def save_checkpoint(
    folder: Path,
    step: int,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> Path:
    """Write `step-<step>.pt` (state after `step` steps) atomically, then delete all but the newest `keep`.

    Raises CheckpointError when it cannot be written (disk full, say); older checkpoints stay as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = path.with_name(path.name + ".tmp")
    state = {"step": step, "optimizer": optimizer.state_dict()}
    state.update({name: module.state_dict() for name, module in modules.items()})
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write checkpoint {path}: {error}") from error
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints of a folder, oldest first; [] where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load_checkpoint(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Load `path` into `modules` and `optimizer`; returns the number of steps done.

    Raises CheckpointError for a damaged file or one that does not fit the modules.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"cannot resume from {path}: {error}; delete it to go on from the one before") from error
    return int(state["step"])
