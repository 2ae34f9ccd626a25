# SPDX-License-Identifier: Apache-2.0
"""How processes connect: messages about missing ones, ports in use, shells of SLURM that look like a job."""

import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from forked import free_port

from sohes.utils import rendezvous as meeting
from sohes.utils.distributed import LaunchError, World, find_world, process_group, rendezvous
from sohes.utils.rendezvous import Deadline, agree_on_round, create_store
from sohes.utils.slurm import is_interactive_shell, typed_in_a_shell

STEP = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "n[1-3]"}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def quiet(seconds=30):
    return Deadline(timedelta(seconds=seconds), None)


def test_a_wait_is_logged_and_ends_at_the_deadline():
    said, clock = [], Clock()
    deadline = Deadline(timedelta(minutes=5), lambda text: said.append((clock.now, text)), clock)
    while clock.now <= 300:
        deadline.check(lambda: "nobody")
        clock.now += 0.5
    assert said == [(when, "nobody; gives up after 5m 00s") for when in (5, 65, 125, 185, 245)]
    with pytest.raises(LaunchError, match=r"^gave up after 5m 00s: nobody$"):
        deadline.check(lambda: "nobody")


def test_rank_0_names_missing_ranks_and_how_to_run_alone(monkeypatch):
    monkeypatch.setattr(meeting, "_FIRST_MESSAGE", 0.3)
    said, port = [], int(free_port())
    deadline = Deadline(timedelta(seconds=1.5), said.append)
    with ThreadPoolExecutor() as pool:
        late = pool.submit(create_store, "127.0.0.1", port, 2, 4, quiet(2), {})
        with pytest.raises(LaunchError, match=r"gave up after 1\.[5-9]s: waiting for 2 more of 4 processes"):
            create_store("127.0.0.1", port, 0, 4, deadline, {"SLURM_STEP_NUM_TASKS": "4"})
        with pytest.raises(LaunchError, match=r"process 2 has lost the first process|gave up after 2"):
            late.result()
    assert said[0].startswith(f"waiting for 2 more of 4 processes at 127.0.0.1:{port} (ranks 1, 3); if this is to be")
    assert "unset SLURM_STEP_NUM_TASKS" in said[0]
    with pytest.raises(LaunchError, match="unset RANK and WORLD_SIZE"):
        create_store("127.0.0.1", int(free_port()), 0, 2, quiet(0), {"RANK": "0", "WORLD_SIZE": "2"})


def test_other_ranks_name_the_address_and_the_reason(monkeypatch):
    monkeypatch.setattr(meeting, "_FIRST_MESSAGE", 0.1)
    said, port = [], int(free_port())
    with pytest.raises(LaunchError, match=f"process 1 waits for the first process at 127.0.0.1:{port} .Connection ref"):
        create_store("127.0.0.1", port, 1, 2, Deadline(timedelta(seconds=0.6), said.append), {})
    assert said
    with pytest.raises(LaunchError, match=r"at no\.such\.host\.invalid:4 \(.*(N|n)ame"):
        create_store("no.such.host.invalid", 4, 1, 2, quiet(0), {})


def test_all_connect_in_any_order():
    port = int(free_port())
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda rank: create_store("127.0.0.1", port, rank, 3, quiet(), {}), (2, 1, 0)))
    stores[0].set("word", "hello")
    assert [store.get("word") for store in stores] == [b"hello"] * 3


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_named_with_the_variable(monkeypatch, capfd, address):
    """In use on one address of this machine, or on all; torch prints nothing."""
    with socket.socket() as taken:
        taken.bind((address, 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with (
            pytest.raises(
                LaunchError, match=rf"cannot listen on port {port} of \S+ \(Address already in use\); set MAS"
            ),
            process_group(World(0, 3), torch.device("cpu")),
        ):
            pass
    assert capfd.readouterr().err == ""
    assert not dist.is_initialized()


@pytest.mark.parametrize("answer", [b"", b"220 mail ready\r\n"])
def test_another_program_at_the_port_is_no_process_of_the_run(monkeypatch, answer):
    """One that sends text, and one that only listens."""
    monkeypatch.setattr(meeting, "_STORE_TIMEOUT", timedelta(seconds=1))
    kept = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(8)

        def serve():
            for _ in range(2):
                kept.append(other.accept()[0])
                kept[-1].sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(LaunchError, match="is not, or no more, the first process of this run"):
            create_store("127.0.0.1", other.getsockname()[1], 1, 2, quiet(), {})


@pytest.mark.parametrize("port", ["0", "65536", "-5"])
def test_invalid_ports(port):
    with pytest.raises(LaunchError, match=f"expected a port from 1 to 65535 in MASTER_PORT, got {port}"):
        rendezvous({"MASTER_ADDR": "a", "MASTER_PORT": port})


def test_processes_started_again_do_not_connect_to_earlier_ones():
    """A store that holds a whole earlier start: the new processes agree on another round."""
    store = dist.HashStore()

    def start():
        with ThreadPoolExecutor(3) as pool:
            rounds = set(pool.map(lambda rank: agree_on_round(store, rank, 3, quiet()), (2, 1, 0)))
        assert len(rounds) == 1
        return rounds.pop()

    assert start() != start()


def test_a_round_without_members_ends():
    with pytest.raises(LaunchError, match="waiting for others of 2 processes"):
        agree_on_round(dist.HashStore(), 0, 2, quiet(0.3))
    with pytest.raises(LaunchError, match="process 1 waits for others of 2 processes"):
        agree_on_round(dist.HashStore(), 1, 2, quiet(0.3))


def proc(folder, *processes):
    """A folder like /proc: (pid, parent, command), the first being this process."""
    for pid, parent, command in processes:
        (folder / str(pid)).mkdir()
        (folder / str(pid) / "stat").write_text(f"{pid} (a) b) S {parent} 1 1")
        (folder / str(pid) / "cmdline").write_bytes(b"\0".join(part.encode() for part in command.split(" ")) + b"\0")
    (folder / "self").symlink_to(folder / str(processes[0][0]))
    return folder


@pytest.mark.parametrize(
    ("command", "alone"),
    [("/bin/zsh -l", True), ("-bash", True), ("bash run.sh", False), ("bash -lc python", False), ("python x", False)],
)
def test_an_interactive_shell_as_task_is_one_process(tmp_path, command, alone):
    """Of three: this process, started from a task that is `command`, itself a child of SLURM's daemon."""
    processes = ((9, 8, "python -m sohes.train"), (8, 7, "make run"), (7, 5, command), (5, 0, "slurmstepd"))
    assert typed_in_a_shell({"SLURM_TASK_PID": "7"}, proc(tmp_path, *processes)) is alone


def test_a_shell_that_is_no_parent_says_nothing(tmp_path):
    folder = proc(tmp_path, (9, 1, "python"), (1, 0, "init"), (7, 1, "bash"))
    assert not typed_in_a_shell({"SLURM_TASK_PID": "7", "SLURM_JOB_NAME": "bash", "SLURM_PTY_PORT": "1"}, folder)
    assert not typed_in_a_shell({"SLURM_TASK_PID": "7"}, tmp_path / "nowhere")


def test_without_the_task_s_number_the_terminal_and_the_name_decide(capsys):
    assert find_world(STEP | {"SLURM_PTY_PORT": "4711", "SLURM_JOB_NAME": "/usr/bin/fish"}) == World()
    assert capsys.readouterr().err == "in a shell of SLURM, of 3 tasks: running as one process\n"
    assert find_world(STEP | {"SLURM_PTY_PORT": "4711", "SLURM_JOB_NAME": "train"}).size == 3
    assert find_world(STEP | {"SLURM_JOB_NAME": "bash"}).size == 3
    assert capsys.readouterr().err == ""


def test_shells_by_their_command():
    assert is_interactive_shell(["/usr/bin/bash", "--login", "-i"])
    assert not is_interactive_shell([])
    assert not is_interactive_shell(["bash", "-xc", "python -m sohes.train"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_process_has_parents():
    assert not typed_in_a_shell({"SLURM_TASK_PID": "1"})
