# SPDX-License-Identifier: Apache-2.0
"""Configs survive JSON, and a setting that does not exist is an error naming the nearest."""

import dataclasses
from pathlib import Path

import pytest

from sohes import config as configuration
from sohes.config import Config, ConfigError, from_dict, to_dict
from sohes.presets import PRESETS, get_preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_json(name):
    preset = get_preset(name)
    assert preset.preset == name
    assert from_dict(Config, to_dict(preset)) == preset


def test_every_field_has_a_docstring():
    """`--help` is made of them."""
    source = Path(configuration.__file__).read_text(encoding="utf-8")
    for cls in (c for c in vars(configuration).values() if dataclasses.is_dataclass(c)):
        for field in dataclasses.fields(cls):
            if field.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(field.default_factory):
                continue
            lines = source[source.index(f"class {cls.__name__}") :].splitlines()
            at = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{field.name}:"))
            following = "".join(lines[at : at + 12])
            assert '"""' in following, f"{cls.__name__}.{field.name} has no docstring"


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
