# SPDX-License-Identifier: Apache-2.0
"""Threads that work on one photo each, with their own number of operator threads, and results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_pool(num_workers: int, num_threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, in each of which torch's operators use `num_threads` threads.

    One image per thread is faster than one image in many threads: 18.6 images/s in two workers of one thread each, 8.8
    in one worker of two (481x321 px, descriptor; 2 CPU cores, AVX-512, 2026-11-22), as the threads of an operator wait
    for the slowest of them.

    After an error or Ctrl-C, work that has not started is cancelled.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    # OpenMP has a number for each thread, which some libraries read before torch sets it.
    pool = ThreadPoolExecutor(
        num_workers, thread_name_prefix=name, initializer=torch.set_num_threads, initargs=(num_threads,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Results in the order of the items, of which at most `ahead` are in the pool, which bounds the memory."""
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) >= ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:  # after an error or Ctrl-C
            future.cancel()
