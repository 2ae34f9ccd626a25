# SPDX-License-Identifier: Apache-2.0
"""One process fails, and the others of its run end with its reason."""

import os
import pickle
import signal
import sys
import time

import pytest
import torch
import torch.distributed as dist
from forked import run_processes

from sohes.data.images import UnreadableImage
from sohes.utils.distributed import barrier, on_main
from sohes.utils.errors import SohesError
from sohes.utils.failures import FailureMonitor, describe, is_lost_connection

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks after torch has started threads")


def one_line(said):
    lines = [line for line in said.splitlines() if line.startswith("job: error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0].removeprefix("job: error: ")


class TwoParts(SohesError):
    """Can be pickled, but not unpickled."""

    def __init__(self, what, why):
        super().__init__(f"{what} {why}")


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (PermissionError(13, "Permission denied", "/data/labels"), 2, r"PermissionError: \[Errno 13\].*'/data/labels'"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "CUDA out of memory. Tried to"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (AssertionError(), 1, "AssertionError$"),
        (SystemExit(3), 3, "SystemExit: 3"),
    ],
)
def test_whatever_stops_the_main_process_stops_the_others_with_its_reason(tmp_path, error, code, reason):
    def work(rank):
        on_main(lambda: raise_(error))
        time.sleep(600)

    (first, said), (other, heard) = run_processes(work, 2, tmp_path)
    assert (first, other) == (code, 2), said + heard
    expect_reason(one_line(heard), reason)
    assert ("Traceback" in said) == (code == 1)  # a bug keeps it, in its own process


def expect_reason(line, reason):
    import re

    assert line.startswith("process 0 of this run has failed: ")
    assert re.search(reason, line), line


def test_user_errors_are_the_same_line_in_all_processes(tmp_path):
    def work(rank):
        on_main(lambda: raise_(TwoParts("a.png", "has no pixels")))

    for code, said in run_processes(work, 2, tmp_path):
        assert (code, one_line(said)) == (2, "a.png has no pixels")


def test_a_result_that_cannot_be_sent_stops_all(tmp_path):
    def work(rank):
        on_main(lambda: lambda: 0)

    (first, said), (other, heard) = run_processes(work, 2, tmp_path)
    assert (first, other) == (1, 2)
    assert "pickle" in said.lower()
    assert "process 0 of this run has failed" in one_line(heard)


@pytest.mark.parametrize("waits", ["in a message", "elsewhere"])
def test_a_failure_of_any_process_reaches_those_that_wait_for_it(tmp_path, waits):
    """`elsewhere`: the main thread notices nothing, as while NCCL waits."""

    def work(rank):
        if rank == 1:
            raise UnreadableImage("b.png", "cut short")
        if waits == "elsewhere":
            time.sleep(600)
        barrier()

    started = time.monotonic()
    (first, heard), (other, said), (third, _) = run_processes(work, 3, tmp_path)
    assert (first, other, third) == (2, 2, 2), heard
    assert "process 1 of this run has failed: " in heard
    assert heard.count("b.png") == 1
    assert "Traceback" not in heard
    assert "b.png" in one_line(said)
    assert time.monotonic() - started < 40


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_stops_the_others(tmp_path, victim):
    def work(rank):
        if rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        barrier()

    found = run_processes(work, 2, tmp_path)
    assert found[victim][0] == -signal.SIGKILL
    code, heard = found[1 - victim]
    assert code == 2, heard
    assert "killed" in one_line(heard)


def test_processes_without_errors_print_nothing(tmp_path):
    def work(rank):
        barrier()
        if rank == 1:
            time.sleep(1.5)  # rank 0 serves the store until then

    assert run_processes(work, 2, tmp_path) == [(0, ""), (0, "")]


def test_a_process_that_does_not_end_is_ended(monkeypatch, capsys):
    monkeypatch.setattr("sohes.utils.failures._POLL", 0.01)
    monkeypatch.setattr("sohes.utils.failures._GRACE", 0.05)
    store, ended = dist.HashStore(), []
    with FailureMonitor(store, 1, 2, ended.append):
        store.set("failure", "0 disk full")
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
    assert ended == [2]
    assert capsys.readouterr().err == "error: process 0 of this run has failed: disk full\n"
    assert store.add("read", 0) == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SohesError("no such file\nsecond line"), "no such file"),
        (KeyError("x"), "KeyError: 'x'"),
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:1"), "lost the connection to another"),
    ],
)
def test_reasons_are_one_line(error, text):
    assert describe(error).startswith(text)
    assert "\n" not in describe(error)


def test_only_the_network_loses_connections():
    assert is_lost_connection(RuntimeError("Read error [::1]:5: Connection reset by peer"))
    assert not is_lost_connection(RuntimeError("shapes differ"))
    assert not is_lost_connection(ConnectionResetError(104, "Connection reset by peer"))


def test_the_helper_class_cannot_be_unpickled():
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(TwoParts("a", "b")))
