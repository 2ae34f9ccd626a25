# SPDX-License-Identifier: Apache-2.0
"""The common store of a run's processes, and messages about the processes that have not started yet."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from sohes.utils.console import RunLog
from sohes.utils.errors import SohesError
from sohes.utils.estimate import format_seconds

_FIRST_MESSAGE, _NEXT_MESSAGE = 5.0, 60.0  # seconds until the first message about missing processes, and between later
_POLL = 0.2  # seconds
_POLL_ROUND = timedelta(seconds=0.5)
_STORE_TIMEOUT = timedelta(seconds=30)  # for one message to the store of the first process


class LaunchError(SohesError, ValueError):
    """The launcher's variables are wrong, or processes cannot connect; the message names the variable or address."""


class Deadline:
    """A time limit on a wait, with a message now and then about what is awaited.

    Args:
        timeout: limit of the wait.
        say: prints a message; None: no messages.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        timeout: timedelta,
        say: Callable[[str], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._clock = say, clock
        self._start = self._last_message = clock()
        self._timeout, self._next = timeout.total_seconds(), _FIRST_MESSAGE

    def check(self, waits_for: Callable[[], str]) -> None:
        """To be called at every poll: prints `waits_for()` from time to time. Raises LaunchError after the timeout."""
        now = self._clock()
        waited = now - self._start
        if waited > self._timeout:
            raise LaunchError(f"gave up after {format_seconds(waited)}: {waits_for()}")
        if self._say is not None and now - self._last_message >= self._next:
            self._last_message, self._next = now, _NEXT_MESSAGE
            self._say(f"{waits_for()}; gives up after {format_seconds(self._timeout)}")


def create_store(host: str, port: int, rank: int, size: int, deadline: Deadline, env: Mapping[str, str]) -> dist.Store:
    """A store for a run whose launcher provides none: rank 0 serves it, the others connect.

    Returns in every process once all are connected.

    Args:
        env: the environment, for messages about its variables.

    Raises:
        LaunchError: the port is in use, another program answers there, or a process is missing at the deadline.
    """
    return _serve(host, port, size, deadline, env) if rank == 0 else _join(host, port, rank, size, deadline)


def _serve(host: str, port: int, size: int, deadline: Deadline, env: Mapping[str, str]) -> dist.Store:
    _check_free(port)
    try:
        store = dist.TCPStore(host, port, size, True, _STORE_TIMEOUT, wait_for_workers=False)
    except dist.DistError as error:
        _refuse_port(port, _first_line(error), error)
    expected = [f"here/{rank}" for rank in range(1, size)]

    def missing() -> str:
        ranks = [str(rank) for rank, key in enumerate(expected, 1) if not store.check([key])]
        names = ", ".join(ranks[:8]) + (", ..." if len(ranks) > 8 else "")
        others = f"{len(ranks)} more of {size} processes at {host}:{port} ({'ranks' if ranks[1:] else 'rank'} {names})"
        return f"waiting for {others}; if this is to be the only process, unset {_variables(env)}"

    while store.add("joined", 0) < len(expected):
        deadline.check(missing)
        time.sleep(_POLL)
    store.set("complete", "")
    return store


def _join(host: str, port: int, rank: int, size: int, deadline: Deadline) -> dist.Store:
    # A plain connection first: torch's store retries for an hour, ignores Ctrl-C, and gives no reason.
    reason = _connection_error(host, port)

    def unreachable() -> str:
        return f"process {rank} waits for the first process at {host}:{port} ({reason})"

    while reason is not None:
        deadline.check(unreachable)
        time.sleep(_POLL)
        reason = _connection_error(host, port)
    store = connect(host, port, size)
    try:
        store.set(f"here/{rank}", "")
        store.add("joined", 1)
        while not store.check(["complete"]):
            deadline.check(lambda: f"process {rank} is connected to the first one at {host}:{port}, waits for others")
            time.sleep(_POLL)
    except dist.DistError as error:
        message = f"process {rank} has lost the first process at {host}:{port}"
        raise LaunchError(f"{message} ({_first_line(error)})") from error
    return store


def agree_on_round(store: dist.Store, rank: int, size: int, deadline: Deadline) -> str:
    """A key prefix in torchrun's store that all processes share and no earlier start of this job has used.

    torchrun's store outlives the processes, so keys of an earlier start, with addresses of dead processes, are still in
    it. Rank 0 publishes a new round; every other rank registers an id of its own in the newest round, and rank 0 then
    lists the ids of all. A process whose id is not in the list has registered in an earlier start's round: it tries
    again.

    Raises:
        LaunchError: a process is missing at the deadline.
    """
    own_id = uuid.uuid4().hex
    if rank == 0:
        store.set("round", own_id)
        members = [f"{own_id}/{other}" for other in range(1, size)]
        while not store.check(members):
            deadline.check(lambda: f"waiting for others of {size} processes to start")
            time.sleep(_POLL)
        store.set(f"{own_id}/members", " ".join(store.get(member).decode() for member in members))
        return own_id
    while True:
        deadline.check(lambda: f"process {rank} waits for others of {size} processes to start")
        if not store.check(["round"]):
            time.sleep(_POLL)
            continue
        round_id = store.get("round").decode()
        store.set(f"{round_id}/{rank}", own_id)
        try:
            store.wait([f"{round_id}/members"], _POLL_ROUND)
        except dist.DistStoreError:
            continue
        if own_id in store.get(f"{round_id}/members").decode().split():
            return round_id
        time.sleep(_POLL)


def connect(host: str, port: int, size: int) -> dist.Store:
    """A connection to the store that is served at an address. Raises LaunchError if there is none."""
    opened: list[dist.Store | dist.DistError] = []

    def open_store() -> None:
        try:
            opened.append(dist.TCPStore(host, port, size, False, _STORE_TIMEOUT, wait_for_workers=False))
        except dist.DistError as error:
            opened.append(error)

    # In a thread: torch waits without a timeout for a program that accepts the connection and sends nothing.
    thread = threading.Thread(target=open_store, daemon=True)
    thread.start()
    thread.join(1.5 * _STORE_TIMEOUT.total_seconds())
    result = opened[0] if opened else TimeoutError("no answer")
    if not isinstance(result, Exception):
        return result
    reason = _first_line(result)
    raise LaunchError(f"what listens at {host}:{port} is not, or no more, the first process of this run ({reason})")


def _connection_error(host: str, port: int) -> str | None:
    """Why nothing answers at an address; None if something does."""
    try:
        socket.create_connection((host, port), timeout=2.0).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _check_free(port: int) -> None:
    """Raises LaunchError if another program listens on the port: torch would print a page about it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            _refuse_port(port, error.strerror or str(error), error)


def _refuse_port(port: int, reason: str, error: Exception) -> NoReturn:
    message = f"cannot listen on port {port} of {socket.gethostname()} ({reason}); set MASTER_PORT to a free one"
    raise LaunchError(f"{message}, the same in all processes") from error


def _variables(env: Mapping[str, str]) -> str:
    """The names of the variables that make this a run of several processes."""
    return "RANK and WORLD_SIZE" if "RANK" in env and "WORLD_SIZE" in env else "SLURM_STEP_NUM_TASKS"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def terminal_log(local_rank: int) -> Callable[[str], None] | None:
    """Prints messages about missing processes, in one process per machine; None in the others."""
    return RunLog() if local_rank == 0 else None
