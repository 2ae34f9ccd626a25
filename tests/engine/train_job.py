# SPDX-License-Identifier: Apache-2.0
"""Training jobs for tests, in one process or several: `train_job.py FOLDER JOB...`.

A job is `NAME,PHASE,STEPS[,save=STEP][,stop=STEP][,setting=value...]`: it trains or resumes FOLDER/NAME up to STEPS, or
only up to `stop`, with checkpoints after `save` and at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from micro import micro_model

from sohes.configs.run import (
    Config,
    CorrectConfig,
    EngineConfig,
    InferConfig,
    InstructConfig,
    LossConfig,
    OptimConfig,
    ViewConfig,
)
from sohes.data.coco import LabelSet
from sohes.data.dataset import LabelDataset
from sohes.data.sampling import batches
from sohes.engine.checkpoint import Checkpoints
from sohes.engine.run import Run
from sohes.phases.correct import correct
from sohes.phases.instruct import instruct
from sohes.utils.distributed import find_world, process_group

CONFIG = Config(
    model=micro_model(query_init="seeds", affinity_dim=16),
    loss=LossConfig(num_points=64, num_match_points=64, local_ratio=0.2, importance_ratio=0.4),
    optim=OptimConfig(learning_rate=1e-3, clip_norm=1.0, warmup_steps=2),
    views=ViewConfig(size=64),
    instruct=InstructConfig(batch_size=4),
    correct=CorrectConfig(batch_size=4, score_thresholds=(0.1, 0.1, 0.1)),
    infer=InferConfig(size=64),
    engine=EngineConfig(checkpoint_seconds=0, keep_checkpoints=9),
)


def run_job(folder: Path, job: str) -> None:
    name, phase, steps, *settings = job.split(",")
    given = dict(setting.split("=") for setting in settings)
    precision = given.pop("precision", "fp32")
    stop = int(given.pop("stop", steps))
    saves = {int(steps), int(given.pop("save", steps))}
    engine = {key: type(getattr(CONFIG.engine, key))(value) for key, value in given.items()}
    config = replace(
        CONFIG,
        optim=replace(CONFIG.optim, precision=precision),
        engine=replace(CONFIG.engine, **engine),
        instruct=replace(CONFIG.instruct, num_steps=int(steps)),
        correct=replace(CONFIG.correct, num_steps=int(steps)),
    )
    save = Checkpoints.save

    def save_some(self: Checkpoints, step: int, *arguments: object) -> None:
        if step in saves:
            save(self, step, *arguments)

    world = find_world()
    train = {"instruct": instruct, "correct": correct}[phase]

    def stopping(dataset: LabelDataset, size: int, seed: int, start: int, _: int, **how: int) -> Iterator:
        return batches(dataset, size, seed, start, stop, **how)

    with patch.object(Checkpoints, "save", save_some), patch("sohes.phases.training_batches.batches", stopping):
        train(Run(folder / name, world.is_main), config, LabelSet(folder / "scenes"), torch.device("cpu"), world)


if __name__ == "__main__":
    with process_group(find_world(), torch.device("cpu")):
        for job in sys.argv[2:]:
            run_job(Path(sys.argv[1]), job)
