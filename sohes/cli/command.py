# SPDX-License-Identifier: Apache-2.0
"""What all commands share: typed arguments from a dataclass, and errors of the user as one line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sohes.cli.full_help import help_all
from sohes.cli.options import read_options
from sohes.cli.short_help import COMMANDS, answer_help, wants_all
from sohes.configs.pretrain import PretrainConfig
from sohes.configs.run import Config, load
from sohes.utils.errors import EXIT_BAD_INPUT, SohesError
from sohes.utils.streams import say, standing_streams

Arguments = TypeVar("Arguments")
Settings = TypeVar("Settings", Config, PretrainConfig)

EXIT_INTERRUPTED = 130
_RESUMABLE = ("sohes.train", "sohes.pretrain")


def parse(cls: type[Arguments], given: Sequence[str], prog: str, default: Arguments | None = None) -> Arguments:
    """Command-line arguments as the dataclass `cls`; --help and --help-all print and end the program.

    default: the values of options that are not given. Raises OptionError.
    """
    default = cls() if default is None else default
    name = prog.rpartition(".")[2]
    answer_help(name, given)
    if wants_all(given):
        say(help_all(default, prog, COMMANDS[name].usage))
        sys.exit(0)
    return read_options(default, given)


def base_config(
    given: Sequence[str], cls: type[Settings], out: Path, get_preset: Callable[[str], Settings]
) -> Settings:
    """The settings that the other options change: the preset, or with --resume the stored settings of the run.

    Args:
        cls: of the settings; the default of its field `preset` is the preset without --preset.
        out: folder of the run without --out.

    Raises:
        ConfigError: no such preset, or no run to resume.
    """
    if _last(given, "--resume", "--no-resume") == "--resume":
        return load(Path(_value(given, "--out", str(out))) / "config.json", cls)
    return get_preset(_value(given, "--preset", cls.preset))


def _value(given: Sequence[str], option: str, default: str) -> str:
    """The value of one option, before all options are read; the last one counts."""
    value = default
    for place, word in enumerate(given):
        if word == option and place + 1 < len(given) and not given[place + 1].startswith("--"):
            value = given[place + 1]
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value


def _last(given: Sequence[str], *options: str) -> str | None:
    return next((word for word in reversed(given) if word in options), None)


@contextmanager
def fail_clearly(command: str) -> Iterator[None]:
    """Turn errors that the user can fix into one line on stderr and an exit code: that of a SohesError, 1 or 2, and 2
    for an error of the system (no such folder, a read-only or full disk), with its path.

    Any other error is a bug and keeps its traceback. Standard streams may be closed or broken.
    """
    with standing_streams():
        try:
            yield
        except SohesError as error:
            say(f"{command}: error: {error}", "stderr")
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            hint = "; continue with --resume" if command in _RESUMABLE else ""
            say(f"{command}: interrupted; what was written stays{hint}", "stderr")
            sys.exit(EXIT_INTERRUPTED)
        except OSError as error:
            say(f"{command}: error: {describe_os_error(error)}", "stderr")
            sys.exit(EXIT_BAD_INPUT)


def describe_os_error(error: OSError) -> str:
    """One line: the path, if the system named one, and the reason."""
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, str | bytes)]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason += "; what was written stays"
    return ": ".join([" -> ".join(paths), reason]) if paths else reason
