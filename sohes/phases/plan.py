# SPDX-License-Identifier: Apache-2.0
"""What a run has before it, so that its log can tell how long it will take; and what to do with it afterwards."""

from __future__ import annotations

import shlex
from pathlib import Path

from sohes.configs.run import PHASES, Config
from sohes.engine.run import Run
from sohes.utils.distributed import World
from sohes.utils.estimate import Job, Part

# What a photo of phase 3 costs, and one that is scored, where one of phase 2 costs 1: 1.6 to 2.0 and 0.7 to 1.2 with
# the preset micro on two CPU cores beside other jobs (2026-11-27).
_CORRECT_COST, _SCORE_COST = 1.7, 1.0


def plan_job(run: Run, config: Config, num_photos: int, num_scored: int, world: World) -> Job:
    """The loops that this start of a run has yet to do.

    Args:
        num_photos: to label. num_scored: with ground truth, 0 for none.
    """
    parts: list[Part] = []
    phases = [phase for phase in PHASES if phase in config.phases]
    scored = run.read_results()
    for number, phase in enumerate(phases, 1):
        if phase == "explore":
            parts.append(Part(phase, num_photos, "label", 1.0, number))
        elif not run.is_trained(phase):
            settings = config.instruct if phase == "instruct" else config.correct
            cost = settings.batch_size / world.size * (1.0 if phase == "instruct" else _CORRECT_COST)
            parts.append(Part(phase, settings.num_steps, "train", cost, number))
        if num_scored and phase not in scored:
            kind, cost = ("label", 1.0) if phase == "explore" else ("train", _SCORE_COST)
            parts.append(Part(f"evaluate {phase}", -(-num_scored // world.size), kind, cost, number))
    return Job(parts, len(phases))


def next_steps(run: Run, report: Path) -> str:
    """What to type after a run."""
    folder = shlex.quote(str(run.path))
    missing = [phase for phase in PHASES[1:] if not run.is_trained(phase)]
    steps = [f"look at {report} in a browser"]
    if len(missing) < len(PHASES) - 1:
        steps.append(f"segment photos: python -m sohes.segment PHOTOS --weights {folder} --out segments")
    if missing:
        steps.append(f"go on: python -m sohes.train --resume --out {folder} --phases {' '.join(missing)}")
    return "\n".join(["next:", *(f"  {step}" for step in steps)])
