# SPDX-License-Identifier: Apache-2.0
"""A process that fails tells the others why, so that none waits for it until a timeout.

gloo notices a closed connection, but cannot say why it closed; NCCL waits. So every process has a thread that looks
into the common store now and then. Who finds the failure of another there gives its main thread a moment to end by
itself, as it may have heard of the failure in another way, and then ends the process.
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

_LOOK = 1.0  # seconds between two looks into the store
_GRACE = 5.0  # seconds for a main thread to end by itself, and for others to read of a failure
_LOST = re.compile("(closed|reset) by peer|Broken pipe", re.IGNORECASE)
_KEY, _READ, _LEFT = "failure", "read", "left"
_SILENT = "0 killed, or ended without a word"


class PeerFailed(SohesError, RuntimeError):
    """Another process of this run has failed; the message has its rank and its reason."""


def describe(error: BaseException) -> str:
    """One line: the message of a SohesError, `KeyError: 'x'` for what is not for people."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if is_lost_connection(error):
        return "lost the connection to another, which was killed or ended without a word"
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, SohesError) and first:
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def is_lost_connection(error: BaseException) -> bool:
    """Whether this is what gloo says when the process at the other end is gone."""
    return type(error) is RuntimeError and _LOST.search(str(error)) is not None


class Failures:
    """Tells of a failure in the `with` block, and hears of those of other processes while it runs.

    Args:
        store: that all processes share, with a connection of its own: a look must not wait for another message.
        rank, size: of this process, of how many; > 1.
        end: what ends this process where its main thread does not, for tests.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, end: Callable[[int], None] = os._exit) -> None:
        self._store, self._rank, self._size, self._end = store, rank, size, end
        self._closing, self._has_read = threading.Event(), False
        self._thread = threading.Thread(target=self._listen, name="failures", daemon=True)

    def __enter__(self) -> Failures:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._closing.set()
        self._thread.join()
        try:
            if error is None:
                self._leave()
                return
            first = self._tell(error)
        except dist.DistError as lost:  # the first process, who keeps the store, is gone
            if not is_lost_connection(error or lost):
                return
            first = _SILENT
        # What this process had to say itself goes first; that a message did not arrive is a mere consequence.
        if is_lost_connection(error) or isinstance(error, dist.DistError):
            raise PeerFailed(_sentence(first)) from error

    def _leave(self) -> None:
        """The first process keeps the store up until all others have left."""
        left = self._store.add(_LEFT, 1)
        self._wait(lambda: left == self._size or self._store.add(_LEFT, 0) >= self._size)

    def _tell(self, error: BaseException) -> str:
        """Name this failure if it is the first. Returns the first, with the rank in front."""
        mine = f"{self._rank} {describe(error)}"
        first = self._store.compare_set(_KEY, "", mine).decode()
        if first != mine:
            self._read()
        self._wait(lambda: self._store.add(_READ, 0) >= self._size - 1)
        return first

    def _read(self) -> None:
        if not self._has_read:
            self._has_read = True
            self._store.add(_READ, 1)

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _GRACE
        while self._rank == 0 and not done() and time.monotonic() < deadline:
            time.sleep(_LOOK / 10)

    def _listen(self) -> None:
        while not self._closing.wait(_LOOK):
            try:
                if not self._store.check([_KEY]):
                    continue
                first = self._store.get(_KEY).decode()
                self._read()
            except dist.DistError:
                first = _SILENT
            if not self._closing.wait(_GRACE):
                RunLog()(f"error: {_sentence(first)}")
                self._end(EXIT_BAD_INPUT)
            return


def _sentence(failure: str) -> str:
    rank, _, reason = failure.partition(" ")
    return f"process {rank} of this run has failed: {reason}"
