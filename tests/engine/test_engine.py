# SPDX-License-Identifier: Apache-2.0
"""Optimiser groups, schedule, teacher."""

import itertools
import math

import pytest
import torch
from micro import micro_model
from small_model import SmallModel

from sohes.configs.presets import PRESETS
from sohes.configs.run import OptimConfig
from sohes.engine.ema import ema_decay_at, make_teacher, update_teacher
from sohes.engine.optim import build_optimizer, learning_rate_at, set_learning_rate
from sohes.models.segmenter_model import build_model


def test_optimizer_groups():
    model, config = SmallModel(), OptimConfig(learning_rate=1e-2, backbone_factor=0.1, weight_decay=0.05)
    optimizer = build_optimizer(model, config)
    rows = {id(p): (g["lr_factor"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rows[id(model.backbone.weight)] == (0.1, 0.05)
    assert rows[id(model.backbone.bias)] == (0.1, 0.0)
    assert rows[id(model.head.weight)] == (1.0, 0.05)
    assert rows[id(model.norm.weight)] == (1.0, 0.0)
    assert rows[id(model.queries.weight)] == (1.0, 0.0)
    assert len(rows) == len(list(model.parameters()))
    set_learning_rate(optimizer, 0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {0.5, 0.05}


def test_layer_decay_lowers_the_learning_rate_of_each_lower_vit_layer():
    model = build_model(micro_model())
    optimizer = build_optimizer(model, OptimConfig(backbone_factor=0.5, layer_decay=0.1))
    factor = {id(p): group["lr_factor"] for group in optimizer.param_groups for p in group["params"]}
    vit = model.backbone.vit
    for parameters, expected in [
        ([*vit.norm.parameters()], 0.5),
        ([*vit.blocks[1].parameters()], 0.05),
        ([*vit.blocks[0].parameters()], 0.005),
        ([vit.pos_embed, vit.cls_token, *vit.patch_embed.parameters()], 0.0005),
        ([*model.backbone.prior.parameters()], 1.0),
        ([*model.mask_decoder.parameters()], 1.0),
    ]:
        assert [factor[id(p)] for p in parameters] == pytest.approx([expected] * len(parameters))
    assert len(factor) == len(list(model.parameters()))
    without_decay = build_optimizer(model, OptimConfig(backbone_factor=0.5))
    assert {group["lr_factor"] for group in without_decay.param_groups} == {0.5, 1.0}


def test_learning_rate_schedule():
    config = OptimConfig(learning_rate=1.0, warmup_steps=10, final_factor=0.1)
    rates = [learning_rate_at(step, 110, config) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.1 + 0.9 * 0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0.1 < rates[-1] < 0.101
    assert learning_rate_at(0, 1, config) == 1.0  # a run shorter than its warm-up


def test_teacher_follows_the_student():
    student = SmallModel()
    teacher = make_teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    before = teacher.head.weight.clone()
    with torch.no_grad():
        student.head.weight.add_(1.0)
        student.norm.running_mean.fill_(5.0)
    update_teacher(teacher, student, 0.75)
    torch.testing.assert_close(teacher.head.weight, before + 0.25)
    assert teacher.norm.running_mean.eq(5.0).all()
    assert not teacher.training


def test_without_warmup_the_decay_is_constant():
    assert [ema_decay_at(step, 0.9996) for step in (0, 1, 119, 10**6)] == [0.9996] * 4
    assert ema_decay_at(5, 0.0) == 0.0


def test_the_decay_rises_during_warmup():
    assert [ema_decay_at(step, 0.96, 4) for step in range(6)] == pytest.approx([0, 0.24, 0.48, 0.72, 0.96, 0.96])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_teacher_of_a_preset_forgets_its_start_and_averages_over_many_steps(name):
    """Weight of the phase 2 model in the teacher at the end of phase 3, and the averaging window in steps."""
    settings = PRESETS[name]().correct
    left = math.prod(ema_decay_at(s, settings.ema_decay, settings.ema_warmup_steps) for s in range(settings.num_steps))
    assert left < 0.025
    assert 10 <= 1 / (1 - settings.ema_decay) <= settings.num_steps / 4 + 1e-6
