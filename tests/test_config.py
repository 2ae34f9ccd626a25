# SPDX-License-Identifier: Apache-2.0
"""Configs survive JSON, and a setting that does not exist is an error naming the nearest."""

import ast
import dataclasses
import inspect
import itertools
import re
import typing

import pytest

from sohes.configs import evaluate as config_evaluate
from sohes.configs import pretrain as pretrain_config
from sohes.configs import run as configuration
from sohes.configs.presets import PRESETS, get_preset
from sohes.configs.run import Config, ConfigError, from_dict, to_dict
from sohes.phases.checks import check_config


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_json(name):
    preset = get_preset(name)
    assert preset.preset == name
    assert from_dict(Config, to_dict(preset)) == preset


def docstrings(cls):
    """Field -> the docstring below it."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


MODULES = (configuration, config_evaluate, pretrain_config)
CONFIGS = list(dict.fromkeys(c for module in MODULES for c in vars(module).values() if dataclasses.is_dataclass(c)))


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_every_field_says_what_it_means_and_its_range(cls):
    """`--help` is made of the docstrings."""
    told, hints = docstrings(cls), typing.get_type_hints(cls)
    assert inspect.getdoc(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        assert len(told[field.name]) > 10, field.name
        kinds = {hints[field.name], *typing.get_args(hints[field.name])} - {Ellipsis, tuple}
        if kinds & {int, float}:
            has_range = r"[<>]=? ?-?\d|\d\.\.\d|\d.*\b(to|or)\b.*\d|\b0 (leaves|takes)"
            assert re.search(has_range, told[field.name], re.DOTALL), f"{cls.__name__}.{field.name} names no range"


def test_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match=r"config\.instruct: unknown setting 'num_step'; did you mean 'num_steps'"):
        from_dict(Config, {"instruct": {"num_step": 3}})


def test_wrong_type_is_told():
    with pytest.raises(ConfigError, match=r"config.instruct.num_steps = 'many', expected int"):
        from_dict(Config, {"instruct": {"num_steps": "many"}})
    told = "config.optim.precision = 'bf26': did you mean bf16? expected one of bf16, fp16, fp32"
    with pytest.raises(ConfigError, match=re.escape(told)):
        from_dict(Config, {"optim": {"precision": "bf26"}})
    with pytest.raises(ConfigError, match=r"config.model.mask_stride = 3: expected one of 1, 2, 4$"):
        from_dict(Config, {"model": {"mask_stride": 3}})


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown preset 'tinny': did you mean 'tiny'"):
        get_preset("tinny")


def test_load_tells_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        configuration.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        configuration.load(tmp_path / "config.json")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit(name):
    check_config(get_preset(name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.importance_ratio": 0.8}, "loss.importance_ratio 0.8 + loss.local_ratio 0.4 are more than all points"),
        (
            {"engine.accumulate": 3},
            "instruct.batch_size = 8 cannot be shared by 2 processes in 3 parts each, expected a",
        ),
        ({"optim.precision": "fp16", "engine.sharding": "fsdp"}, "optim.precision fp16 does not work with"),
        ({"optim.layer_decay": 0.0}, "optim.layer_decay = 0.0, expected > 0 to 1"),
        (
            {"optim.layer_decay": 0.8, "model.backbone": "convnext_atto"},
            "optim.layer_decay = 0.8 is for the layers of a plain ViT (vit_*), expected 1 with backbone",
        ),
        (
            {"infer.grid_size": 9, "model.query_init": "learned"},
            "infer.grid_size = 9 is for model.query_init seeds, expected 0",
        ),
        ({"views.scale": (2.0, 1.0)}, "views.scale = 2.0 1.0, expected 0 < low <= high"),
        (
            {"explore.feature_side": 500},
            "explore.feature_side = 500 is more than explore.side = 480, expected at most that",
        ),
        ({"correct.ema_decay": 1.0}, "correct.ema_decay = 1.0, expected 0 to below 1"),
        ({"correct.nms_iou": 1.5}, "correct.nms_iou = 1.5, expected 0 to 1"),
        ({"explore.nms_iou": 3.0}, "explore.nms_iou = 3.0, expected 0 to 1"),
        ({"explore.basin_sigma": 0.0}, "explore.basin_sigma = 0.0, expected > 0"),
        ({"explore.theta_cover": 1.5}, "explore.theta_cover = 1.5, expected > 0 to 1"),
        ({"correct.label_weight": (0.0, 0.0), "correct.teacher_weight": (0.0, 1.0)}, "at start and end not both 0"),
        ({"instruct.num_steps": 0}, "instruct.num_steps = 0, expected >= 1"),
        ({"model.adapter_heads": 5}, "model: value_dim 48 must be divisible by num_heads 5"),
        (
            {"model.backbone": "vit_tiny_patch16_24"},
            "model: timm knows no backbone 'vit_tiny_patch16_24'; near: vit_tiny",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, message):
    config = get_preset("tiny")
    for name, value in changes.items():
        group, field = name.split(".")
        setattr(getattr(config, group), field, value)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_config(config, num_processes=2)
