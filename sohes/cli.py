# SPDX-License-Identifier: Apache-2.0
"""What the commands share: typed arguments from a dataclass, and one clear line for an error a person can mend."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import tyro

from sohes import config as configuration
from sohes.errors import SohesError

Arguments = TypeVar("Arguments")
Settings = TypeVar("Settings")

EXIT_BAD_INPUT = 2


def parse(cls: type[Arguments], given: Sequence[str], prog: str, default: Arguments | None = None) -> Arguments:
    """Command-line arguments as the dataclass `cls`.

    The docstring below a field is its help text; an unknown option ends the program and names the nearest ones.
    """
    options = {} if default is None else {"default": default}
    return tyro.cli(cls, args=list(given), prog=prog, **options)


def base_config(
    given: Sequence[str], cls: type[Settings], out: Path, get_preset: Callable[[str], Settings]
) -> Settings:
    """What the other options change: the preset, or with --resume the stored settings of the run.

    Args:
        cls: of the settings; the default of its field `preset` names the preset to take where none is given.
        out: where the run is when --out does not say.

    Raises:
        ConfigError: no such preset, or no run to resume.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default=cls.preset)
    early.add_argument("--out", type=Path, default=out)
    early.add_argument("--resume", action="store_true")
    known, _ = early.parse_known_args(given)
    return configuration.load(known.out / "config.json", cls) if known.resume else get_preset(known.preset)


@contextmanager
def fail_clearly(command: str) -> Iterator[None]:
    """Turn a SohesError, or a disk that is full, into one line on stderr and exit code 2.

    Any other error is a bug and keeps its traceback.
    """
    try:
        yield
    except SohesError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{command}: error: {error}; what was written stays", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print(f"{command}: interrupted; what was written stays", file=sys.stderr)
        sys.exit(130)
