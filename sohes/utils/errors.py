# SPDX-License-Identifier: Apache-2.0
"""The base class of errors that the user can fix: bad input, missing weights, a run that cannot be resumed."""

from __future__ import annotations

from typing import ClassVar

EXIT_FAILURES = 1
"""Exit code if more photos than allowed, or all of them, could not be used."""
EXIT_BAD_INPUT = 2
"""Exit code for errors that the user can fix: options, paths, settings, weights, a full disk."""


class SohesError(Exception):
    """The message says what is wrong and what was expected; commands print it and exit with `exit_code`."""

    exit_code: ClassVar[int] = EXIT_BAD_INPUT
