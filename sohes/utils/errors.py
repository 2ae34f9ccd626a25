# SPDX-License-Identifier: Apache-2.0
"""The one base of the errors that a person can mend: bad input, missing weights, a run that cannot be resumed."""

from __future__ import annotations

from typing import ClassVar

EXIT_FAILURES = 1
"""Exit code where photos could not be used: more than allowed, or all of them."""
EXIT_BAD_INPUT = 2
"""Exit code for what a person can mend: options, paths, settings, weights, a full disk."""


class SohesError(Exception):
    """Its message names the thing and what was expected; the commands print it as one line and exit with its code."""

    exit_code: ClassVar[int] = EXIT_BAD_INPUT
