# SPDX-License-Identifier: Apache-2.0
"""A thread pool with results in order and a bounded queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
TASKS_AHEAD = 16  # queued per thread


class Workers:
    """``num_threads`` threads; with one, the calling thread does all work. Use as a context manager, which waits for
    all started work. An exception in a thread is raised where its result is read, or when the context ends."""

    def __init__(self, num_threads: int) -> None:
        self._ahead = TASKS_AHEAD * num_threads
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._started: deque[Future] = deque()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self._wait(0)

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield ``work(task)`` for every task, in order."""
        if self._pool is None:
            yield from map(work, tasks)
            return
        waiting: deque[Future] = deque()
        for task in tasks:
            waiting.append(self._pool.submit(work, task))
            if len(waiting) > self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def start(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run ``work(*arguments)`` in the background, at the latest before the context ends."""
        if self._pool is None:
            work(*arguments)
            return
        self._started.append(self._pool.submit(work, *arguments))
        self._wait(2)  # their arguments stay in memory until they are done

    def _wait(self, allowed: int) -> None:
        while len(self._started) > allowed:
            self._started.popleft().result()
