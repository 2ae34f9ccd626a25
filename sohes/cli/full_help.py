# SPDX-License-Identifier: Apache-2.0
"""The text of `--help-all`: every option with its meaning, range and default, by group."""

from __future__ import annotations

import inspect
import itertools
import shutil
import textwrap
from typing import Any

from sohes.cli.options import Option, list_options, metavar, show_default

_WIDTH = 110  # most columns
_LABELS = (
    "Labels in brackets give the source of a value: [paper] the SOHES authors, [cited] others about SOHES, "
    "[sibling] HASSOD or UnSAM, [ours] chosen here, others the work they name."
)


def help_all(arguments: Any, prog: str, usage: str) -> str:
    """The help text, as wide as the terminal. arguments: the dataclass of the options, with the defaults."""
    width = min(shutil.get_terminal_size().columns, _WIDTH)
    parts = [textwrap.fill(f"usage: {prog} {usage}", width), _paragraphs(inspect.getdoc(type(arguments)) or "", width)]
    options = sorted(list_options(arguments), key=lambda option: option.group != ("", ""))  # those without first
    for (title, summary), members in itertools.groupby(options, key=lambda option: option.group):
        if title:
            parts.append(f"{title}\n{_paragraphs(summary, width)}")
        parts.append("\n".join(_entry(option, width) for option in members))
    if any("[ours]" in part for part in parts):
        parts.append(textwrap.fill(_LABELS, width))
    return "\n\n".join(parts)


def _entry(option: Option, width: int) -> str:
    name = option.name.upper() if option.positional else option.name
    if option.hint is bool:
        group, dot, last = name[2:].rpartition(".")
        name = f"{name}, --{group}{dot}no-{last}"
    head = f"  {name} {metavar(option)}".rstrip()
    text = f"{option.text} ({'' if option.range is None else f'{option.range}; '}default: {show_default(option)})"
    indent = " " * 6
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join([*textwrap.wrap(head, width, subsequent_indent=indent, break_long_words=False), *lines])


def _paragraphs(text: str, width: int) -> str:
    return "\n\n".join(textwrap.fill(" ".join(part.split()), width) for part in text.split("\n\n"))
