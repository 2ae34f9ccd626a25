# SPDX-License-Identifier: Apache-2.0
"""Configs survive JSON; unknown settings, wrong types and numbers out of range are errors that name them."""

import dataclasses
import inspect
import math
import re
import typing

import pytest

from sohes import evaluate, pretrain, segment, train
from sohes.cli.options import field_texts
from sohes.configs import evaluate as config_evaluate
from sohes.configs import pretrain as pretrain_config
from sohes.configs import run as configuration
from sohes.configs.presets import PRESETS, get_preset
from sohes.configs.ranges import Range, above, at_least, between, field_ranges, out_of_range
from sohes.configs.run import Config, ConfigError, from_dict, to_dict
from sohes.phases.checks import check_config


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_json(name):
    preset = get_preset(name)
    assert preset.preset == name
    assert from_dict(Config, to_dict(preset)) == preset


MODULES = (configuration, config_evaluate, pretrain_config)
CONFIGS = list(dict.fromkeys(c for module in MODULES for c in vars(module).values() if dataclasses.is_dataclass(c)))
CONFIGS = [cls for cls in CONFIGS if cls is not Range]
COMMANDS = (train.Arguments, pretrain.Arguments, segment.Arguments, evaluate.Arguments)


def is_number(hint):
    """An int or float, also one that may be None, or several of them."""
    return hint in (int, float) or any(map(is_number, typing.get_args(hint)))


@pytest.mark.parametrize("cls", [*CONFIGS, *COMMANDS], ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_field_has_a_text_and_every_number_a_range(cls):
    texts, hints, ranges = field_texts(cls), typing.get_type_hints(cls), field_ranges(cls)
    assert inspect.getdoc(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            continue
        assert len(texts[field.name]) > 10, field.name
        assert (field.name in ranges) == (typing.get_origin(hint) is not typing.Literal and is_number(hint)), field.name
        assert not re.search(r"[<>]=? ?-?\d|\d\.\.\d", texts[field.name]), f"{field.name}: the range stands in the type"


@pytest.mark.parametrize(
    ("allowed", "text", "inside", "outside"),
    [
        (at_least(1), ">= 1", (1, 2, math.inf), (0, 0.999, math.nan)),
        (above(0), "> 0", (1e-9,), (0, -1, math.nan)),
        (between(-1, 1), "-1 to 1", (-1, 0, 1), (-1.001, 1.001, math.nan, -math.inf)),
        (Range(gt=0, le=1), "> 0 to 1", (0.1, 1), (0, 1.1)),
        (Range(ge=0, lt=1), "0 to below 1", (0, 0.999), (-0.1, 1, math.nan)),
        (Range(gt=0, lt=1), "> 0 to below 1", (0.5,), (0, 1)),
        (Range(ge=32, also=0), "0 or >= 32", (0, 32, 100), (1, 31, -1)),
    ],
)
def test_the_text_and_the_numbers_of_a_range(allowed, text, inside, outside):
    assert str(allowed) == text
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)


@pytest.mark.parametrize("limits", [{}, {"le": 1}, {"ge": 0, "gt": 0}, {"ge": 0, "le": 1, "lt": 1}])
def test_a_range_has_one_lower_limit_and_at_most_one_upper(limits):
    with pytest.raises(ValueError, match=r"^expected ge or gt, and at most one of le and lt$"):
        Range(**limits)


def numbers_of(config, prefix=""):
    """Dotted name, object, field and range of every number of a config."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers_of(value, f"{prefix}{field.name}.")
        elif field.name in field_ranges(type(config)):
            yield prefix + field.name, config, field.name, field_ranges(type(config))[field.name]


@pytest.mark.parametrize("config", [Config(), pretrain_config.PretrainConfig()], ids=["run", "pretrain"])
def test_every_number_is_checked(config):
    """Also the last one of several."""
    assert list(out_of_range(config)) == []
    for name, owner, field, allowed in numbers_of(config):
        kept = getattr(owner, field)
        low = allowed.gt if allowed.ge is None else allowed.ge
        for wrong in (low - 1, math.nan, *([] if allowed.le is None else [allowed.le + 1])):
            setattr(owner, field, (*kept[:-1], wrong) if isinstance(kept, tuple) else wrong)
            (line,) = out_of_range(config)
            shown = " ".join(map(str, getattr(owner, field))) if isinstance(kept, tuple) else wrong
            assert line == f"{name} = {shown}, expected {allowed}"
        setattr(owner, field, kept)


def test_several_numbers_out_of_range_are_all_named():
    config = get_preset("tiny")
    config.infer.ancestor_cover, config.loss.class_weight, config.seed, config.explore.thresholds = 7, -1, -3, (9,)
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert str(caught.value).splitlines()[1:] == [
        "  seed = -3, expected >= 0",
        "  explore.thresholds = 9, expected -1 to 1",
        "  loss.class_weight = -1, expected >= 0",
        "  infer.ancestor_cover = 7, expected 0 to 1",
    ]


def test_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match=r"config\.instruct: unknown setting 'num_step'; did you mean 'num_steps'"):
        from_dict(Config, {"instruct": {"num_step": 3}})


def test_a_wrong_type_is_named():
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


def test_load_names_what_is_wrong(tmp_path):
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
        ({"views.scale": (2.0, 1.0)}, "views.scale = 2.0 1.0, expected low <= high"),
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
            "model: timm has no model 'vit_tiny_patch16_24'; similar names: vit_tiny",
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


@pytest.mark.parametrize(("name", "side"), [("cpu", 160), ("photos", 384)])
def test_presets_take_the_shape_of_the_packaged_backbone(name, side):
    model = get_preset(name).model
    assert (model.backbone, model.backbone_weights) == ("vit_tiny_patch16_224", "sohes-micro")
    shape = {"img_size": side, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4, "reg_tokens": 4}
    assert model.backbone_kwargs == shape
