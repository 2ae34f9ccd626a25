# SPDX-License-Identifier: Apache-2.0
"""The plan of a run, from which its log estimates the remaining time; and the commands to use after it."""

from __future__ import annotations

import shlex
from pathlib import Path

from sohes.configs.run import PHASES, Config
from sohes.engine.run import Run
from sohes.utils.distributed import World
from sohes.utils.estimate import Job, Part

# Time per photo in phase 3, and in scoring, relative to phase 2: measured 1.6 to 2.0 and 0.7 to 1.2 with the preset
# micro on two shared CPU cores (2026-11-27).
_CORRECT_COST, _SCORE_COST = 1.7, 1.0


def plan_job(run: Run, config: Config, num_photos: int, num_scored: int, world: World) -> Job:
    """The loops that are still to run.

    Args:
        num_photos: photos to label.
        num_scored: photos with ground truth; 0: no scoring.
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
    """The commands to use after a run, as text."""
    folder = shlex.quote(str(run.path))
    missing = [phase for phase in PHASES[1:] if not run.is_trained(phase)]
    steps = [f"look at {report} in a browser"]
    if len(missing) < len(PHASES) - 1:
        steps.append(f"segment photos: python -m sohes.segment PHOTOS --weights {folder} --out segments")
    if missing:
        steps.append(f"continue: python -m sohes.train --resume --out {folder} --phases {' '.join(missing)}")
    return "\n".join(["next:", *(f"  {step}" for step in steps)])
