# SPDX-License-Identifier: Apache-2.0
"""Configs survive JSON, and a setting that does not exist is an error naming the nearest."""

import ast
import dataclasses
import inspect
import itertools
import re
import typing

import pytest

from sohes import config as configuration
from sohes.config import Config, ConfigError, from_dict, to_dict
from sohes.presets import PRESETS, get_preset


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


CONFIGS = [cls for cls in vars(configuration).values() if dataclasses.is_dataclass(cls)]


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
    with pytest.raises(ConfigError, match=r"config.optim.precision = 'fp8', expected one of"):
        from_dict(Config, {"optim": {"precision": "fp8"}})


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown preset 'tinny': did you mean 'tiny'"):
        get_preset("tinny")


def test_load_tells_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        configuration.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        configuration.load(tmp_path / "config.json")
