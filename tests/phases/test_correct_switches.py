# SPDX-License-Identifier: Apache-2.0
"""Each part of self-correction can be switched off, and then has no effect: three steps of the smallest model."""

import json
from dataclasses import replace

import pytest
import torch
from micro import micro_model
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from sohes.configs.run import Config, CorrectConfig, EngineConfig, InferConfig, LossConfig, OptimConfig, ViewConfig
from sohes.data.coco import LabelSet
from sohes.data.scenes import write_scenes
from sohes.engine.optim import cosine_between
from sohes.engine.run import Run
from sohes.models.segmenter import Segmenter
from sohes.models.segmenter_model import SohesModel, build_model
from sohes.phases.correct import correct
from sohes.utils.distributed import World

MODEL = micro_model(query_init="seeds")
SETTINGS = CorrectConfig(num_steps=3, batch_size=2, score_thresholds=(0.1, 0.1, 0.1), ema_decay=0.5)
CONFIG = Config(
    model=MODEL,
    loss=LossConfig(num_points=32, num_match_points=64),
    optim=OptimConfig(learning_rate=1e-2, clip_norm=1.0, warmup_steps=0),
    views=ViewConfig(size=64),
    infer=InferConfig(size=64),
    engine=EngineConfig(checkpoint_seconds=3600),
    correct=SETTINGS,
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return LabelSet(write_scenes(tmp_path_factory.mktemp("switches") / "scenes", 2, 64, 0))


@pytest.fixture
def correct_with(scenes, tmp_path, monkeypatch):
    """Runs phase 3 with changed settings; returns the run, its rows of metrics, and what teacher and student saw."""

    def run_correct(**changes):
        run = Run(tmp_path / "run")
        torch.manual_seed(0)
        Segmenter(build_model(MODEL), MODEL, CONFIG.infer).save_pretrained(run.weights("instruct"))
        seen = {"teacher": [], "student": []}
        forward = SohesModel.forward

        def watched(self, images, valid=None):
            seen["student" if self.training else "teacher"].append(images)
            return forward(self, images, valid)

        monkeypatch.setattr(SohesModel, "forward", watched)
        config = replace(CONFIG, correct=replace(SETTINGS, **changes))
        correct(run, config, scenes, torch.device("cpu"), World())
        return run, [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()], seen

    return run_correct


def total(row, branch, ancestors=True):
    """A branch's loss by its parts, with the weights of `LossConfig`."""
    loss = 2 * row[f"{branch}_loss_class"] + 5 * row[f"{branch}_loss_mask"] + 5 * row[f"{branch}_loss_dice"]
    return loss + (row[f"{branch}_loss_ancestor"] if ancestors else 0.0)


def test_both_branches_weigh_as_their_cosines_say(correct_with):
    _, rows, seen = correct_with()
    assert len(rows) == len(seen["teacher"]) == len(seen["student"]) == 3
    for step, row in enumerate(rows):
        label, teacher = cosine_between(1.0, 0.0, step / 2), cosine_between(2.0, 3.0, step / 2)
        known = teacher * total(row, "teacher") + (label * total(row, "label") if label else 0.0)
        assert row["loss"] == pytest.approx(known, rel=1e-4)
        assert row["teacher_masks"] > 0
    assert "label_loss" not in rows[2]  # a weight of 0 costs nothing


def test_without_the_teacher_branch_there_is_no_teacher(correct_with):
    _, rows, seen = correct_with(label_weight=(1.0, 1.0), teacher_weight=(0.0, 0.0))
    assert seen["teacher"] == []
    assert not [name for row in rows for name in row if name.startswith("teacher_loss")]
    assert [row["loss"] for row in rows] == pytest.approx([total(row, "label") for row in rows], rel=1e-4)


def test_without_the_label_branch_the_teacher_alone_decides(correct_with):
    _, rows, _ = correct_with(label_weight=(0.0, 0.0), teacher_weight=(1.0, 1.0))
    assert not [name for row in rows for name in row if name.startswith("label_")]
    assert [row["loss"] for row in rows] == pytest.approx([total(row, "teacher") for row in rows], rel=1e-4)


@pytest.mark.parametrize(("view", "is_equal"), [("weak", True), ("strong", False)])
def test_the_student_gets_the_weak_or_the_strong_view(correct_with, view, is_equal):
    _, _, seen = correct_with(student_view=view)
    pairs = zip(seen["teacher"], seen["student"], strict=True)
    assert [torch.equal(teacher, student) for teacher, student in pairs] == [is_equal] * 3


@pytest.mark.parametrize(("decay", "is_equal"), [(0.0, True), (0.5, False)])
def test_without_averaging_the_teacher_is_the_student(correct_with, tmp_path, decay, is_equal):
    """The result is the teacher; the last checkpoint has the student beside it."""
    run, _, _ = correct_with(ema_decay=decay)
    teacher = load_file(run.weights("correct") / "model.safetensors")
    dcp_to_torch_save(run.checkpoints("correct") / "step-00000003", tmp_path / "state.pth")
    student = torch.load(tmp_path / "state.pth")["model"]
    moved = [name for name in teacher if not torch.equal(teacher[name], student[name])]
    assert (moved == []) is is_equal


def test_without_a_forest_the_teacher_teaches_nothing_about_ancestors(correct_with):
    _, rows, _ = correct_with(teacher_forest=False, label_weight=(0.0, 0.0), teacher_weight=(1.0, 1.0))
    assert [row["loss"] for row in rows] == pytest.approx(
        [total(row, "teacher", ancestors=False) for row in rows], rel=1e-4
    )
