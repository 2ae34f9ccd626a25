# SPDX-License-Identifier: Apache-2.0
"""Standard streams that are closed, absent, full or no longer read, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sohes.cli.command import fail_clearly
from sohes.utils.errors import SohesError
from sohes.utils.streams import say

ROOT = Path(__file__).resolve().parents[2]


def shell(script, *arguments, cwd=ROOT):
    """The result of `script` in bash, where "$@" is Python with `arguments`."""
    return subprocess.run(["bash", "-c", script, "x", sys.executable, *arguments], cwd=cwd, capture_output=True)


@pytest.mark.parametrize("module", ["sohes.segment", "sohes.train", "sohes.evaluate", "sohes.pretrain", "sohes.env"])
def test_a_pipe_whose_reader_ends(module):
    asked = ["--help"] if module != "sohes.env" else ["--json"]
    done = shell('set -o pipefail; "$@" | head -1', "-m", module, *asked)
    assert done.returncode == 0
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1


LINES = "from sohes.cli.command import fail_clearly\nfrom sohes.utils.streams import say\nwith fail_clearly('x'):\n"


def test_work_continues_without_a_reader(tmp_path):
    code = LINES + " for i in range(20000): say(f'line {i}'); say(f'line {i}', 'stderr')\n open('done', 'w').close()"
    code = f"import os\nos.chdir({str(tmp_path)!r})\n{code}"
    done = shell('set -o pipefail; PYTHONPATH=$PWD "$@" 2>&1 | head -1', "-c", code)
    assert done.returncode == 0
    assert done.stdout == b"line 0\n"
    assert (tmp_path / "done").is_file()


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, tmp_path):
    """A file opened later does not become the standard error that libraries write to."""
    code = LINES + " say('a'); say('b', 'stderr'); f = open('f', 'w'); import os; os.write(2, b'warning'); f.close()"
    done = shell(f'PYTHONPATH=$PWD "$@" {closed}', "-c", f"import os\nos.chdir({str(tmp_path)!r})\n{code}")
    assert done.returncode == 0
    assert done.stdout == (b"" if ">&-" in closed.split() else b"a\n")
    assert (tmp_path / "f").read_bytes() == b""


def test_an_error_is_printed_if_stderr_is_open(tmp_path):
    done = shell('"$@" >&-', "-c", LINES + " raise FileNotFoundError(2, 'No such file', 'here')")
    assert (done.returncode, done.stderr) == (2, b"x: error: here: No such file\n")
    done = shell('"$@" 2>&-', "-c", LINES + " raise FileNotFoundError(2, 'No such file', 'here')")
    assert (done.returncode, done.stderr) == (2, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    done = shell('"$@" >/dev/full', "-c", LINES + " say('a')")
    assert done.returncode == 2
    assert done.stderr == b"x: error: stdout: No space left on device; what was written stays\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_any_name_can_be_printed(encoding):
    code = "import sys; from sohes.utils.streams import say; [say(sys.argv[1], s) for s in ('stdout', 'stderr')]"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", code, b"Jos\xe9 \xc3\xbc"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    expected = {"utf-8": b"Jos\\udce9 \xc3\xbc\n", "ascii": b"Jos\\udce9 \\xfc\n"}[encoding]
    assert done.stdout == done.stderr == expected


def test_nothing_is_printed_without_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)

    def work():
        say("a")
        print("b", file=sys.stderr)
        raise SohesError("c")

    with pytest.raises(SystemExit) as stop, fail_clearly("x"):
        work()
    assert stop.value.code == 2
    assert sys.stdout is None
    say("d", "stderr")
