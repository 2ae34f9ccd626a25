# SPDX-License-Identifier: Apache-2.0
"""The thread pool: results in order, a bounded queue, exceptions raised."""

import threading

import pytest

from sohes.evaluation.workers import TASKS_AHEAD, Workers


@pytest.mark.parametrize("num_threads", [1, 3])
def test_results_come_in_order_and_few_tasks_are_ahead(num_threads):
    taken = []

    def tasks():
        for number in range(500):
            taken.append(number)
            yield number

    with Workers(num_threads) as workers:
        for number, result in enumerate(workers.map(lambda task: task * 2, tasks())):
            assert result == 2 * number
            assert len(taken) <= number + 2 + TASKS_AHEAD * num_threads


@pytest.mark.parametrize("num_threads", [1, 3])
def test_what_is_started_is_done_at_the_end(num_threads):
    done, lock = set(), threading.Lock()

    def work(a, b):
        with lock:
            done.add((a, b))

    with Workers(num_threads) as workers:
        for number in range(20):
            workers.start(work, number, "x")
    assert done == {(number, "x") for number in range(20)}


@pytest.mark.parametrize("num_threads", [1, 3])
def test_errors_are_raised(num_threads):
    def fail(number):
        if number == 3:
            raise KeyError("three")
        return number

    with pytest.raises(KeyError, match="three"), Workers(num_threads) as workers:
        list(workers.map(fail, range(10)))
    with pytest.raises(KeyError, match="three"), Workers(num_threads) as workers:
        workers.start(fail, 3)
