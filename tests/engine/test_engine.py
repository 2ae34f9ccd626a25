# SPDX-License-Identifier: Apache-2.0
"""Optimiser groups, schedule, teacher."""

import itertools

import pytest
import torch
from torch import nn

from sohes.config import OptimConfig
from sohes.engine.ema import ema_decay_at, make_teacher, update_teacher
from sohes.engine.optim import build_optimizer, learning_rate_at, set_learning_rate


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.queries = nn.Embedding(3, 4)
        self.head = nn.Linear(4, 2)

    def backbone_parameters(self):
        return self.backbone.parameters()


def test_optimizer_groups():
    model, config = Small(), OptimConfig(learning_rate=1e-2, backbone_factor=0.1, weight_decay=0.05)
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
    student = Small()
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


def test_teacher_decay_warms_up():
    assert ema_decay_at(0, 0.999) == pytest.approx(0.1)
    assert ema_decay_at(10**6, 0.999) == 0.999
    decays = [ema_decay_at(step, 0.999) for step in range(2000)]
    assert decays == sorted(decays)
