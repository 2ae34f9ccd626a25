# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: everything a phase needs to go on exactly where it stopped, on as many processes or on others.

All randomness of a step is a function of (seed, phase, step), see `engine/loop.py`, so a checkpoint holds no generator
state: weights, teacher, optimiser and the step suffice for a bitwise equal continuation. A checkpoint is a folder in
the format of torch.distributed.checkpoint, which knows how to part tensors anew; it appears whole or not at all.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.utils._pytree import tree_map

from sohes.utils.distributed import on_main
from sohes.utils.errors import SohesError

_NAME = re.compile(r"step-(\d{8})")
_OPTIMIZER = "optimizer"
_HARDLY_ANY_SPACE = 2**20  # bytes
# What torch raises for files that are cut short, damaged, or of other tensors; CheckpointException is no Exception.
_READ_ERRORS = (
    CheckpointException,
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    EOFError,
    AssertionError,
    pickle.UnpicklingError,
)


class CheckpointError(SohesError, RuntimeError):
    """A checkpoint that cannot be written or read; the message names it."""


class Checkpoints:
    """The checkpoints `step-<steps done>` of one phase; every process calls every method.

    Args:
        folder: on a file system that all machines share.
        keep: how many stay, the newest, >= 1.
        asynchronous: `save` copies the state in memory and returns; files are written while training goes on. Needs a
            process group.
        half: weights and optimiser are rounded to bfloat16, for half the bytes; `load_checkpoint` reads both kinds.
    """

    def __init__(self, folder: Path, keep: int, asynchronous: bool = False, half: bool = False) -> None:
        self.folder, self.keep, self._half = folder, keep, half
        self._pending: tuple[Future, Path] | None = None
        # A group of its own: the writing thread's messages must not mix with those of the training loop.
        self._group = dist.new_group(backend="gloo") if asynchronous else None
        self._asynchronous = asynchronous

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.finish()

    def save(
        self,
        step: int,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Write the state after `step` steps. Of an asynchronous save still under way, wait for its end first.

        Raises CheckpointError when it cannot be written (disk full, say); older checkpoints stay as they are.
        """
        self.finish()
        path = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{path.name}.tmp"
        on_main(lambda: self._clear(temporary))
        state = _collect(modules, optimizer, {"step": step, **(extra or {})})
        if self._half:
            state = tree_map(_round, state)
        try:
            with warnings.catch_warnings():
                _expect_one_process()
                if self._asynchronous:
                    future = dcp.async_save(state, checkpoint_id=temporary, process_group=self._group)
                    self._pending = (getattr(future, "upload_completion", future), path)
                    return
                dcp.save(state, checkpoint_id=temporary)
        except (CheckpointException, OSError, RuntimeError) as error:
            self._give_up(path, error)
        self._publish(path)

    def finish(self) -> None:
        """Wait for an asynchronous save and publish it. Raises CheckpointError when it could not be written."""
        if self._pending is None:
            return
        (future, path), self._pending = self._pending, None
        try:
            future.result()
        except (CheckpointException, OSError, RuntimeError) as error:
            self._give_up(path, error)
        self._publish(path)

    def poll(self) -> None:
        """Publish an asynchronous save if this process's part of it is written. Never waits."""
        if self._pending is not None and self._pending[0].done():
            self.finish()

    def _publish(self, path: Path) -> None:
        # The coordinator has collected everybody's success by now: the main process may act alone.
        if not _is_main():
            return
        try:
            self._clear(path)
            os.replace(self.folder / f".{path.name}.tmp", path)
        except OSError as error:
            self._give_up(path, error)
        for old in list_checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _clear(self, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)

    def _give_up(self, path: Path, error: BaseException) -> None:
        reason = _reason(error)
        # Errors of other processes come without what the system said to them.
        if "space" not in reason and shutil.disk_usage(self.folder).free < _HARDLY_ANY_SPACE:
            reason = f"no space left on the disk ({reason})"
        if _is_main():
            shutil.rmtree(self.folder / f".{path.name}.tmp", ignore_errors=True)
        raise CheckpointError(f"cannot write checkpoint {path}: {reason}") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints of a folder, oldest first; [] where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load_checkpoint(
    path: Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    extra: dict[str, Any] | None = None,
) -> int:
    """Load `path` into `modules`, `optimizer` and, key by key, `extra`; returns the number of steps done.

    Raises CheckpointError for a damaged checkpoint or one that does not fit.
    """
    state = _collect(modules, optimizer, {"step": 0, **(extra or {})})
    try:
        with warnings.catch_warnings():
            _expect_one_process()
            dcp.load(state, checkpoint_id=path)
        for name, module in modules.items():
            set_model_state_dict(module, state[name])
        set_optimizer_state_dict(modules["model"], optimizer, state[_OPTIMIZER])
    except _READ_ERRORS as error:
        message = f"cannot resume from {path}: {_reason(error)}; delete it to go on from the one before"
        raise CheckpointError(message) from error
    for key in extra or {}:
        extra[key] = state[key]
    return int(state["step"])


def _collect(modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, values: dict[str, Any]) -> dict[str, Any]:
    """The state by names, not by order or process: what torch.distributed.checkpoint can part and join."""
    state = {name: get_model_state_dict(module) for name, module in modules.items()}
    return {**values, **state, _OPTIMIZER: get_optimizer_state_dict(modules["model"], optimizer)}


def _round(value: Any) -> Any:
    """float32 tensors as bfloat16; single numbers, such as the optimiser's count of steps, stay exact."""
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.numel() > 1:
        return value.bfloat16()
    return value


def _is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _expect_one_process() -> None:
    warnings.filterwarnings("ignore", message=".*assuming the intent is to (save|load)")


def _reason(error: BaseException) -> str:
    """One line for what went wrong; torch hides it among the traceback of every process."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    # What the system said counts more than what torch stumbled over while it closed the file.
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
        if isinstance(error, OSError):
            break
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
