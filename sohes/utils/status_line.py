# SPDX-License-Identifier: Apache-2.0
"""What there is to say of a loop that runs, and as much of it as a line has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHORTEST_BAR, _LONGEST_BAR = 8, 30
_NARROW = 60  # columns below which the title goes without the phase's number


@dataclass(frozen=True)
class Status:
    """What a line tells. label: title with the phase's number, or the title alone. total: None when unknown.

    left: of this loop; in_all: of the job; rate: all in words, or "". fields: `loss 3.2`, most important first.
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
    """One line of at most `width` columns: the more columns, the more it tells.

    Title and count are always there, cut where even they do not fit; then, as long as there is room, the time left, a
    bar, the share, the first field, the time of the whole job, the rate, further fields.

    Args:
        characters: of the bar, done and to do.
    """
    title = status.title if width < _NARROW else status.label
    count = f"{status.done}" if status.total is None else f"{status.done}/{status.total}"
    share = f"{100 * status.done // status.total}%" if status.total else ""
    room = width - len(title) - 1 - len(count)

    def take(text: str) -> str:
        """The text where there is room for it and a blank."""
        nonlocal room
        if not text or len(text) + 1 > room:
            return ""
        room -= len(text) + 1
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
        length = min(_LONGEST_BAR, _SHORTEST_BAR + room)
        filled = min(length, length * status.done // status.total)
        bar = characters[0] * filled + characters[1] * (length - filled)
    return " ".join(filter(None, (title, bar, count, share, left, *fields, rate)))[:width]
