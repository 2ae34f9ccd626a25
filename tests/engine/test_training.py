# SPDX-License-Identifier: Apache-2.0
"""Training on one process and on two: equal steps, exact resume, resume on another number of processes."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_job
from safetensors.torch import load_file

from sohes.data.errors import DataError
from sohes.data.images import UnreadableImage
from sohes.data.scenes import write_scenes
from sohes.engine.checkpoint import list_checkpoints
from sohes.engine.loop import TrainingDiverged
from sohes.losses.criterion import Criterion
from sohes.utils.distributed import World, process_group

ROOT = Path(__file__).resolve().parents[2]


def run_here(folder, *jobs):
    with process_group(World(), torch.device("cpu")):
        for job in jobs:
            train_job.run_job(folder, job)


def run_on_two(folder, *jobs):
    """Run the jobs in two processes on this machine, started as by any launcher that sets RANK."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    command = [sys.executable, train_job.__file__, str(folder), *jobs]
    processes = [
        subprocess.Popen(command, env=env | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    for process in processes:
        _, errors = process.communicate(timeout=1200)
        assert process.returncode == 0, errors


def rows(run, phase="instruct"):
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in read if row["phase"] == phase]


def losses(run, phase="instruct"):
    return [row["loss"] for row in rows(run, phase)]


def weights(run, phase):
    return load_file(run / "weights" / phase / "model.safetensors")


def restart_at(step, run, phase, target):
    """A copy of a finished run as it was after `step` steps of a phase."""
    shutil.copytree(run, target)
    for path in list_checkpoints(target / "checkpoints" / phase):
        if path.name != f"step-{step:08d}":
            shutil.rmtree(path)
    shutil.rmtree(target / "weights" / phase)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs on one process, then on two; some resume from others."""
    folder = tmp_path_factory.mktemp("runs")
    write_scenes(folder / "scenes", 6, 64, 0)
    run_here(folder, "one,instruct,6,save=3", "split,instruct,6,accumulate=2", "one,correct,20,save=10")
    restart_at(3, folder / "one", "instruct", folder / "wider")
    restart_at(10, folder / "one", "correct", folder / "two")
    run_on_two(
        folder,
        "ddp,instruct,6",
        "fsdp,instruct,6,sharding=fsdp,save=3",
        "wider,instruct,6",
        "two,correct,20,stop=13,sharding=fsdp",
    )
    restart_at(3, folder / "fsdp", "instruct", folder / "narrower")
    run_here(folder, "narrower,instruct,6")
    return folder


@pytest.mark.parametrize("name", ["split", "ddp", "fsdp", "wider", "narrower"])
def test_steps_do_not_depend_on_how_the_global_batch_is_split(folder, name):
    """Two micro-batches; DDP and FSDP2 on two processes; resumed after 3 steps on two processes, and on one."""
    torch.testing.assert_close(losses(folder / name), losses(folder / "one"), rtol=0, atol=1e-4)
    norms = ([row["grad_norm"] for row in rows(folder / run)] for run in (name, "one"))
    torch.testing.assert_close(*norms, rtol=1e-4, atol=0)


def test_phase_3_gives_the_same_steps_on_two_processes(folder):
    """Student and teacher sharded on two processes after 10 steps. Compares 3 steps, since later rounding may move a
    score across its threshold."""
    ours, theirs = (losses(folder / run, "correct")[10:13] for run in ("one", "two"))
    assert len(theirs) == 3
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=0)


@pytest.mark.parametrize("asynchronous", ["", ",async_checkpoints=1"])
def test_ten_steps_and_ten_more_are_twenty_bitwise(folder, tmp_path, asynchronous):
    """Phase 3, whose result is the weights of the teacher."""
    (tmp_path / "scenes").symlink_to(folder / "scenes")
    restart_at(10, folder / "one", "correct", tmp_path / "again")
    run_here(tmp_path, f"again,correct,20,save=15{asynchronous}")
    assert "resuming at step 10" in (tmp_path / "again" / "log.txt").read_text()
    ours, theirs = (weights(run, "correct") for run in (folder / "one", tmp_path / "again"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert losses(folder / "one", "correct") == losses(tmp_path / "again", "correct")
    names = [path.name for path in list_checkpoints(tmp_path / "again" / "checkpoints" / "correct")]
    assert names == ["step-00000010", "step-00000015", "step-00000020"]


def test_speed_is_logged(folder):
    line = (folder / "one" / "log.txt").read_text()
    assert "images/s" in line
    assert "data " in line
    assert "memory " in line
    row = rows(folder / "one")[-1]
    assert {"images_per_second", "data_seconds", "memory_gb", "lr", "grad_norm"} <= set(row)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(folder, tmp_path, precision):
    """The loss is close to full precision once gradients fit; skipped steps are logged and not counted as bad."""
    (tmp_path / "scenes").symlink_to(folder / "scenes")
    run_here(tmp_path, f"half,instruct,4,precision={precision}")
    found = {row["step"]: row["loss"] for row in rows(tmp_path / "half")}
    assert len(found) >= 2
    assert all(math.isfinite(loss) for loss in found.values())
    first = min(found)
    skipped = (tmp_path / "half" / "log.txt").read_text().count("scale halved")
    assert skipped == first == 4 - len(found)
    if first == 0:
        assert found[0] == pytest.approx(losses(folder / "one")[0], rel=0.02)


def test_compiled_layers_give_the_same_steps(folder, tmp_path, monkeypatch):
    """With the eager backend: compiling to machine code would take minutes."""
    (tmp_path / "scenes").symlink_to(folder / "scenes")
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile_(self, backend="eager", **how))
    run_here(tmp_path, "traced,instruct,6,stop=2,compile=1")
    torch.testing.assert_close(losses(tmp_path / "traced"), losses(folder / "one")[:2], rtol=0, atol=1e-4)


def test_photos_without_masks(folder, tmp_path):
    """No photo has a mask: nothing is divided by zero."""
    shutil.copytree(folder / "scenes", tmp_path / "scenes")
    path = tmp_path / "scenes" / "annotations.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    run_here(tmp_path, "empty,instruct,2", "empty,correct,2")
    assert len(losses(tmp_path / "empty")) == len(losses(tmp_path / "empty", "correct")) == 2
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "empty"))
    assert [row["loss_mask"] for row in rows(tmp_path / "empty")] == [0, 0]


def test_a_photo_damaged_after_labelling_is_named(folder, tmp_path):
    shutil.copytree(folder / "scenes", tmp_path / "scenes")
    for photo in (tmp_path / "scenes" / "images").iterdir():
        photo.write_bytes(photo.read_bytes()[:100])
    with pytest.raises(UnreadableImage, match=r"scenes/images/.*\.png"):
        run_here(tmp_path, "bad,instruct,2")


def test_labels_of_no_photo_are_refused(tmp_path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "annotations.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match="no images to learn from"):
        run_here(tmp_path, "none,instruct,2")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_step_names_its_images_and_changes_nothing(folder, tmp_path, monkeypatch, where):
    (tmp_path / "scenes").symlink_to(folder / "scenes")
    call, calls = Criterion.__call__, []

    def spoiled(self, *args):
        found = call(self, *args)
        calls.append(0)
        if len(calls) == 2:
            bad = found["loss"] * float("nan") if where == "loss" else _NanGradient.apply(found["loss"])
            return found | {"loss": bad}
        return found

    monkeypatch.setattr(Criterion, "__call__", spoiled)
    run_here(tmp_path, "bad,instruct,3")
    log = (tmp_path / "bad" / "log.txt").read_text()
    assert "instruct step 1: non-finite loss or gradient, step skipped; images: ['" in log
    assert [row["step"] for row in rows(tmp_path / "bad")] == [0, 2]
    assert all(value.isfinite().all() for value in weights(tmp_path / "bad", "instruct").values())


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


def test_too_many_bad_steps_in_a_row_stop_the_run(folder, tmp_path, monkeypatch):
    (tmp_path / "scenes").symlink_to(folder / "scenes")
    call = Criterion.__call__
    monkeypatch.setattr(Criterion, "__call__", lambda self, *a: {k: v * math.inf for k, v in call(self, *a).items()})
    with pytest.raises(TrainingDiverged, match=r"10 steps in a row .*, at step 9 with images \['/.*\.png'"):
        run_here(tmp_path, "bad,instruct,12")
