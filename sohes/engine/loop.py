# SPDX-License-Identifier: Apache-2.0
"""The training loop of all phases: load, forward, backward, clip, update, log, save; on one process or many.

Every step learns from one global batch. Each process takes an equal slice of it and splits this slice into
`accumulate` micro-batches. Losses are sums over images, divided by counts of the *global* batch, and each image has its
own seed for sampled points. The result of a step is therefore the same, up to rounding, for any number of processes
and micro-batches.

Read `train` first, then `_train_step`.
"""

from __future__ import annotations

import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sohes.configs.run import EngineConfig, OptimConfig
from sohes.data.dataset import Batch
from sohes.data.photos import PhotoBatch
from sohes.engine.checkpoint import Checkpoints, list_checkpoints, load_checkpoint
from sohes.engine.optim import build_optimizer, learning_rate_at, set_learning_rate
from sohes.engine.parallel import gradient_sync, prepare_model, wrap_model
from sohes.engine.run import PhaseName, Run
from sohes.losses.criterion import count_masks
from sohes.models.base import TrainableModel
from sohes.structures.target import Target
from sohes.utils.console import Progress
from sohes.utils.distributed import World, all_sum, gather, on_main
from sohes.utils.errors import SohesError

BatchT = TypeVar("BatchT", Batch, PhotoBatch)

Targets = dict[str, list[Target]]
"""Targets of a batch, one list for each branch of the loss."""

AUTOCAST_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_INITIAL_SCALE = 256.0
"""Of the loss in fp16. Losses summed over decoder layers start near 50: torch's 65536 would waste a dozen steps."""


class TrainingDiverged(SohesError, RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


@dataclass(frozen=True, eq=False)
class MicroBatch(Generic[BatchT]):
    """Input of one forward and backward pass.

    model: to be called for the forward pass. batch: the images. targets: by branch of the loss, from `make_targets`.
    num_masks: by branch, a scalar that the losses are divided by: masks in the global batch / number of micro-batches
    in all processes. generators: one per image.
    """

    model: nn.Module
    batch: BatchT
    targets: Targets
    num_masks: dict[str, Tensor]
    generators: list[torch.Generator]


@dataclass
class Trainer(Generic[BatchT]):
    """Everything that the loop needs to train one phase.

    modules: saved in checkpoints; the optimiser trains `modules["model"]`. make_batches(start_step): yields (step, this
    process's slice of the global batch). make_targets(step, batch): targets of a micro-batch, called without gradient.
    compute_loss(step, micro_batch): named scalars; "loss" is minimised. after_step(step): called after each update of
    the weights.
    """

    run: Run
    phase: PhaseName
    modules: dict[str, TrainableModel]
    make_batches: Callable[[int], Iterator[tuple[int, BatchT]]]
    compute_loss: Callable[[int, MicroBatch[BatchT]], dict[str, Tensor]]
    num_steps: int
    seed: int
    optim: OptimConfig
    engine: EngineConfig
    world: World = field(default_factory=World)
    make_targets: Callable[[int, BatchT], Targets] = lambda step, batch: {}
    after_step: Callable[[int], None] = lambda step: None
    optimizer: torch.optim.AdamW = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    wrapped_model: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        for module in self.modules.values():
            prepare_model(module, self.engine)
        self.optimizer = build_optimizer(self.model, self.optim)
        self.scaler = torch.amp.GradScaler(self.device.type, _INITIAL_SCALE, enabled=self.optim.precision == "fp16")
        self.wrapped_model = wrap_model(self.model)

    @property
    def model(self) -> TrainableModel:
        return self.modules["model"]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def autocast(self) -> torch.autocast:
        precision = self.optim.precision
        return torch.autocast(self.device.type, AUTOCAST_DTYPES[precision], enabled=precision != "fp32")

    def learning_rate(self, step: int) -> float:
        return learning_rate_at(step, self.num_steps, self.optim)


def train(trainer: Trainer[BatchT]) -> None:
    """Train up to the last step. Resumes from the newest checkpoint of the phase, if there is one.

    Raises TrainingDiverged, CheckpointError, and the errors of the dataset.
    """
    run, phase, world, engine = trainer.run, trainer.phase, trainer.world, trainer.engine
    start = _resume(trainer)
    bad_steps = 0
    saved_at = ready_at = time.monotonic()
    with (
        run.open_metrics(phase, start, engine.tensorboard) as metrics,
        Checkpoints(
            run.checkpoints(phase), engine.keep_checkpoints, engine.async_checkpoints, engine.half_checkpoints
        ) as checkpoints,
        Progress(trainer.num_steps, phase, "steps", initial=start, log=run.log, enabled=world.is_main) as progress,
    ):
        for step, batch in trainer.make_batches(start):
            data_seconds = time.monotonic() - ready_at
            # The clock of the main process decides for all processes when to save.
            is_save_due = world.is_main and time.monotonic() - saved_at > engine.checkpoint_seconds
            result = _train_step(trainer, step, batch, is_save_due)
            seconds = time.monotonic() - ready_at
            if result.is_finite:
                bad_steps = 0
                trainer.after_step(step)
                row = result.values | {
                    "lr": trainer.learning_rate(step),
                    "images_per_second": world.size * len(batch.names) / seconds,
                    "data_seconds": data_seconds,
                    "memory_gb": peak_memory_gb(trainer.device),
                }
                metrics.write(step, row)
                progress.update(1, **_progress_fields(row, seconds))
            else:
                bad_steps += result.is_bad
                _report_skipped_step(trainer, step, batch, result, bad_steps)
                progress.update(1)
            checkpoints.poll()
            if result.is_save_due or step + 1 == trainer.num_steps:
                checkpoints.save(step + 1, trainer.modules, trainer.optimizer, _scaler_state(trainer))
                saved_at = time.monotonic()
            ready_at = time.monotonic()


@dataclass(frozen=True)
class StepResult:
    """Result of a step, equal in all processes.

    values: losses as means over the global batch, and the gradient norm. is_finite: False if the loss or the gradient
    is not, and the weights were left unchanged. is_bad: the step counts towards `max_bad_steps`. is_save_due: whether
    to save a checkpoint now.
    """

    values: dict[str, float]
    is_finite: bool
    is_bad: bool
    is_save_due: bool


def _train_step(trainer: Trainer[BatchT], step: int, batch: BatchT, is_save_due: bool) -> StepResult:
    """One optimiser step. Weights stay unchanged if the loss or a gradient is not finite in any process."""
    engine, world, optim = trainer.engine, trainer.world, trainer.optim
    # All randomness of a step depends on (seed, phase, step) only: a resumed run repeats an uninterrupted one.
    torch.manual_seed(step_seed(trainer.seed, trainer.phase, step))
    set_learning_rate(trainer.optimizer, trainer.learning_rate(step))
    trainer.optimizer.zero_grad(set_to_none=True)

    sums: dict[str, Tensor] = {}
    micro_batches = _make_micro_batches(trainer, step, batch)
    for index, micro_batch in enumerate(micro_batches):
        with gradient_sync(trainer.wrapped_model, enabled=index + 1 == len(micro_batches)):
            with trainer.autocast():
                losses = trainer.compute_loss(step, micro_batch)
            trainer.scaler.scale(losses["loss"] / engine.accumulate).backward()
        for name, value in losses.items():
            value = value.detach().to(trainer.device, torch.float32)
            sums[name] = sums[name] + value if name in sums else value

    trainer.scaler.unscale_(trainer.optimizer)
    norm = nn.utils.clip_grad_norm_(trainer.model.parameters(), optim.clip_norm or float("inf"))
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    means = torch.stack(list(sums.values())) / (world.size * engine.accumulate)
    means = all_sum(torch.cat((means, means.new_tensor([float(is_save_due)]))))  # one all-reduce for everything
    *values, gradient_norm = torch.cat((means, norm.detach().to(means.dtype)[None])).tolist()  # one copy to the CPU
    row = dict(zip([*sums, "save"], values, strict=True)) | {"grad_norm": gradient_norm}
    is_save_due = row.pop("save") > 0
    loss_is_finite = math.isfinite(row["loss"])
    is_finite = loss_is_finite and math.isfinite(row["grad_norm"])
    if is_finite:
        trainer.scaler.step(trainer.optimizer)
    is_bad = not is_finite
    if trainer.scaler.is_enabled():
        # The scaler finds its scale by gradients that overflow fp16. That is normal until the scale has reached 1.
        is_bad = is_bad and (not loss_is_finite or trainer.scaler.get_scale() <= 1.0)
        trainer.scaler.update()
    return StepResult(row, is_finite, is_bad, is_save_due)


def _make_micro_batches(trainer: Trainer[BatchT], step: int, batch: BatchT) -> list[MicroBatch[BatchT]]:
    """This process's slice of the global batch, split, on the device, with targets."""
    num_parts, num_images = trainer.engine.accumulate, len(batch.names)
    batches = [part.to(trainer.device) for part in _split(batch, num_parts)]
    with torch.no_grad(), trainer.autocast():
        targets = [trainer.make_targets(step, part) for part in batches]

    branches, num_queries = list(targets[0]), trainer.model.num_queries
    counts = [float(sum(count_masks(part[branch], num_queries) for part in targets)) for branch in branches]
    total = all_sum(torch.tensor(counts, device=trainer.device)).clamp(min=1.0)
    num_masks = dict(zip(branches, total / (num_parts * trainer.world.size), strict=True))

    first = trainer.world.rank * num_images  # index of this slice in the global batch
    generators = [
        torch.Generator(trainer.device).manual_seed(step_seed(trainer.seed, trainer.phase, step, first + index))
        for index in range(num_images)
    ]
    size = num_images // num_parts
    return [
        MicroBatch(trainer.wrapped_model, part, part_targets, num_masks, generators[k * size : (k + 1) * size])
        for k, (part, part_targets) in enumerate(zip(batches, targets, strict=True))
    ]


def _split(batch: BatchT, num_parts: int) -> list[BatchT]:
    if num_parts == 1:
        return [batch]
    if isinstance(batch, Batch):
        return batch.split(num_parts)
    raise ValueError(f"gradient accumulation is not supported for {type(batch).__name__}")


def _report_skipped_step(
    trainer: Trainer[BatchT], step: int, batch: BatchT, result: StepResult, bad_steps: int
) -> None:
    """Log why a step was skipped. Raises TrainingDiverged after too many bad steps in a row."""
    if not result.is_bad:
        trainer.run.log(f"{trainer.phase} step {step}: gradients overflow fp16, scale halved", console=False)
        return
    names = [name for names in gather(batch.names) for name in names]
    trainer.run.log(f"{trainer.phase} step {step}: non-finite loss or gradient, step skipped; images: {names}")
    if bad_steps >= trainer.optim.max_bad_steps:
        raise TrainingDiverged(
            f"{trainer.phase}: {bad_steps} steps in a row with a non-finite loss or gradient, at step {step} with "
            f"images {names}"
        )


def _resume(trainer: Trainer[BatchT]) -> int:
    """Load the newest checkpoint, if there is one; returns the step to start at."""
    folder = trainer.run.checkpoints(trainer.phase)
    found = on_main(lambda: list_checkpoints(folder)[-1:])
    if not found:
        return 0
    scaler = _scaler_state(trainer)
    start = load_checkpoint(found[0], trainer.modules, trainer.optimizer, scaler)
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(scaler["scaler"])
    trainer.run.log(f"{trainer.phase}: resuming at step {start} from {found[0].name}")
    return start


def _scaler_state(trainer: Trainer[BatchT]) -> dict[str, Any]:
    return {"scaler": trainer.scaler.state_dict()} if trainer.scaler.is_enabled() else {}


def _progress_fields(row: dict[str, float], seconds: float) -> dict[str, object]:
    """Fields of the progress line. data: share of the step's time spent waiting for the batch."""
    return {
        "loss": row["loss"],
        "images/s": row["images_per_second"],
        "data": f"{100 * row['data_seconds'] / max(seconds, 1e-9):.0f}%",
        "memory": f"{row['memory_gb']:.1f}GB",
    }


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory so far in GB: of the tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def step_seed(seed: int, phase: str, step: int, image: int | None = None) -> int:
    """A 63-bit seed, different for every (seed, phase, step) and for every image of the global batch."""
    text = f"{seed}/{phase}/{step}" + ("" if image is None else f"/{image}")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
