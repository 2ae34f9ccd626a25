# SPDX-License-Identifier: Apache-2.0
"""The one base of the errors that a person can mend: bad input, missing weights, a run that cannot be resumed."""

from __future__ import annotations


class SohesError(Exception):
    """Its message names the thing and what was expected; the commands print it as one line and exit with 2."""
