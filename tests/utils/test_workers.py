# SPDX-License-Identifier: Apache-2.0
"""Worker threads: order, memory, threads of operators, and the end after an error."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sohes.utils.workers import map_ahead, worker_pool


def test_map_ahead_keeps_order_and_a_level_queue():
    started, taken = [], 0
    with ThreadPoolExecutor(3) as pool:
        for taken, result in enumerate(map_ahead(pool, lambda i: started.append(i) or i * i, range(50), 6)):
            assert result == taken**2
            assert len(started) <= taken + 6
    assert taken == 49


def test_map_ahead_stops_after_an_error():
    def fail(item):
        if item == 3:
            raise KeyError(item)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, fail, range(1000), 4)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError):
            next(results)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_operators_have_their_threads_in_every_worker_and_as_before_afterwards(num_threads):
    before = torch.get_num_threads()
    together = threading.Barrier(4)

    def look(_):
        together.wait(10)
        return torch.get_num_threads()

    with worker_pool(4, num_threads, "test") as pool:
        assert list(pool.map(look, range(4))) == [num_threads] * 4
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_has_not_begun_is_dropped_after_an_error(error):
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.05)

    def stop():
        with worker_pool(1, 1, "test") as pool:
            for _ in map_ahead(pool, work, range(100), 50):
                raise error

    before = torch.get_num_threads()
    with pytest.raises(error):
        stop()
    assert len(begun) < 10
    assert torch.get_num_threads() == before
