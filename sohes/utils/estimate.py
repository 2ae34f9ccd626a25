# SPDX-License-Identifier: Apache-2.0
"""How long a loop, and the job it is a part of, will still take."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_WINDOW_SECONDS = 60.0  # the rate is that of the last minute: a slow start should not spoil the estimate
_WINDOW_SAMPLES = 5  # or of so many looks at least, where a unit takes long
_FEW, _SOON = 3, 1.0  # units after the first, and seconds, before anything is estimated


def format_seconds(seconds: float) -> str:
    """A duration as people say it: `0.4s`, `12s`, `3m 05s`, `2h 07m`."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def format_about(seconds: float) -> str:
    """A duration that is a guess: `under 1m`, `about 7m`, `about 2h 10m`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under 1m"
    if minutes < 60:
        return f"about {minutes}m"
    tens = round(minutes / 10)
    return f"about {tens // 6}h {tens % 6}0m"


class Rate:
    """Units a second lately.

    The first unit of a loop tells nothing about the others: workers start, kernels are compiled, memory is taken. The
    rate counts from its end, over the last minute.
    """

    def __init__(self, now: float, done: int) -> None:
        """now: in seconds. done: units done before, which do not count."""
        self._start, self._initial = now, done
        self._window: deque[tuple[float, int]] = deque()

    def update(self, now: float, done: int) -> None:
        window = self._window
        # One sample a second is enough: the window stays short however fast the loop is.
        if not window or now - window[-1][0] >= 1.0:
            window.append((now, done))
        while len(window) > _WINDOW_SAMPLES and now - window[1][0] >= _WINDOW_SECONDS:
            window.popleft()

    def value(self, now: float, done: int) -> float:
        """Units a second; those since the start, as long as there are few."""
        then, before = self._window[0] if self.is_known(now, done) else (self._start, self._initial)
        return (done - before) / max(now - then, 1e-9)

    def is_known(self, now: float, done: int) -> bool:
        """Whether enough units are done for an estimate of the others."""
        return bool(self._window) and done - self._window[0][1] >= _FEW and now - self._window[0][0] >= _SOON


@dataclass(frozen=True)
class Part:
    """A loop of a job: `title` is that of its Progress, `units` are how many it does, >= 0.

    Parts of one `kind` take time in proportion to their `cost` a unit, > 0. phase: its number, from 1 on.
    """

    title: str
    units: int
    kind: str
    cost: float = 1.0
    phase: int = 1


class Job:
    """The loops of a job in order. The time of later ones is estimated from those of their kind."""

    def __init__(self, parts: Sequence[Part], num_phases: int) -> None:
        self._parts, self._num_phases = list(parts), num_phases
        self._seconds: dict[str, float] = {}  # per unit of cost, by kind

    def label(self, title: str) -> str:
        """`2/3 instruct`; the title alone where there is one phase, or none of this title."""
        place = self._place(title)
        return (
            title if place is None or self._num_phases < 2 else f"{self._parts[place].phase}/{self._num_phases} {title}"
        )

    def seconds_left(self, title: str, units_left: int, rate: float) -> float | None:
        """Of the whole job, from what is left of one part and its units a second, > 0; None where it cannot be known,
        or nothing follows."""
        place = self._place(title)
        if place is None or place + 1 == len(self._parts):
            return None
        part, later = self._parts[place], self._parts[place + 1 :]
        self._seconds[part.kind] = 1.0 / (rate * part.cost)
        if any(other.kind not in self._seconds for other in later):
            return None
        return units_left / rate + sum(other.units * other.cost * self._seconds[other.kind] for other in later)

    def _place(self, title: str) -> int | None:
        return next((place for place, part in enumerate(self._parts) if part.title == title), None)
