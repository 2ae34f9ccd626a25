# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints, from which a phase resumes exactly, on the same or another number of processes.

All randomness of a step is a function of (seed, phase, step), see `engine/loop.py`. A checkpoint therefore holds no
generator state: weights, teacher, optimiser and step are enough for a bitwise equal continuation. A checkpoint is a
folder in the format of torch.distributed.checkpoint, which can reshard tensors. It is renamed into place when complete.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.utils._pytree import tree_map

from sohes.utils.distributed import on_main
from sohes.utils.errors import SohesError

_NAME = re.compile(r"step-(\d{8})")
_OPTIMIZER = "optimizer"
_DISK_FULL_BYTES = 2**20  # with less free space than this, the disk counts as full
# What torch raises for truncated or damaged files and for other tensors. CheckpointException is a BaseException.
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
    """A checkpoint cannot be written or read; the message names it."""


class Checkpoints:
    """Writes the checkpoints `step-<steps done>` of one phase. Every process calls every method.

    Args:
        folder: on a file system that all machines share.
        keep: number of newest checkpoints to keep, >= 1; older ones are deleted.
        asynchronous: `save` copies the state in memory and returns; a thread writes the files during training. Needs a
            process group.
        half: round weights and optimiser state to bfloat16, for half the bytes; `load_checkpoint` reads both.
    """

    def __init__(self, folder: Path, keep: int, asynchronous: bool = False, half: bool = False) -> None:
        self.folder, self.keep, self._half = folder, keep, half
        self._pending: tuple[Future[Any], Path] | None = None
        # Its own group: messages of the writing thread must not mix with those of the training loop.
        group = dist.new_group(backend="gloo") if asynchronous else None
        self._group = group if isinstance(group, dist.ProcessGroup) else None
        self._asynchronous = asynchronous

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.finish()

    def save(
        self,
        step: int,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Write the state after `step` steps. Waits for an asynchronous save that is still running.

        Raises CheckpointError when it cannot be written, for example on a full disk; older checkpoints stay.
        """
        self.finish()
        path = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{path.name}.tmp"
        on_main(lambda: self._remove(temporary))
        state = _state_dict(modules, optimizer, {"step": step, **(extra or {})})
        if self._half:
            state = tree_map(_to_bfloat16, state)
        try:
            with warnings.catch_warnings():
                _ignore_single_process_warning()
                if self._asynchronous:
                    # A Future; in newer versions of torch an object that holds it.
                    response: Any = async_save(state, checkpoint_id=temporary, process_group=self._group)
                    self._pending = (getattr(response, "upload_completion", response), path)
                    return
                save(state, checkpoint_id=temporary)
        except (CheckpointException, OSError, RuntimeError) as error:
            self._fail(path, error)
        self._publish(path)

    def finish(self) -> None:
        """Wait for an asynchronous save and publish it. Raises CheckpointError when it could not be written."""
        if self._pending is None:
            return
        (future, path), self._pending = self._pending, None
        try:
            future.result()
        except (CheckpointException, OSError, RuntimeError) as error:
            self._fail(path, error)
        self._publish(path)

    def poll(self) -> None:
        """Publish an asynchronous save if this process has written its files. Does not wait."""
        if self._pending is not None and self._pending[0].done():
            self.finish()

    def _publish(self, path: Path) -> None:
        # All processes have reported success to the coordinator by now: the main process can rename alone.
        if not _is_main():
            return
        try:
            self._remove(path)
            os.replace(self.folder / f".{path.name}.tmp", path)
        except OSError as error:
            self._fail(path, error)
        for old in list_checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)

    def _fail(self, path: Path, error: BaseException) -> NoReturn:
        reason = _reason(error)
        # Errors from other processes come without the message of the operating system.
        if "space" not in reason and shutil.disk_usage(self.folder).free < _DISK_FULL_BYTES:
            reason = f"no space left on the disk ({reason})"
        if _is_main():
            shutil.rmtree(self.folder / f".{path.name}.tmp", ignore_errors=True)
        raise CheckpointError(f"cannot write checkpoint {path}: {reason}") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first; [] if the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    extra: dict[str, Any] | None = None,
) -> int:
    """Load a checkpoint into `modules`, `optimizer` and the keys of `extra`; returns the number of steps done.

    Raises CheckpointError for a damaged checkpoint or one of another model.
    """
    extra = {} if extra is None else extra
    state = _state_dict(modules, optimizer, {"step": 0, **extra})
    try:
        with warnings.catch_warnings():
            _ignore_single_process_warning()
            load(state, checkpoint_id=path)
        for name, module in modules.items():
            set_model_state_dict(module, state[name])
        set_optimizer_state_dict(modules["model"], optimizer, state[_OPTIMIZER])
    except _READ_ERRORS as error:
        message = f"cannot resume from {path}: {_reason(error)}; delete it to resume from the one before"
        raise CheckpointError(message) from error
    for key in extra:
        extra[key] = state[key]
    return int(state["step"])


def _state_dict(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, values: dict[str, Any]
) -> dict[str, Any]:
    """State of modules and optimiser, keyed by parameter name, which torch.distributed.checkpoint can reshard."""
    state = {name: get_model_state_dict(module) for name, module in modules.items()}
    return {**values, **state, _OPTIMIZER: get_optimizer_state_dict(modules["model"], optimizer)}


def _to_bfloat16(value: Any) -> Any:
    """float32 tensors as bfloat16. Single numbers, such as the optimiser's step count, stay exact."""
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.numel() > 1:
        return value.bfloat16()
    return value


def _is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _ignore_single_process_warning() -> None:
    warnings.filterwarnings("ignore", message=".*assuming the intent is to (save|load)")


def _reason(error: BaseException) -> str:
    """The cause of an error in one line; torch wraps it in the tracebacks of all processes."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    # An OSError explains more than the errors that follow when torch closes the file.
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
        if isinstance(error, OSError):
            break
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
