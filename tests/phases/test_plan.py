# SPDX-License-Identifier: Apache-2.0
"""The plan of a run, and the commands to use after it."""

import json
from dataclasses import replace

import pytest

from sohes.configs.run import Config, CorrectConfig, InstructConfig
from sohes.engine.run import Run
from sohes.phases.plan import next_steps, plan_job
from sohes.utils.distributed import World

CONFIG = Config(instruct=InstructConfig(num_steps=10, batch_size=8), correct=CorrectConfig(num_steps=5, batch_size=4))


def finish(run, *phases):
    for phase in phases:
        run.weights(phase).mkdir(parents=True)
        (run.weights(phase) / "model.safetensors").write_bytes(b"")


def test_a_new_run_is_known_once_training_is(tmp_path):
    """5 steps of 8 photos at 2 steps/s; 6 photos to score; 5 steps of 4 photos that cost 1.7 each; 6 to score."""
    job = plan_job(Run(tmp_path), CONFIG, 20, 6, World())
    assert job.label("evaluate instruct") == "2/3 evaluate instruct"
    assert job.seconds_left("explore", 5, 1.0) is None
    assert job.seconds_left("instruct", 5, 2.0) == pytest.approx(2.5 + (6 + 5 * 4 * 1.7 + 6) / 16)


def test_what_is_done_does_not_count_and_processes_share(tmp_path):
    run = Run(tmp_path)
    finish(run, "instruct")
    run.results.write_text(json.dumps({"explore": {}, "instruct": {}}))
    job = plan_job(run, replace(CONFIG, phases=("instruct", "correct")), 20, 7, World(0, 2))
    assert job.label("correct") == "2/2 correct"
    assert job.label("evaluate instruct") == "evaluate instruct"
    assert job.seconds_left("correct", 4, 1.0) == pytest.approx(4 + 4 / (2 * 1.7))
    assert plan_job(run, replace(CONFIG, phases=("explore",)), 20, 0, World()).seconds_left("explore", 2, 1.0) is None


def test_after_a_run_photos_can_be_segmented(tmp_path):
    run = Run(tmp_path / "my runs")
    report = run.path / "report.html"
    said = next_steps(run, report)
    assert f"look at {report}" in said
    assert "sohes.segment" not in said
    assert said.endswith(f"python -m sohes.train --resume --out '{run.path}' --phases instruct correct")
    finish(run, "instruct")
    assert f"python -m sohes.segment PHOTOS --weights '{run.path}' --out segments" in next_steps(run, report)
    assert next_steps(run, report).endswith("--phases correct")
    finish(run, "correct")
    assert "--resume" not in next_steps(run, report)
