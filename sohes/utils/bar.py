# SPDX-License-Identifier: Apache-2.0
"""The progress bar at the bottom of a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from sohes.utils.status_line import Status, fit

_HZ = 4.0  # redraws per second, at most


class Bar:
    """Shows a status at the bottom of a terminal; lines printed to stderr stay above it."""

    def __init__(self, console: Console, status: Callable[[], Status]) -> None:
        self._status = status
        self._live = Live(
            self, console=console, transient=True, refresh_per_second=_HZ, vertical_overflow="crop", auto_refresh=True
        )

    def start(self) -> None:
        self._live.start(refresh=True)

    def stop(self) -> None:
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        characters = "#." if options.ascii_only else "━─"
        line = fit(self._status(), options.max_width, characters)
        text = Text(line, no_wrap=True, overflow="crop")
        text.highlight_regex(f"{characters[0]}{{2,}}", "green")
        yield text
