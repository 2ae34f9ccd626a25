# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.train`: train a model that segments entities and their parts, from photos without labels.

Arguments only; the job itself is in `sohes/phases/pipeline.py`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from sohes.cli.short_help import answer_help

if __name__ == "__main__":
    answer_help("train", sys.argv[1:])  # before torch is imported, which takes seconds


from sohes.cli.command import base_config, fail_clearly, parse
from sohes.cli.options import FLAT
from sohes.configs.presets import get_preset
from sohes.configs.ranges import at_least
from sohes.configs.run import Config
from sohes.phases.pipeline import TrainJob, train_run
from sohes.utils.devices import DeviceName, pick_device
from sohes.utils.distributed import find_world, process_group


@dataclass
class Arguments:
    """Learn to segment entities and their parts from raw photos, without labels.

    Without arguments: draws scenes, runs all three phases on them in minutes on a CPU, and writes a report.
    """

    config: Config = field(default_factory=Config, metadata=FLAT)
    out: Path = Path("runs/default")
    """Folder of the run: config, labels, checkpoints, weights, scores and report.html."""
    resume: bool = False
    """Continue the run in --out, with the settings stored there; of them, only `phases`, `engine` and the number of
    processes may change. Jobs that torchrun or SLURM restart continue without this option."""
    part: Annotated[tuple[int, int] | None, at_least(0)] = None
    """K N, with --phases explore: make the Kth of N parts of the labels, K from 0 to N - 1, as in an array job. Jobs
    share only --out and may run in any order, also one after another; the last one finishes the phase."""
    device: DeviceName = "auto"
    """Where to train: auto takes a GPU if there is one."""


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    with fail_clearly("sohes.train"):
        world = find_world()
        default = Arguments(config=base_config(given, Config, Arguments.out, get_preset))
        args = parse(Arguments, given, prog="python -m sohes.train", default=default)
        device = pick_device(args.device, world.local_rank)
        with process_group(world, device, timedelta(minutes=args.config.engine.timeout_minutes)):
            train_run(TrainJob(args.config, args.out, args.resume, args.part), device, world)
    return 0


if __name__ == "__main__":
    sys.exit(main())
