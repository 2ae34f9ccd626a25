# SPDX-License-Identifier: Apache-2.0
"""The run folder: no overwriting, resuming, metrics truncated by a kill."""

import json
import sys
from dataclasses import replace

import pytest

from sohes.configs.run import Config, EngineConfig, InstructConfig
from sohes.engine.run import Run, RunError, check_run, open_run


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_new_run_never_overwrites_an_old_one(tmp_path):
    open_run(tmp_path / "run", Config(), resume=False)
    with pytest.raises(RunError, match="already holds a run: continue it with --resume, or choose another --out"):
        open_run(tmp_path / "run", Config(), resume=False)


def test_resuming_nothing_is_an_error(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        open_run(tmp_path / "run", Config(), resume=True)


def test_resume_refuses_other_settings_and_names_them(tmp_path):
    open_run(tmp_path, Config(), resume=False)
    changed = Config(seed=3, instruct=InstructConfig(num_steps=7))
    with pytest.raises(RunError, match=r"with other settings: seed \(\d+ then, \d+ now\), instruct\.num_steps \("):
        open_run(tmp_path, changed, resume=True)
    changed = replace(Config(), phases=("explore",), engine=EngineConfig(accumulate=2, sharding="fsdp"))
    open_run(tmp_path, changed, resume=True)  # which phases to run, and how, may change


def test_results_turn_nan_into_null(tmp_path):
    run = open_run(tmp_path, Config(), resume=False)
    run.add_result("explore", {"AR@1000": 0.25, "AR-large": float("nan")})
    run.add_result("instruct", {"AR@1000": 0.5})
    assert run.read_results() == {"explore": {"AR@1000": 0.25, "AR-large": None}, "instruct": {"AR@1000": 0.5}}


def test_metrics_of_repeated_steps_are_replaced(tmp_path):
    run = open_run(tmp_path, Config(), resume=False)
    for phase in ("instruct", "correct"):
        with run.open_metrics(phase, 0) as metrics:
            for step in range(4):
                metrics.write(step, {"loss": step + 0.123456789})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"phase": "correct", "st')  # a kill in the middle of a line
    with run.open_metrics("correct", 2):
        pass
    assert [(r["phase"], r["step"]) for r in rows(path)] == [
        *(("instruct", step) for step in range(4)),
        ("correct", 0),
        ("correct", 1),
    ]
    assert rows(path)[1]["loss"] == 1.12346


def test_metrics_go_to_tensorboard_too(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = open_run(tmp_path / "run", Config(), resume=False)
    with run.open_metrics("instruct", 0, tensorboard=True) as metrics:
        metrics.write(0, {"loss": 2.5})
        metrics.write(1, {"loss": 1.5})
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard" / "instruct")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 2.5), (1, 1.5)]


def test_missing_tensorboard_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = open_run(tmp_path / "run", Config(), resume=False)
    with pytest.raises(RunError, match=r"pip install 'sohes\[tensorboard\]'"), run.open_metrics("instruct", 0, True):
        pass


def test_only_the_main_process_writes(tmp_path, capsys):
    run = Run(tmp_path / "run", is_main=False)
    run.log("something")
    with run.open_metrics("instruct", 0, tensorboard=True) as metrics:
        metrics.write(0, {"loss": 1.0})
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == ""


def test_a_folder_with_other_files_is_no_place_for_a_run(tmp_path):
    (tmp_path / "labels").mkdir()  # left by a run whose start failed
    check_run(tmp_path, Config(), resume=False)
    (tmp_path / ".DS_Store").touch()
    check_run(tmp_path, Config(), resume=False)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(RunError, match=r"expected a new or empty folder, it holds a\.jpg"):
        check_run(tmp_path, Config(), resume=False)


@pytest.mark.parametrize("text", ["mine", "[1]"])
def test_results_that_are_none_are_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RunError, match=r"results\.json"):
        Run(tmp_path).read_results()
