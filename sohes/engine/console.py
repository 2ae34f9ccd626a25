# SPDX-License-Identifier: Apache-2.0
"""What a run says while it works: a progress bar on a terminal, plain lines elsewhere, and the run's `log.txt`.

Nothing happens at import: no handler, no thread, no open file. All text goes to the standard error stream, so that a
command's own output stays clean.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType

from sohes.streams import say

_WINDOW_SECONDS = 60.0  # the rate is that of the last minute: a slow start should not spoil the estimate
_BAR_HZ = 4.0  # a terminal bar is redrawn at most this often


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


def format_fields(fields: dict[str, object]) -> str:
    """`{"loss": 3.14159, "step": 20}` -> `loss 3.142  step 20`; floats get four digits."""
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items())


class RunLog:
    """Messages to the console and, with the time in front, to a file that is appended to.

    Every line is flushed, so a killed run keeps what it said. A bar that is on screen stays below the messages.
    """

    def __init__(self, path: Path | None = None, console: bool = True) -> None:
        """path: the log file, made with its folders; None writes to the console only. console: False is file only."""
        self._console = console
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")  # names that are no UTF-8

    def __call__(self, message: str, console: bool = True) -> None:
        """Say one thing; `console=False` keeps it to the file."""
        if console and self._console:
            say(message, "stderr")
        if self._file is not None:
            now = datetime.now().isoformat(sep=" ", timespec="seconds")
            self._file.write("".join(f"{now}  {line}\n" for line in message.splitlines() or [""]))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Progress:
    """How far a loop is: `with Progress(200, "explore", "images") as p: p.update(1, masks=57)`.

    On a terminal a bar; elsewhere a line every `interval` seconds. At the end one line says how many and how long, or
    where an error stopped it. With a `log`, its file gets the lines in both cases.
    """

    def __init__(
        self,
        total: int | None,
        title: str,
        unit: str = "steps",
        *,
        initial: int = 0,
        log: RunLog | None = None,
        interval: float = 10.0,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            total: units to do in all, >= 0; None when unknown (then there is no bar and no ETA).
            title, unit: as in "explore: 20/200 images".
            initial: units done before this start (a resumed run); they do not count for the rate.
            log: takes the lines; None prints them.
            interval: seconds between plain lines, > 0.
            enabled: False says nothing at all (the other processes of a distributed run).
            clock: seconds, for tests.
        """
        self.total, self.title, self.unit = total, title, unit
        self.done = self._initial = initial
        self.fields: dict[str, object] = {}
        self._log = log if log is not None else RunLog()
        self._interval, self._enabled, self._clock = interval, enabled, clock
        self._bar = self._task = None

    def __enter__(self) -> Progress:
        self._start = self._last_line = self._clock()
        self._window = deque([(self._start, self.done)])
        if self._enabled and sys.stderr is not None and sys.stderr.isatty():
            self._open_bar()
        return self

    def update(self, n: int = 1, **fields: object) -> None:
        """`n` more units are done. Fields (`loss=3.2`) are shown until a later call changes them."""
        self.done += n
        self.fields.update(fields)
        now = self._clock()
        self._remember(now)
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, tail=self._tail(now))
        if now - self._last_line >= self._interval:
            self._last_line = now
            self._log(self.line(now), console=self._bar is None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._enabled:
            self._log(self.summary(self._clock(), kind))

    def line(self, now: float) -> str:
        """`instruct: 120/2000 steps (6%)  3.1 steps/s  10m 06s left  loss 3.21`"""
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        share = f" ({100 * self.done // self.total}%)" if self.total else ""
        return f"{self.title}: {count} {self.unit}{share}  {self._tail(now)}".rstrip()

    def summary(self, now: float, error: type[BaseException] | None = None) -> str:
        """`instruct: 2000 steps in 10m 45s (3.1 steps/s)  loss 2.9`"""
        elapsed = max(now - self._start, 1e-9)
        if error is not None:
            count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
            return f"{self.title}: stopped by {error.__name__} at {count} {self.unit} after {format_seconds(elapsed)}"
        rate = (self.done - self._initial) / elapsed
        took = f"{format_seconds(elapsed)} ({rate:.3g} {self.unit}/s)"
        return f"{self.title}: {self.done} {self.unit} in {took}  {format_fields(self.fields)}".rstrip()

    def rate(self, now: float) -> float:
        """Units per second over the last minute."""
        then, done = self._window[0]
        return (self.done - done) / max(now - then, 1e-9)

    def _remember(self, now: float) -> None:
        # One sample a second is enough: the window stays short however fast the loop is.
        if now - self._window[-1][0] >= 1.0:
            self._window.append((now, self.done))
        while len(self._window) > 1 and now - self._window[1][0] >= _WINDOW_SECONDS:
            self._window.popleft()

    def _tail(self, now: float) -> str:
        rate = self.rate(now)
        parts = [f"{rate:.3g} {self.unit}/s"]
        if self.total is not None and rate > 0:
            parts.append(f"{format_seconds((self.total - self.done) / rate)} left")
        return "  ".join([*parts, format_fields(self.fields)]).rstrip()

    def _open_bar(self) -> None:
        from rich import progress
        from rich.console import Console

        console = Console(file=sys.stderr)
        if console.is_dumb_terminal:
            return
        self._bar = progress.Progress(
            progress.TextColumn("[bold]{task.description}"),
            progress.BarColumn(bar_width=28),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[unit]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[tail]}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=_BAR_HZ,
        )
        self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, unit=self.unit, tail="")
        self._bar.start()
