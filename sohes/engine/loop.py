# SPDX-License-Identifier: Apache-2.0
"""The one training loop: load, forward, backward, check, clip, step, log, save; on one process or many.

One step learns from one global batch, whatever shares it out: processes take equal slices of it, and each works
through its slice in `accumulate` parts. Losses are sums over images divided by counts of the *global* batch, and the
points of an image are drawn from a seed of its own, so every way to share a batch gives the same step up to rounding.
"""

from __future__ import annotations

import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sohes.configs.run import EngineConfig, OptimConfig, Phase
from sohes.data.dataset import Batch
from sohes.engine.checkpoint import Checkpoints, list_checkpoints, load_checkpoint
from sohes.engine.optim import build_optimizer, learning_rate_at, set_learning_rate
from sohes.engine.parallel import gradient_sync, prepare_model, wrap_model
from sohes.engine.run import Run
from sohes.losses.criterion import count_masks
from sohes.structures.target import Target
from sohes.utils.console import Progress
from sohes.utils.distributed import World, all_sum, gather, on_main
from sohes.utils.errors import SohesError

Targets = dict[str, list[Target]]
"""Targets of a batch by the branch of the loss that they are for."""

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingDiverged(SohesError, RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The part of a global batch that one process has at hand.

    model: what to call for a forward pass. targets: by branch of the loss, what `make_targets` gave. num_masks: scalar
    for each branch, divisor of its losses: masks of the global batch per part. generators: one for each image.
    """

    model: nn.Module
    batch: Any
    targets: Targets
    num_masks: dict[str, Tensor]
    generators: list[torch.Generator]


@dataclass
class Trainer:
    """What a phase hands to the loop.

    `modules` are saved in checkpoints; `modules["model"]` is what the optimiser trains. `make_batches(start)` yields
    (step, this process's slice of the batch). `make_targets(step, batch)` says what is to be learned from a part of
    it, without gradient; `compute_loss(step, part)` returns named scalars, of which "loss" is minimised.
    `after_step(step)` runs once the weights have moved.
    """

    run: Run
    phase: Phase
    modules: dict[str, nn.Module]
    make_batches: Callable[[int], Iterator[tuple[int, Any]]]
    compute_loss: Callable[[int, MicroBatch], dict[str, Tensor]]
    num_steps: int
    seed: int
    optim: OptimConfig
    engine: EngineConfig
    world: World = field(default_factory=World)
    make_targets: Callable[[int, Batch], Targets] = lambda step, batch: {}
    after_step: Callable[[int], None] = lambda step: None
    optimizer: torch.optim.AdamW = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    joined: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        for module in self.modules.values():
            prepare_model(module, self.engine)
        self.optimizer = build_optimizer(self.model, self.optim)
        # Summed over decoder layers, losses start near 50: torch's first scale of 65536 would waste a dozen steps.
        self.scaler = torch.amp.GradScaler(self.device.type, 256.0, enabled=self.optim.precision == "fp16")
        self.joined = wrap_model(self.model)

    @property
    def model(self) -> nn.Module:
        return self.modules["model"]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def autocast(self) -> torch.autocast:
        precision = self.optim.precision
        return torch.autocast(self.device.type, AUTOCAST[precision], enabled=precision != "fp32")


def train(trainer: Trainer) -> None:
    """Run `trainer` to its last step, going on from the newest checkpoint of its phase if there is one.

    Raises TrainingDiverged, CheckpointError, and what the dataset raises.
    """
    run, phase, world, engine = trainer.run, trainer.phase, trainer.world, trainer.engine
    start = _resume(trainer)
    bad_steps, saved_at, ready_at = 0, time.monotonic(), time.monotonic()
    with (
        run.open_metrics(phase, start, engine.tensorboard) as metrics,
        Checkpoints(
            run.checkpoints(phase), engine.keep_checkpoints, engine.async_checkpoints, engine.half_checkpoints
        ) as checkpoints,
        Progress(trainer.num_steps, phase, "steps", initial=start, log=run.log, enabled=world.is_main) as progress,
    ):
        for step, batch in trainer.make_batches(start):
            data_seconds = time.monotonic() - ready_at
            last = step + 1 == trainer.num_steps
            # The main process's clock decides for all when to save.
            due = world.is_main and time.monotonic() - saved_at > engine.checkpoint_seconds
            result = _step(trainer, step, batch, due)
            seconds = time.monotonic() - ready_at
            if result.is_finite:
                bad_steps = 0
                trainer.after_step(step)
                row = result.values | {"lr": learning_rate_at(step, trainer.num_steps, trainer.optim)}
                row |= {"images_per_second": world.size * len(batch.names) / seconds, "data_seconds": data_seconds}
                row |= {"memory_gb": peak_memory_gb(trainer.device)}
                metrics.write(step, row)
                progress.update(1, **_shown(row, seconds))
            else:
                bad_steps += result.is_bad
                _report_bad_step(trainer, step, batch, result, bad_steps)
                progress.update(1)
            checkpoints.poll()
            if last or result.save:
                checkpoints.save(step + 1, trainer.modules, trainer.optimizer, _scaler_state(trainer))
                saved_at = time.monotonic()
            ready_at = time.monotonic()


@dataclass(frozen=True)
class StepResult:
    """values: means over the global batch. is_finite: the weights have moved. save: a checkpoint is due."""

    values: dict[str, float]
    is_finite: bool
    is_bad: bool
    save: bool


def _step(trainer: Trainer, step: int, batch: Any, save: bool) -> StepResult:
    """One optimiser step; weights stay as they are when the loss or a gradient is not finite, in any process."""
    engine, world, optim = trainer.engine, trainer.world, trainer.optim
    # Everything random in a step follows from (seed, phase, step): a resumed run repeats the one never stopped.
    torch.manual_seed(step_seed(trainer.seed, trainer.phase, step))
    set_learning_rate(trainer.optimizer, learning_rate_at(step, trainer.num_steps, optim))
    trainer.optimizer.zero_grad(set_to_none=True)

    sums: dict[str, Tensor] = {}
    parts = _make_parts(trainer, step, batch)
    for index, part in enumerate(parts):
        with gradient_sync(trainer.joined, wanted=index + 1 == len(parts)):
            with trainer.autocast():
                losses = trainer.compute_loss(step, part)
            trainer.scaler.scale(losses["loss"] / engine.accumulate).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach().to(trainer.device, torch.float32)

    trainer.scaler.unscale_(trainer.optimizer)
    norm = nn.utils.clip_grad_norm_(trainer.model.parameters(), optim.clip_norm or float("inf"))
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    means = torch.stack(list(sums.values())) / (world.size * engine.accumulate)
    means = all_sum(torch.cat((means, means.new_tensor([float(save)]))))  # one message
    *values, gradient_norm = torch.cat((means, norm.detach().to(means.dtype)[None])).tolist()  # one transfer
    row = dict(zip([*sums, "save"], values, strict=True)) | {"grad_norm": gradient_norm}
    save = row.pop("save") > 0
    loss_is_finite = math.isfinite(row["loss"])
    is_finite = loss_is_finite and math.isfinite(row["grad_norm"])
    if is_finite:
        trainer.scaler.step(trainer.optimizer)
    if trainer.scaler.is_enabled():
        # Gradients past the range of fp16 are how the scaler finds its scale: no fault, until the scale is spent.
        is_bad = not is_finite and (not loss_is_finite or trainer.scaler.get_scale() <= 1.0)
        trainer.scaler.update()
    else:
        is_bad = not is_finite
    return StepResult(row, is_finite, is_bad, save)


def _make_parts(trainer: Trainer, step: int, batch: Any) -> list[MicroBatch]:
    """This process's slice of the batch in parts, with what is to be learned from each and its share of the whole."""
    num_parts, num_images = trainer.engine.accumulate, len(batch.names)
    batches = batch.split(num_parts) if num_parts > 1 else [batch]
    batches = [part.to(trainer.device) for part in batches]
    with torch.no_grad(), trainer.autocast():
        targets = [trainer.make_targets(step, part) for part in batches]

    branches, num_queries = list(targets[0]), getattr(trainer.model, "num_queries", 0)
    counts = [float(sum(count_masks(part[branch], num_queries) for part in targets)) for branch in branches]
    total = all_sum(torch.tensor(counts, device=trainer.device)).clamp(min=1.0)
    num_masks = dict(zip(branches, total / (num_parts * trainer.world.size), strict=True))

    first = trainer.world.rank * num_images  # place of this slice in the global batch
    generators = [
        torch.Generator(trainer.device).manual_seed(step_seed(trainer.seed, trainer.phase, step, first + index))
        for index in range(num_images)
    ]
    size = num_images // num_parts
    return [
        MicroBatch(trainer.joined, part, part_targets, num_masks, generators[index * size : (index + 1) * size])
        for index, (part, part_targets) in enumerate(zip(batches, targets, strict=True))
    ]


def _report_bad_step(trainer: Trainer, step: int, batch: Any, result: StepResult, bad_steps: int) -> None:
    """Say what was skipped and why. Raises TrainingDiverged when it is too often."""
    if not result.is_bad:
        trainer.run.log(f"{trainer.phase} step {step}: gradients beyond fp16, scale halved", console=False)
        return
    names = [name for names in gather(batch.names) for name in names]
    trainer.run.log(f"{trainer.phase} step {step}: non-finite loss or gradient, step skipped; images: {names}")
    if bad_steps >= trainer.optim.max_bad_steps:
        raise TrainingDiverged(
            f"{trainer.phase}: {bad_steps} steps in a row without a finite loss, at step {step} with images {names}"
        )


def _resume(trainer: Trainer) -> int:
    folder = trainer.run.checkpoints(trainer.phase)
    newest = on_main(lambda: (list_checkpoints(folder) or [None])[-1])
    if newest is None:
        return 0
    scaler = _scaler_state(trainer)
    start = load_checkpoint(newest, trainer.modules, trainer.optimizer, scaler)
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(scaler["scaler"])
    trainer.run.log(f"{trainer.phase}: going on at step {start} from {newest.name}")
    return start


def _scaler_state(trainer: Trainer) -> dict[str, Any]:
    return {"scaler": trainer.scaler.state_dict()} if trainer.scaler.is_enabled() else {}


def _shown(row: dict[str, float], seconds: float) -> dict[str, object]:
    """What the log line says of a step. data: the share of its time spent waiting for the batch."""
    return {
        "loss": row["loss"],
        "images/s": row["images_per_second"],
        "data": f"{100 * row['data_seconds'] / max(seconds, 1e-9):.0f}%",
        "memory": f"{row['memory_gb']:.1f}GB",
    }


def peak_memory_gb(device: torch.device) -> float:
    """The most memory taken so far in GB: of a GPU by its tensors, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def step_seed(seed: int, phase: str, step: int, image: int | None = None) -> int:
    """A 63-bit seed that differs for every (seed, phase, step), and for every image of a global batch."""
    text = f"{seed}/{phase}/{step}" + ("" if image is None else f"/{image}")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
