# SPDX-License-Identifier: Apache-2.0
"""Reads and writes settings as JSON. An unknown key or a value of another type is an error that names it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sohes.utils.errors import SohesError
from sohes.utils.nearest import nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


class ConfigError(SohesError, ValueError):
    """A setting that does not exist or has a wrong value; the message names it and what was expected."""


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """A config as nested dictionaries of what JSON has; paths become strings."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return values


def from_dict(cls: type[Settings], values: dict[str, Any], where: str = "config") -> Settings:
    """A config from what `to_dict` returned. Raises ConfigError for an unknown key, with the nearest known one."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown setting '{key}'{hint}")
        arguments[key] = _convert(hints[key], value, f"{where}.{key}")
    return cls(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A JSON value as the declared type: lists become tuples, strings paths, whole numbers floats; no other changes."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} = {value!r}, expected settings by name")
        return from_dict(hint, value, where)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [h for h in typing.get_args(hint) if h is not type(None)]
        return None if value is None else _convert(options[0], value, where)
    if origin in (tuple, dict) and not isinstance(value, list if origin is tuple else dict):
        raise ConfigError(f"{where} = {value!r}, expected a {'list' if origin is tuple else 'dictionary'}")
    if origin is tuple:
        items = typing.get_args(hint)
        items = items[:1] * len(value) if items[-1] is Ellipsis else items
        if len(items) != len(value):
            raise ConfigError(f"{where} = {value!r}, expected {len(items)} values")
        return tuple(
            _convert(item, one, f"{where}[{i}]") for i, (item, one) in enumerate(zip(items, value, strict=True))
        )
    if origin is Literal:
        if not any(value == one and type(value) is type(one) for one in typing.get_args(hint)):
            choices = [str(one) for one in sorted(typing.get_args(hint))]
            raise ConfigError(
                f"{where} = {value!r}: {nearest(str(value), choices)}expected one of {', '.join(choices)}"
            )
        return value
    if origin is dict:
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000:
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or isinstance(value, bool) != (hint is bool)):
        raise ConfigError(f"{where} = {value!r}, expected {hint.__name__}")
    return value


def pick_preset(presets: Mapping[str, Callable[[], Settings]], name: str) -> Settings:
    """The settings of the preset `name`. Raises ConfigError that names the nearest one."""
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"unknown preset '{name}': {hint}known: {', '.join(presets)}")
    return presets[name]()
