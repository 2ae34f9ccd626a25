# SPDX-License-Identifier: Apache-2.0
import io
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from sohes.utils.console import Progress, RunLog, format_fields, format_seconds
from sohes.utils.estimate import Job, Part, format_about
from sohes.utils.status_line import Status, fit


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
        assert len(progress._rate._window) <= 62
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
    assert "explore: 2/8 images (25%)  0.333 images/s  masks 9" in logged
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
        # Flushed: a killed run keeps its log.
        assert len(path.read_text(encoding="utf-8").splitlines()) == 3
    with RunLog(path, console=False) as log:
        log("third")
    assert capsys.readouterr().err == "first\nsecond – ünïcode\n"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["first", "second – ünïcode", "file only", "third"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)


def test_nothing_is_estimated_from_the_first_unit():
    """It takes a minute, as kernels are compiled; the next ones a second each."""
    clock = Clock()
    with Progress(104, "instruct", enabled=False, clock=clock) as progress:
        clock.now += 60
        lefts = []
        for _ in range(5):
            progress.update(1, loss=2.0)
            lefts.append(progress.status(clock.now).left)
            clock.now += 1
    assert lefts == ["", "", "", "1m 40s left", "1m 39s left"]


def test_slow_units_are_estimated_from_several():
    clock = Clock()
    with Progress(100, "correct", enabled=False, clock=clock) as progress:
        for seconds in (50, 100, 200, 100, 200, 100, 200):
            clock.now += seconds
            progress.update(1)
    assert progress.rate(clock.now) == pytest.approx(6 / 900)


def test_lines_show_the_phase_and_the_time_of_the_job(capsys):
    """40 steps of 2 s, then 10 that cost twice as much and 5 photos of 1: 20 steps left, 60 s more in all."""
    clock, log = Clock(), RunLog()
    parts = [Part("instruct", 40, "train", 4, 2), Part("correct", 10, "train", 8, 3), Part("score", 5, "train", 2, 3)]
    log.job = Job(parts, 3)
    with Progress(40, "instruct", interval=41, log=log, clock=clock) as progress:
        for _ in range(21):
            clock.now += 2
            progress.update(loss=2.0)
    with Progress(10, "correct", interval=19, log=log, clock=clock) as progress:
        for _ in range(5):
            clock.now += 4
            progress.update()
    assert capsys.readouterr().err.splitlines() == [
        "2/3 instruct: 21/40 steps (52%)  0.5 steps/s  38s left, about 1m in all  loss 2",
        "instruct: 21 steps in 42s (0.5 steps/s)  loss 2",
        "3/3 correct: 5/10 steps (50%)  0.25 steps/s  20s left, under 1m in all",
        "correct: 5 steps in 20s (0.25 steps/s)",
    ]


def test_a_job_is_estimated_once_every_kind_is_known():
    job = Job([Part("label", 10, "a", 1, 1), Part("learn", 10, "b", 1, 2), Part("score", 4, "a", 3, 2)], 2)
    assert job.seconds_left("label", 5, 1.0) is None  # no rate of training yet
    assert job.seconds_left("learn", 5, 0.5) == 10 + 4 * 3
    assert job.seconds_left("score", 2, 0.25) is None  # the last part
    assert job.seconds_left("other", 5, 1.0) is None
    assert [job.label(title) for title in ("label", "score", "other")] == ["1/2 label", "2/2 score", "other"]
    assert Job([Part("label", 3, "a")], 1).label("label") == "label"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (20, "under 1m"),
        (31, "about 1m"),
        (425, "about 7m"),
        (3560, "about 59m"),
        (3590, "about 1h 00m"),
        (7810, "about 2h 10m"),
        (7100, "about 2h 00m"),
    ],
)
def test_format_about(seconds, text):
    assert format_about(seconds) == text


STATUS = Status(
    "2/3 instruct",
    "instruct",
    1200,
    20000,
    left="2h 07m left",
    in_all="about 4h 20m in all",
    rate="3.1 steps/s",
    fields=["loss 3.214", "images/s 24.8", "data 5%", "memory 1.2GB"],
)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (20, "instruct 1200/20000"),
        (40, "instruct ──────── 1200/20000 2h 07m left"),
        (60, "2/3 instruct ────────── 1200/20000 6% 2h 07m left loss 3.214"),
        (80, "2/3 instruct ───────── 1200/20000 6% 2h 07m left, about 4h 20m in all loss 3.214"),
        (10, "instruct 1"),
    ],
)
def test_a_line_fits_its_width_with_the_important_parts_first(width, line):
    assert fit(STATUS, width) == line
    assert len(line) <= width


def test_a_wide_line_shows_everything():
    line = fit(STATUS, 200, "#.")
    assert line.startswith("2/3 instruct #" + 29 * "." + " 1200/20000 6% 2h 07m left, about 4h 20m in all loss 3.214")
    assert line.endswith("images/s 24.8 data 5% memory 1.2GB 3.1 steps/s")


@pytest.mark.parametrize("width", range(1, 130, 7))
def test_no_line_is_longer_than_the_terminal(width):
    for status in (STATUS, replace(STATUS, total=None), replace(STATUS, done=20000), replace(STATUS, total=0, done=0)):
        assert 0 < len(fit(status, width)) <= width


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_terminal_shows_bar_step_loss_and_time_left(monkeypatch, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    terminal, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(240, "instruct", clock=clock) as progress:
        for _ in range(120):
            clock.now += 0.5
            progress.update(loss=3.25, data="5%")
        progress._bar._live.refresh()
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]", terminal.getvalue())]
    last = [line for line in shown if "120/240" in line][-1].rstrip()
    assert re.search("━━━+──", last)
    assert "1m 00s left" in last
    assert len(last) <= int(columns)
    assert ("50%" in last and "loss 3.25" in last) == (columns == "80")


@pytest.mark.parametrize("gone", [None, "closed"])
def test_progress_works_without_stderr(monkeypatch, tmp_path, gone):
    stream = None if gone is None else io.StringIO()
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with RunLog(tmp_path / "log.txt") as log, Progress(2, "explore", interval=1e-9, log=log) as progress:
        log("hello")
        progress.update(2)
    assert "explore: 2/2 steps (100%)" in (tmp_path / "log.txt").read_text()


def test_import_is_quiet_and_light():
    code = (
        "import logging, sys, threading; import sohes.utils.console; "
        "print(logging.getLogger().handlers, threading.active_count(), 'rich' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] 1 False False"
