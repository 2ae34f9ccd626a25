# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run find one another, and what they say while some have yet to come."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from sohes.utils.console import RunLog, format_seconds
from sohes.utils.errors import SohesError

# Seconds until the first word about who is missing, and between later ones.
_FIRST_WORD, _NEXT_WORD = 5.0, 60.0
_LOOK = 0.2
_LOOK_AGAIN = timedelta(seconds=0.5)
_ANSWER = timedelta(seconds=30)  # for one message to the first process's store


class LaunchError(SohesError, ValueError):
    """The environment describes no world, or its processes do not meet; the message names variable or address."""


class Patience:
    """Waiting with a word to the terminal now and then, and an end.

    Args:
        timeout: how long to wait.
        say: takes the words; None is silent.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        timeout: timedelta,
        say: Callable[[str], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._clock = say, clock
        self._start = self._told = clock()
        self._timeout, self._next = timeout.total_seconds(), _FIRST_WORD

    def look(self, waits_for: Callable[[], str]) -> None:
        """Called at every look: says what is waited for when it is time. Raises LaunchError when it is over."""
        now = self._clock()
        waited = now - self._start
        if waited > self._timeout:
            raise LaunchError(f"gave up after {format_seconds(waited)}: {waits_for()}")
        if self._say is not None and now - self._told >= self._next:
            self._told, self._next = now, _NEXT_WORD
            self._say(f"{waits_for()}; gives up after {format_seconds(self._timeout)}")


def meet(host: str, port: int, rank: int, size: int, patience: Patience, env: Mapping[str, str]) -> dist.Store:
    """The store of a run that no launcher has made one for: the first process serves it, the others come to it.

    Returns in every process when all have come.

    Args:
        env: tells which variables made this a run of several processes.

    Raises:
        LaunchError: the port is in use, what answers there is something else, or somebody has not come in time.
    """
    return _serve(host, port, size, patience, env) if rank == 0 else _join(host, port, rank, size, patience)


def _serve(host: str, port: int, size: int, patience: Patience, env: Mapping[str, str]) -> dist.Store:
    _check_free(port)
    try:
        store = dist.TCPStore(host, port, size, True, _ANSWER, wait_for_workers=False)
    except dist.DistError as error:
        _refuse_port(port, _first_line(error), error)
    expected = [f"here/{rank}" for rank in range(1, size)]

    def missing() -> str:
        ranks = [str(rank) for rank, key in enumerate(expected, 1) if not store.check([key])]
        names = ", ".join(ranks[:8]) + (", ..." if len(ranks) > 8 else "")
        others = f"{len(ranks)} more of {size} processes at {host}:{port} ({'ranks' if ranks[1:] else 'rank'} {names})"
        return f"waiting for {others}; if this is to be the only process, unset {_variables(env)}"

    while store.add("come", 0) < len(expected):
        patience.look(missing)
        time.sleep(_LOOK)
    store.set("complete", "")
    return store


def _join(host: str, port: int, rank: int, size: int, patience: Patience) -> dist.Store:
    # Asked for by hand first: torch's store asks for an hour, deaf to Ctrl-C, and does not say why.
    for reason in _until_answered(host, port):
        patience.look(lambda reason=reason: f"process {rank} waits for the first process at {host}:{port} ({reason})")
        time.sleep(_LOOK)
    store = connect(host, port, size)
    try:
        store.set(f"here/{rank}", "")
        store.add("come", 1)
        while not store.check(["complete"]):
            patience.look(lambda: f"process {rank} has met the first one at {host}:{port} and waits for others")
            time.sleep(_LOOK)
    except dist.DistError as error:
        message = f"process {rank} has lost the first process at {host}:{port}"
        raise LaunchError(f"{message} ({_first_line(error)})") from error
    return store


def find_room(store: dist.Store, rank: int, size: int, patience: Patience) -> str:
    """The prefix of a corner of torchrun's store that no earlier start of this job has used.

    The store outlives the processes, and addresses of dead ones in it would be called again. The first process names a
    new room, all others say who they are in the newest room they find, and the room counts for those whom its owner
    then lists: in a room of an earlier start nobody lists them, and they look again.

    Raises:
        LaunchError: some process has not come in time.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("room", me)
        guests = [f"{me}/{other}" for other in range(1, size)]
        while not store.check(guests):
            patience.look(lambda: f"waiting for others of {size} processes to start")
            time.sleep(_LOOK)
        store.set(f"{me}/listed", " ".join(store.get(guest).decode() for guest in guests))
        return me
    while True:
        patience.look(lambda: f"process {rank} waits for others of {size} processes to start")
        if not store.check(["room"]):
            time.sleep(_LOOK)
            continue
        room = store.get("room").decode()
        store.set(f"{room}/{rank}", me)
        try:
            store.wait([f"{room}/listed"], _LOOK_AGAIN)
        except dist.DistStoreError:
            continue
        if me in store.get(f"{room}/listed").decode().split():
            return room
        time.sleep(_LOOK)


def connect(host: str, port: int, size: int) -> dist.Store:
    """Another connection to the store that is served at an address. Raises LaunchError when there is none."""
    made: list[dist.Store | dist.DistError] = []

    def make() -> None:
        try:
            made.append(dist.TCPStore(host, port, size, False, _ANSWER, wait_for_workers=False))
        except dist.DistError as error:
            made.append(error)

    # In a thread, as torch waits without end for the first word of a program that listens and says nothing.
    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(1.5 * _ANSWER.total_seconds())
    if made and not isinstance(made[0], dist.DistError):
        return made[0]
    reason = _first_line(made[0]) if made else "no answer"
    raise LaunchError(f"what listens at {host}:{port} is not, or no more, the first process of this run ({reason})")


def _until_answered(host: str, port: int) -> Iterator[str]:
    """Why nobody answers, each time asked; ends when somebody does."""
    while True:
        try:
            socket.create_connection((host, port), timeout=2.0).close()
            return
        except OSError as error:  # not there yet, perhaps
            yield error.strerror or str(error)


def _check_free(port: int) -> None:
    """Raises LaunchError when another program listens on the port, before torch prints a page about it."""
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
    """What made this a run of several processes."""
    return "RANK and WORLD_SIZE" if "RANK" in env and "WORLD_SIZE" in env else "SLURM_STEP_NUM_TASKS"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def terminal_log(local_rank: int) -> Callable[[str], None] | None:
    """Where a process says whom it waits for: one of each machine speaks."""
    return RunLog() if local_rank == 0 else None
