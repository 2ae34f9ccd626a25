# SPDX-License-Identifier: Apache-2.0
"""Progress and log of a run: a progress bar on a terminal, plain lines elsewhere, and the run's `log.txt`.

The import has no effects: no handler, no thread, no open file. All text goes to stderr; stdout is for a command's
results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from sohes.utils.estimate import Job, Rate, format_about, format_seconds
from sohes.utils.status_line import Status
from sohes.utils.streams import say

if TYPE_CHECKING:  # imports rich, which only terminals need
    from sohes.utils.bar import Bar


def format_fields(fields: dict[str, object]) -> str:
    """`{"loss": 3.14159, "step": 20}` -> `loss 3.142  step 20`; floats get four digits."""
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items())


class RunLog:
    """Prints messages to the console and appends them, with the time, to a file.

    job: the job that the logged loops belong to, for estimates of its time; None if unknown.

    Every line is flushed, so a killed run keeps its log. A progress bar stays below the messages.
    """

    def __init__(self, path: Path | None = None, console: bool = True) -> None:
        """path: the log file, created with its folders; None: console only. console: False: file only."""
        self._console = console
        self.job: Job | None = None
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")  # for names that are not UTF-8

    def __call__(self, message: str, console: bool = True) -> None:
        """Log a message; console: False: to the file only."""
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


def has_terminal() -> bool:
    """Whether stderr is an open terminal."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


class Progress:
    """Progress of a loop: `with Progress(200, "explore", "images") as p: p.update(1, masks=57)`.

    A bar on a terminal; elsewhere a line every `interval` seconds. The last line has the count and the time, or the
    error that stopped the loop. With a `log`, its file gets the lines in both cases, and its `job` gives the time of
    the whole job.
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
            total: number of units, >= 0; None if unknown (without bar and time left).
            title, unit: as in "explore: 20/200 images".
            initial: units done before this start (of a resumed run), which are left out of the rate.
            log: gets the lines; None: they are printed.
            interval: seconds between plain lines, > 0.
            enabled: False: no output (in other processes than the main one).
            clock: seconds, for tests.
        """
        self.total, self.title, self.unit = total, title, unit
        self.done = self._initial = initial
        self.fields: dict[str, object] = {}
        self._log = log if log is not None else RunLog()
        self._interval, self._enabled, self._clock = interval, enabled, clock
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        self._start = self._last_line = self._clock()
        self._rate = Rate(self._start, self.done)
        if self._enabled and has_terminal():
            self._open_bar()
        return self

    def update(self, n: int = 1, **fields: object) -> None:
        """Count `n` more units. Fields (`loss=3.2`) are shown until a later call changes them."""
        self.done += n
        self.fields.update(fields)
        now = self._clock()
        self._rate.update(now, self.done)
        if self._enabled and now - self._last_line >= self._interval:
            self._last_line = now
            self._log(self.line(now), console=self._bar is None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._enabled:
            self._log(self.summary(self._clock(), kind))

    def line(self, now: float) -> str:
        """`2/3 instruct: 120/2000 steps (6%)  3.1 steps/s  10m 06s left, about 25m in all  loss 3.21`"""
        status = self.status(now)
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        share = f" ({100 * self.done // self.total}%)" if self.total else ""
        parts = [f"{status.label}: {count} {self.unit}{share}", status.rate]
        parts += [f"{status.left}, {status.in_all}" if status.in_all else status.left, *status.fields]
        return "  ".join(filter(None, parts))

    def status(self, now: float) -> Status:
        """The status that lines and bars show."""
        rate, job = self.rate(now), self._log.job
        left = in_all = ""
        if self.total is not None and rate > 0 and self._rate.is_known(now, self.done):
            left = f"{format_seconds((self.total - self.done) / rate)} left"
            seconds = None if job is None else job.seconds_left(self.title, self.total - self.done, rate)
            in_all = "" if seconds is None else f"{format_about(seconds)} in all"
        return Status(
            label=self.title if job is None else job.label(self.title),
            title=self.title,
            done=self.done,
            total=self.total,
            left=left,
            in_all=in_all,
            rate=f"{rate:.3g} {self.unit}/s",
            fields=[format_fields({name: value}) for name, value in dict(self.fields).items()],
        )

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
        """Units per second over the last minute, without the first unit."""
        return self._rate.value(now, self.done)

    def _open_bar(self) -> None:
        from rich.console import Console

        from sohes.utils.bar import Bar

        console = Console(file=sys.stderr)
        if console.is_dumb_terminal:
            return
        self._bar = Bar(console, lambda: self.status(self._clock()))
        self._bar.start()
