# SPDX-License-Identifier: Apache-2.0
import io
import re
import subprocess
import sys

import pytest

from sohes.engine.console import Progress, RunLog, format_fields, format_seconds


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0, "0.0s"), (-1, "0.0s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"), (59.6, "1m 00s")],
        *[(185, "3m 05s"), (3599.7, "1h 00m"), (7620, "2h 07m"), (360000, "100h 00m")],
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_format_fields():
    assert format_fields({"loss": 3.14159, "step": 20, "phase": "instruct"}) == "loss 3.142  step 20  phase instruct"


def test_plain_lines_come_every_interval_with_rate_and_time_left(capsys):
    clock = Clock()
    with Progress(100, "instruct", "steps", interval=10, clock=clock) as progress:
        for _ in range(50):
            clock.now += 0.5
            progress.update(loss=2.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "instruct: 20/100 steps (20%)  2 steps/s  40s left  loss 2.5",
        "instruct: 40/100 steps (40%)  2 steps/s  30s left  loss 2.5",
        "instruct: 50 steps in 25s (2 steps/s)  loss 2.5",
    ]


def test_rate_follows_the_last_minute_and_ignores_what_was_done_before():
    clock = Clock()
    with Progress(10_000, "t", initial=5000, enabled=False, clock=clock) as progress:
        for _ in range(100):
            clock.now += 1.0
            progress.update(1)
        assert progress.rate(clock.now) == pytest.approx(1.0)
        for _ in range(70):
            clock.now += 1.0
            progress.update(5)
        assert progress.rate(clock.now) == pytest.approx(5.0)
        assert progress.done == 5450
        assert len(progress._window) <= 62
    assert progress.summary(clock.now) == "t: 5450 steps in 2m 50s (2.65 steps/s)"


def test_unknown_total_and_nothing_done(capsys):
    clock = Clock()
    with Progress(None, "count", "images", interval=1, clock=clock) as progress:
        clock.now += 2
        progress.update(4)
    with Progress(0, "none", "images", clock=clock):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "count: 4 images  2 images/s"
    assert lines[-1] == "none: 0 images in 0.0s (0 images/s)"


def test_an_error_is_named_and_passes_through(capsys):
    clock = Clock()

    def fail():
        with Progress(10, "instruct", clock=clock) as progress:
            clock.now += 3
            progress.update(2)
            raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        fail()
    assert capsys.readouterr().err == "instruct: stopped by KeyError at 2/10 steps after 3.0s\n"


def test_disabled_progress_is_silent(capsys):
    with Progress(3, "t", interval=1e-9, enabled=False) as progress:
        progress.update(3)
    assert capsys.readouterr() == ("", "")


def test_terminal_shows_a_bar_and_keeps_messages_and_the_summary(monkeypatch, tmp_path):
    monkeypatch.setenv("TERM", "xterm")
    terminal, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", terminal)
    with (
        RunLog(tmp_path / "log.txt") as log,
        Progress(8, "explore", "images", log=log, interval=5, clock=clock) as progress,
    ):
        clock.now += 6
        progress.update(2, masks=9)
        log("half way")
    assert sys.stderr is terminal
    text = terminal.getvalue()
    assert "\x1b[" in text
    assert "half way" in text
    assert text.endswith("explore: 2 images in 6.0s (0.333 images/s)  masks 9\n")
    # Lines of progress go to the file although the screen has a bar.
    logged = (tmp_path / "log.txt").read_text()
    assert "explore: 2/8 images (25%)  0.333 images/s  18s left  masks 9" in logged
    assert "(25%)" not in text


def test_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(1, "t", interval=1e-9) as progress:
        progress.update(1)
    assert "\x1b" not in terminal.getvalue()
    assert len(terminal.getvalue().splitlines()) == 2


def test_log_writes_both_and_appends(tmp_path, capsys):
    path = tmp_path / "new" / "log.txt"
    with RunLog(path) as log:
        log("first\nsecond – ünïcode")
        log("file only", console=False)
        # Readable at once: a killed run keeps what it said.
        assert len(path.read_text(encoding="utf-8").splitlines()) == 3
    with RunLog(path, console=False) as log:
        log("third")
    assert capsys.readouterr().err == "first\nsecond – ünïcode\n"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["first", "second – ünïcode", "file only", "third"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)


def test_import_is_quiet_and_light():
    code = (
        "import logging, sys, threading; import sohes.engine.console; "
        "print(logging.getLogger().handlers, threading.active_count(), 'rich' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] 1 False False"
