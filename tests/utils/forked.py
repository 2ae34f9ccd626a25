# SPDX-License-Identifier: Apache-2.0
"""Processes of one run, forked from the test, which is faster than starting Python for each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from sohes.cli.command import fail_clearly
from sohes.utils.distributed import find_world, process_group


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_processes(
    work: Callable[[int], None], size: int, folder: Path, env: Mapping[str, str] | None = None, limit: float = 60.0
) -> list[tuple[int | None, str]]:
    """`work(rank)` in `size` processes within a process group.

    Returns the exit code of each, None for one that was killed after `limit` seconds, and its stderr.
    """
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **(env or {})}
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_begin, args=(work, rank, common, folder / f"{rank}")) for rank in range(size)]
    for process in processes:
        process.start()
    end, found = time.monotonic() + limit, []
    for rank, process in enumerate(processes):
        process.join(max(0.0, end - time.monotonic()))
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        found.append((code, (folder / f"{rank}").read_text()))
    return found


def _begin(work: Callable[[int], None], rank: int, env: Mapping[str, str], said: Path) -> None:
    sys.stderr = said.open("w", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(env, RANK=str(rank), LOCAL_RANK=str(rank))
    with fail_clearly("job"), process_group(find_world(), torch.device("cpu")):
        work(rank)
