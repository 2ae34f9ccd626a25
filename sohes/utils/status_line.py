# SPDX-License-Identifier: Apache-2.0
"""The status of a running loop, as one line of limited width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHORTEST_BAR, _LONGEST_BAR = 8, 30
_NARROW = 60  # below this many columns the title has no phase number


@dataclass(frozen=True)
class Status:
    """label: the title with the phase's number, if known. total: None if unknown.

    left: time left of this loop; in_all: of the job; rate: as text, or "". fields: `loss 3.2`, most important first.
    """

    label: str
    title: str
    done: int
    total: int | None
    left: str = ""
    in_all: str = ""
    rate: str = ""
    fields: Sequence[str] = ()


def fit(status: Status, width: int, characters: str = "━─") -> str:
    """One line of at most `width` columns.

    It has title and count, cut if they do not fit, and as far as there is space, in this order: the time left, a bar,
    the percentage, the first field, the time of the whole job, the rate, further fields.

    Args:
        characters: of the bar, for done and remaining units.
    """
    title = status.title if width < _NARROW else status.label
    count = f"{status.done}" if status.total is None else f"{status.done}/{status.total}"
    share = f"{100 * status.done // status.total}%" if status.total else ""
    space = width - len(title) - 1 - len(count)

    def take(text: str) -> str:
        """The text if it fits together with a space, else an empty string."""
        nonlocal space
        if not text or len(text) + 1 > space:
            return ""
        space -= len(text) + 1
        return text

    left = take(status.left)
    has_bar = bool(status.total) and bool(take("." * _SHORTEST_BAR))
    share = take(share)
    fields = [take(text) for text in status.fields[:1]]
    if left and status.in_all and take(f"{status.in_all},"):
        left = f"{left}, {status.in_all}"
    rate = take(status.rate)
    fields += [take(text) for text in status.fields[1:]]
    bar = ""
    if has_bar and status.total:
        length = min(_LONGEST_BAR, _SHORTEST_BAR + space)
        filled = min(length, length * status.done // status.total)
        bar = characters[0] * filled + characters[1] * (length - filled)
    return " ".join(filter(None, (title, bar, count, share, left, *fields, rate)))[:width]
