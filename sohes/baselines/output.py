# SPDX-License-Identifier: Apache-2.0
"""Errors of the baselines, and the files they may replace."""

from __future__ import annotations

import json
from pathlib import Path

from sohes.utils.errors import SohesError

DESCRIPTION = "baseline"
"""Begins the description in the first line of every file that a baseline writes."""


class BaselineError(SohesError, ValueError):
    """A baseline cannot be applied or its predictions written; the message says why."""


def check_replaceable(path: Path, what: str) -> None:
    """Raises BaselineError if the file exists and was not written by a baseline. what: names the file in the error."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(10_000)
    try:
        ours = json.loads(first.strip().removesuffix(",") + "}")["info"]["description"].startswith(DESCRIPTION)
    except (ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise BaselineError(f"{what} holds no predictions of a baseline, and is not replaced: give another file")
