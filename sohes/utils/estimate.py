# SPDX-License-Identifier: Apache-2.0
"""Estimates of the time left, of a loop and of the job it belongs to."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_WINDOW_SECONDS = 60.0  # the rate is that of the last minute, without a slow start
_WINDOW_SAMPLES = 5  # but of at least this many samples, if a unit takes long
_FEW, _SOON = 3, 1.0  # units after the first, and seconds, needed for an estimate


def format_seconds(seconds: float) -> str:
    """A duration as text: `0.4s`, `12s`, `3m 05s`, `2h 07m`."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def format_about(seconds: float) -> str:
    """An estimated duration as text: `under 1m`, `about 7m`, `about 2h 10m`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under 1m"
    if minutes < 60:
        return f"about {minutes}m"
    tens = round(minutes / 10)
    return f"about {tens // 6}h {tens % 6}0m"


class Rate:
    """Units per second over the last minute.

    The first unit is left out: workers start, kernels are compiled, memory is allocated.
    """

    def __init__(self, now: float, done: int) -> None:
        """now: in seconds. done: units done before, which are left out."""
        self._start, self._initial = now, done
        self._window: deque[tuple[float, int]] = deque()

    def update(self, now: float, done: int) -> None:
        window = self._window
        # At most one sample per second, which bounds the window.
        if not window or now - window[-1][0] >= 1.0:
            window.append((now, done))
        while len(window) > _WINDOW_SAMPLES and now - window[1][0] >= _WINDOW_SECONDS:
            window.popleft()

    def value(self, now: float, done: int) -> float:
        """Units per second; since the start while there are too few for a window."""
        then, before = self._window[0] if self.is_known(now, done) else (self._start, self._initial)
        return (done - before) / max(now - then, 1e-9)

    def is_known(self, now: float, done: int) -> bool:
        """Whether enough units are done for an estimate."""
        return bool(self._window) and done - self._window[0][1] >= _FEW and now - self._window[0][0] >= _SOON


@dataclass(frozen=True)
class Part:
    """A loop of a job. title: of its Progress. units: number of its units, >= 0. phase: its number, from 1.

    cost: relative time per unit, > 0, comparable among parts of one `kind`.
    """

    title: str
    units: int
    kind: str
    cost: float = 1.0
    phase: int = 1


class Job:
    """The loops of a job in order. The time of later ones is estimated from earlier ones of their kind."""

    def __init__(self, parts: Sequence[Part], num_phases: int) -> None:
        self._parts, self._num_phases = list(parts), num_phases
        self._seconds: dict[str, float] = {}  # per unit of cost, by kind

    def label(self, title: str) -> str:
        """`2/3 instruct`; the title alone for a single phase or an unknown title."""
        place = self._place(title)
        return (
            title if place is None or self._num_phases < 2 else f"{self._parts[place].phase}/{self._num_phases} {title}"
        )

    def seconds_left(self, title: str, units_left: int, rate: float) -> float | None:
        """Seconds left of the whole job, from the units left of one part and its rate in units per second, > 0; None
        if unknown or if this is the last part."""
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
