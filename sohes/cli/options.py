# SPDX-License-Identifier: Apache-2.0
"""Command-line options from a dataclass: each field is an option, the docstring below it is the help text.

A field that is itself a dataclass is a group, `--group.field`. The `metadata` of a field may be FLAT, a group whose
options have no prefix, or POSITIONAL, for words without an option name.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sohes.configs.ranges import Range, field_ranges, fits
from sohes.utils.errors import SohesError
from sohes.utils.nearest import nearest

Arguments = TypeVar("Arguments")

FLAT = {"sohes.flat": True}
POSITIONAL = {"sohes.positional": True}

_NUMBER = re.compile(r"-\.?\d")
_EXPECTED = {int: "a whole number", float: "a finite number", Path: "a path"}


class OptionError(SohesError):
    """An option that does not exist or has a wrong value; the message names the nearest option or choice."""


@dataclass(frozen=True)
class Option:
    """One option. path: names of the nested fields, and of a dictionary's key. hint: the type without None. optional:
    may be None. group: title and summary of its dataclass, "" for the command's own. range: of its numbers."""

    name: str
    path: tuple[str, ...]
    hint: Any
    optional: bool
    default: Any
    text: str
    group: tuple[str, str] = ("", "")
    positional: bool = False
    range: Range | None = None

    @property
    def is_many(self) -> bool:
        """Whether it takes any number of words."""
        return typing.get_origin(self.hint) is tuple and typing.get_args(self.hint)[-1] is Ellipsis

    @property
    def num_words(self) -> int | None:
        """Number of words it takes; None: any number."""
        if self.is_many:
            return None
        if typing.get_origin(self.hint) is tuple:
            return len(typing.get_args(self.hint))
        return 0 if self.hint is bool else 1


def list_options(arguments: Any) -> list[Option]:
    """All options of the dataclass `arguments`, whose values are the defaults."""
    return list(_walk(arguments, (), (), ("", "")))


def _walk(value: Any, path: tuple[str, ...], prefix: tuple[str, ...], group: tuple[str, str]) -> Iterable[Option]:
    cls = type(value)
    hints, texts, ranges = typing.get_type_hints(cls), field_texts(cls), field_ranges(cls)
    for field in dataclasses.fields(cls):
        one, here = getattr(value, field.name), (*path, field.name)
        shown = (*prefix, field.name.replace("_", "-"))
        if dataclasses.is_dataclass(one):
            is_flat = "sohes.flat" in field.metadata
            inner = group if is_flat else (".".join(shown), inspect.getdoc(type(one)) or "")
            yield from _walk(one, here, prefix if is_flat else shown, inner)
            continue
        hint, optional = _without_none(hints[field.name])
        positional = "sohes.positional" in field.metadata
        name = field.name if positional else "--" + ".".join(shown)
        allowed = ranges.get(field.name)
        yield Option(name, here, hint, optional, one, texts.get(field.name, ""), group, positional, allowed)
        if typing.get_origin(hint) is dict:
            for key, entry in one.items():
                text = f"`{key}` of {name}."
                yield Option(f"{name}.{key.replace('_', '-')}", (*here, key), Any, False, entry, text, group)


def field_texts(cls: type) -> dict[str, str]:
    """Field name -> the docstring below the field, on one line."""
    definition = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [one for one in typing.get_args(hint) if one is not type(None)]
        assert len(options) == 1, f"options of several types are not supported: {hint}"
        return options[0], True
    return hint, False


def read_options(default: Arguments, given: Sequence[str]) -> Arguments:
    """A copy of the dataclass `default`, changed by the words of a command line.

    `--name VALUE`, `--name=VALUE`, `--switch`, `--no-switch`; `_` and `-` are equal in names; words after `--` are no
    option names. The last value of a repeated option counts; repeating an option that takes any number of values is an
    error. Raises OptionError.
    """
    options = list_options(default)
    named = {option.name: option for option in options if not option.positional}
    switches = {_negated(option.name): option for option in named.values() if option.hint is bool}
    words, loose, found = list(given), list[str](), dict[tuple[str, ...], Any]()
    while words:
        word = words.pop(0)
        if word == "--":
            loose += words
            break
        if not word.startswith("-") or word == "-" or _NUMBER.match(word):
            loose.append(word)
            continue
        name, has_value, value = word.partition("=")
        name = name.replace("_", "-")
        if name in switches and not has_value:
            found[switches[name].path] = False
            continue
        if name not in named:
            raise OptionError(_unknown(name, [*named, *switches]))
        option = named[name]
        if option.hint is bool:
            if has_value:
                raise OptionError(f"{name}: takes no value; {_negated(name)} switches it off")
            found[option.path] = True
            continue
        if option.is_many and option.path in found:
            raise OptionError(f"{name} is given twice: give all values after one {name}")
        taken = [value] if has_value else []
        while words and not _is_name(words[0]) and (option.num_words is None or len(taken) < option.num_words):
            taken.append(words.pop(0))
        found[option.path] = _convert(option, taken)
    if loose:
        positional = next((option for option in options if option.positional), None)
        if positional is None:
            raise OptionError(_unexpected(loose[0], named))
        found[positional.path] = _convert(positional, loose)
    result = default
    for path in sorted(found, key=len):  # a dictionary before its entries
        result = _replaced(result, path, found[path])
    return result


def check_ranges(arguments: Any) -> None:
    """Raises OptionError for the first option of a dataclass whose value is out of its range."""
    for option in list_options(arguments):
        if option.range is not None and not fits(option.default, option.range):
            raise OptionError(f"{option.name} {show_default(option)}: expected {option.range}")


def _is_name(word: str) -> bool:
    return word.startswith("--") or (word.startswith("-") and len(word) > 1 and not _NUMBER.match(word))


def _negated(name: str) -> str:
    """--explore.color-trees -> --explore.no-color-trees"""
    group, dot, last = name[2:].rpartition(".")
    return f"--{group}{dot}no-{last}"


def _replaced(value: Any, path: tuple[str, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, dict):
        return {**value, path[0]: new}
    return dataclasses.replace(value, **{path[0]: _replaced(getattr(value, path[0]), path[1:], new)})


def _convert(option: Option, words: list[str]) -> Any:
    """The value of an option, from the words after it."""
    name, count = option.name, option.num_words
    if option.optional and [word.lower() for word in words] == ["none"]:
        return None
    if not words and option.is_many:  # for example an empty shell variable
        choices = typing.get_args(typing.get_args(option.hint)[0])
        expected = f"of {', '.join(map(str, sorted(choices)))}" if choices else "value"
        raise OptionError(f"{name}: expected at least one {expected}")
    if count is not None and len(words) != count:
        expected = "a value" if count == 1 else f"{count} values"
        raise OptionError(f"{name}{''.join(f' {word}' for word in words)}: expected {expected}{_or_none(option)}")
    if typing.get_origin(option.hint) is tuple:
        items = typing.get_args(option.hint)
        items = items[:1] * len(words) if option.is_many else items
        return tuple(_convert_word(name, item, word) for item, word in zip(items, words, strict=True))
    return _convert_word(name, option.hint, words[0])


def _convert_word(name: str, hint: Any, word: str) -> Any:
    if typing.get_origin(hint) is Literal:
        return pick(word, typing.get_args(hint), name)
    if hint is Any or typing.get_origin(hint) is dict:
        return _convert_json(name, hint, word)
    if hint is str:
        return word
    try:
        value = hint(word)
    except ValueError as error:
        raise OptionError(f"{name} {word}: expected {_EXPECTED[hint]}") from error
    if word == "":  # for example an empty shell variable; Path("") would be the current folder
        raise OptionError(f"{name} '': expected {_EXPECTED[hint]}")
    if hint is float and not math.isfinite(value):
        raise OptionError(f"{name} {word}: expected {_EXPECTED[hint]}")
    return value


def _convert_json(name: str, hint: Any, word: str) -> Any:
    try:
        value = json.loads(word)
    except ValueError:
        value = word
    if hint is not Any and not isinstance(value, dict):
        raise OptionError(f'{name} {word}: expected a JSON object, like {{"depth": 4}}')
    return value


def pick(word: str, choices: Iterable[Any], name: str) -> Any:
    """The choice whose text is `word`. Raises OptionError that lists the choices and suggests the nearest."""
    known = {str(choice): choice for choice in sorted(choices)}
    if word in known:
        return known[word]
    raise OptionError(f"{name} {word}: {nearest(word, known)}expected one of {', '.join(known)}")


def _unknown(name: str, known: Sequence[str]) -> str:
    last = name.lstrip("-")
    inner = [one for one in known if one[2:].rpartition(".")[2] == last]  # --max-masks: which group's?
    near = inner or difflib.get_close_matches(name, known, n=2) or [one for one in known if last and last in one][:3]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown option {name}: {hint}--help-all lists all of them"


def _unexpected(word: str, named: dict[str, Option]) -> str:
    hint = f", as in --images {word}" if "--images" in named else ""
    return f"unexpected {word!r}: every value here belongs to an option{hint}"


def _or_none(option: Option) -> str:
    return ", or None" if option.optional else ""


def metavar(option: Option) -> str:
    """The values of an option as help shows them: `INT`, `{a, b}`, `PATH ...`."""
    if option.hint is bool:
        return ""
    items = typing.get_args(option.hint) if typing.get_origin(option.hint) is tuple else (option.hint,)
    if option.is_many:
        return f"{_word_of(items[0])} ..."
    return " ".join(map(_word_of, items))


def _word_of(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "{" + ", ".join(map(str, typing.get_args(hint))) + "}"
    if typing.get_origin(hint) is dict:
        return "JSON"
    return {str: "TEXT", Any: "VALUE"}.get(hint) or hint.__name__.upper()


def show_default(option: Option) -> str:
    """The default as it is written on a command line."""
    value = option.default
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return json.dumps(value)
    if value == "":
        return "empty"
    return "none" if value is None else str(value)
