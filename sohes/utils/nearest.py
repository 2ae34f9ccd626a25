# SPDX-License-Identifier: Apache-2.0
"""The hint in errors about unknown names: the most similar known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean X? `, or "" if none is similar."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""
