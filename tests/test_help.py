# SPDX-License-Identifier: Apache-2.0
"""What every command says of itself: each option with its meaning and default; unknown ones with the nearest name."""

import re
import sys
from pathlib import Path

import pytest

from sohes import evaluate, pretrain, segment, train
from sohes.cli import fail_clearly

COMMANDS = {"train": train, "segment": segment, "evaluate": evaluate, "pretrain": pretrain}


def run(command, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        COMMANDS[command].main(arguments)
    shown = capsys.readouterr()
    return stop.value.code, shown.out + shown.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_text_and_a_default(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, shown = run(command, ["--help"], capsys)
    assert code == 0
    lines = [line.strip("│ ") for line in shown.splitlines()]
    options = [i for i, line in enumerate(lines) if re.match("--[a-z]", line) and ".backbone-kwargs." not in line]
    assert len(options) > 3
    for at in options:
        following = text_of(lines, at)
        assert re.search(r"\((default: .*|required|repeatable.*)\)", following), lines[at]
        assert len(re.sub(r"\(default:.*", "", following).split()) >= 1, lines[at]


def text_of(lines, at):
    """The text of an option: what stands beside it, and below it until the next one."""
    text = [re.sub(r"^--.*?(  +|$)", "", lines[at])]
    for line in lines[at + 1 :]:
        if line.startswith(("-", "╰", "╭", "─", "+")):
            break
        text.append(line)
    return " ".join(text)


@pytest.mark.parametrize(
    ("command", "given", "nearest"),
    [
        ("train", "--explore.max-masc", "--explore.max-masks"),
        ("train", "--image", "--images"),
        ("segment", "--weigths", "--weights"),
        ("evaluate", "--pret", "--pred"),
        ("pretrain", "--batchsize", "--batch-size"),
    ],
)
def test_an_unknown_option_names_the_nearest(command, given, nearest, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, shown = run(command, [given, "3"], capsys)
    assert code == 2
    assert re.search(rf"{re.escape(given)}(?![\w-])", shown)
    assert re.search(rf"{re.escape(nearest)}(?![\w-])", shown), shown


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /dev/full")
def test_a_full_disk_is_one_clear_line(capsys):
    with pytest.raises(SystemExit) as stop, fail_clearly("sohes.train"):
        Path("/dev/full").write_text("some")
    assert stop.value.code == 2
    told = "sohes.train: error: No space left on device; what was written stays\n"
    assert capsys.readouterr().err == told
