# SPDX-License-Identifier: Apache-2.0
"""Ends all processes of a run within seconds when one fails, with its reason.

gloo notices a closed connection but not its reason, and NCCL waits until the timeout. So a thread of every process
polls the common store for a failure. When it finds one, it gives the main thread a few seconds to end, as that may
notice the failure by itself, and then ends the process.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from types import TracebackType

import torch.distributed as dist

from sohes.utils.console import RunLog
from sohes.utils.errors import EXIT_BAD_INPUT, SohesError

_POLL = 1.0  # seconds between two polls of the store
_GRACE = 5.0  # seconds for a main thread to end by itself, and for other processes to read the failure
_LOST = re.compile("(closed|reset) by peer|Broken pipe", re.IGNORECASE)
_KEY, _READ, _LEFT = "failure", "read", "left"
_SILENT = "0 killed, or ended without a message"


class PeerFailed(SohesError, RuntimeError):
    """Another process of this run has failed; the message has its rank and its reason."""


def describe(error: BaseException) -> str:
    """One line: the message of a SohesError, `KeyError: 'x'` for other errors."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if is_lost_connection(error):
        return "lost the connection to another, which was killed or ended without a message"
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, SohesError) and first:
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def is_lost_connection(error: BaseException) -> bool:
    """Whether this is gloo's error for a process at the other end that has ended."""
    return type(error) is RuntimeError and _LOST.search(str(error)) is not None


class FailureMonitor:
    """Reports an error in its `with` block to the other processes, and watches for theirs while the block runs.

    Args:
        store: shared by all processes, on a connection of its own, so that a poll waits for no other message.
        rank: of this process.
        size: number of processes, > 1.
        end: ends this process if its main thread does not; for tests.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, end: Callable[[int], None] = os._exit) -> None:
        self._store, self._rank, self._size, self._end = store, rank, size, end
        self._closing, self._has_read = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="failures", daemon=True)

    def __enter__(self) -> FailureMonitor:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._closing.set()
        self._thread.join()
        try:
            if error is None:
                self._leave()
                return
            first = self._report(error)
        except dist.DistError as lost:  # rank 0, which serves the store, has ended
            if not is_lost_connection(error or lost):
                return
            first = _SILENT
        # This process's own error counts more than a lost connection, which is only a consequence.
        if error is not None and (is_lost_connection(error) or isinstance(error, dist.DistError)):
            raise PeerFailed(_sentence(first)) from error

    def _leave(self) -> None:
        """Rank 0 serves the store until all others have left."""
        left = self._store.add(_LEFT, 1)
        self._wait(lambda: left == self._size or self._store.add(_LEFT, 0) >= self._size)

    def _report(self, error: BaseException) -> str:
        """Write this failure to the store if it is the first. Returns the first one: rank and reason."""
        mine = f"{self._rank} {describe(error)}"
        first = self._store.compare_set(_KEY, "", mine).decode()
        if first != mine:
            self._acknowledge()
        self._wait(lambda: self._store.add(_READ, 0) >= self._size - 1)
        return first

    def _acknowledge(self) -> None:
        if not self._has_read:
            self._has_read = True
            self._store.add(_READ, 1)

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _GRACE
        while self._rank == 0 and not done() and time.monotonic() < deadline:
            time.sleep(_POLL / 10)

    def _watch(self) -> None:
        while not self._closing.wait(_POLL):
            try:
                if not self._store.check([_KEY]):
                    continue
                first = self._store.get(_KEY).decode()
                self._acknowledge()
            except dist.DistError:
                first = _SILENT
            if not self._closing.wait(_GRACE):
                RunLog()(f"error: {_sentence(first)}")
                self._end(EXIT_BAD_INPUT)
            return


def _sentence(failure: str) -> str:
    rank, _, reason = failure.partition(" ")
    return f"process {rank} of this run has failed: {reason}"
