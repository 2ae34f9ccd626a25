# SPDX-License-Identifier: Apache-2.0
"""The command `sohes`, also `python -m sohes`: lists the commands, one a line; `sohes COMMAND ...` runs one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from sohes.cli.short_help import COMMANDS, HELP, answer_help, overview, print_help
from sohes.utils.nearest import nearest
from sohes.utils.streams import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in HELP:
        print_help(overview(), "sohes")
        return 0
    if given[0] == "--version":
        from sohes import __version__

        print_help(f"sohes {__version__}", "sohes")
        return 0
    name, rest = given[0].removeprefix("sohes."), given[1:]
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS)
        say(f"sohes: error: no command {name}: {hint}expected one of {', '.join(sorted(COMMANDS))}", "stderr")
        return 2
    answer_help(name, rest)  # before torch is imported
    return importlib.import_module(f"sohes.{name}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
