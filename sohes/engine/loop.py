# SPDX-License-Identifier: Apache-2.0
"""The one training loop: load, forward, check, backward, clip, step, log, save."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sohes.config import OptimConfig, Phase
from sohes.data.dataset import Batch
from sohes.engine.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from sohes.engine.console import Progress
from sohes.engine.optim import build_optimizer, learning_rate_at, set_learning_rate
from sohes.engine.run import Run
from sohes.errors import SohesError

LossFunction = Callable[[int, Batch, torch.Generator], dict[str, Tensor]]


class TrainingDiverged(SohesError, RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


@dataclass
class Trainer:
    """What a phase hands to the loop.

    `compute_loss(step, batch, generator)` returns named scalars, of which "loss" is minimised. `modules` are saved in
    checkpoints; `modules["model"]` is what the optimiser trains. `after_step(step)` runs once the weights have moved.
    """

    run: Run
    phase: Phase
    modules: dict[str, nn.Module]
    compute_loss: LossFunction
    make_batches: Callable[[int], Iterator[tuple[int, Batch]]]
    num_steps: int
    seed: int
    optim: OptimConfig
    after_step: Callable[[int], None] = lambda step: None
    checkpoint_seconds: float = 60.0
    keep_checkpoints: int = 2
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = build_optimizer(self.modules["model"], self.optim)


def train(trainer: Trainer) -> None:
    """Run `trainer` to its last step, going on from the newest checkpoint of its phase if there is one."""
    run, phase = trainer.run, trainer.phase
    start = _resume(trainer)
    metrics = run.open_metrics(phase, start)
    bad_steps, saved_at, step_ended = 0, time.monotonic(), time.monotonic()
    with Progress(trainer.num_steps, title=phase, unit="steps", initial=start, log=run.log) as progress:
        for step, batch in trainer.make_batches(start):
            data_seconds = time.monotonic() - step_ended
            losses = _step(trainer, step, batch)
            if losses is None:
                bad_steps += 1
                run.log(f"{phase} step {step}: non-finite loss or gradient, step skipped; images: {batch.names}")
                if bad_steps >= trainer.optim.max_bad_steps:
                    raise TrainingDiverged(f"{phase}: {bad_steps} steps in a row without a finite loss, at step {step}")
            else:
                bad_steps = 0
                trainer.after_step(step)
            seconds = time.monotonic() - step_ended
            step_ended = time.monotonic()
            if losses is not None:
                row = {name: value.item() for name, value in losses.items()}
                row |= {"lr": learning_rate_at(step, trainer.num_steps, trainer.optim)}
                row |= {"images_per_second": len(batch.images) / seconds, "data_seconds": data_seconds}
                metrics.write(step, row)
                progress.update(1, loss=row["loss"])
            else:
                progress.update(1)
            last = step + 1 == trainer.num_steps
            if last or time.monotonic() - saved_at > trainer.checkpoint_seconds:
                folder = run.checkpoints(phase)
                save_checkpoint(folder, step + 1, trainer.modules, trainer.optimizer, trainer.keep_checkpoints)
                saved_at = time.monotonic()
    metrics.close()


def _step(trainer: Trainer, step: int, batch: Batch) -> dict[str, Tensor] | None:
    """One optimiser step; None (and unchanged weights) when the loss or a gradient is not finite."""
    model, optim = trainer.modules["model"], trainer.optim
    device = next(model.parameters()).device
    # Everything random in a step follows from (seed, phase, step): a resumed run repeats the one never stopped.
    seed = step_seed(trainer.seed, trainer.phase, step)
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    set_learning_rate(trainer.optimizer, learning_rate_at(step, trainer.num_steps, optim))
    trainer.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=optim.precision == "bf16"):
        losses = trainer.compute_loss(step, batch.to(device), generator)
    if not torch.isfinite(losses["loss"]):
        return None
    losses["loss"].backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm or float("inf"))
    if not torch.isfinite(norm):
        return None
    trainer.optimizer.step()
    return {name: value.detach() for name, value in losses.items()} | {"grad_norm": norm.detach()}


def _resume(trainer: Trainer) -> int:
    checkpoints = list_checkpoints(trainer.run.checkpoints(trainer.phase))
    if not checkpoints:
        return 0
    start = load_checkpoint(checkpoints[-1], trainer.modules, trainer.optimizer)
    trainer.run.log(f"{trainer.phase}: going on at step {start} from {checkpoints[-1].name}")
    return start


def step_seed(seed: int, phase: str, step: int) -> int:
    """A 63-bit seed that differs for every (seed, phase, step)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{phase}/{step}".encode()).digest()[:8], "little") >> 1
