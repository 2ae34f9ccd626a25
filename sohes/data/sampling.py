# SPDX-License-Identifier: Apache-2.0
"""The order of training: the photos in the batch of each step, from any step on, for any number of processes."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from numpy.random import PCG64, Generator, SeedSequence
from torch.utils.data import DataLoader, Dataset

from sohes.data.dataset import Batch, LabelDataset, collate
from sohes.data.errors import DataError
from sohes.utils.errors import SohesError


@lru_cache(maxsize=2)  # a batch may lie in two epochs
def epoch_order(num: int, epoch: int, seed: int) -> np.ndarray:
    """The order of `num` photos in an epoch, [num], read-only: a pure function of its arguments.

    int32, so that the two cached orders take 8 bytes per photo; int64 from 2^31 photos on.
    """
    order = np.arange(num, dtype=np.int32 if num < 2**31 else np.int64)
    Generator(PCG64(SeedSequence([seed, epoch]))).shuffle(order)
    order.flags.writeable = False
    return order


def step_samples(num: int, batch_size: int, step: int, seed: int) -> list[tuple[int, int]]:
    """The (epoch, index) pairs of the global batch of a step.

    Epochs follow each other without a gap: a batch may contain the end of one and the start of the next, and with fewer
    photos than `batch_size` several views of one photo. The first step of an epoch shuffles all photos.
    """
    first, stop = step * batch_size, (step + 1) * batch_size
    samples = []
    for epoch in range(first // num, -(-stop // num)):
        start = epoch * num
        places = epoch_order(num, epoch, seed)[max(first - start, 0) : stop - start]
        samples += [(epoch, index) for index in places.tolist()]
    return samples


def batches(
    dataset: LabelDataset,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int | None = None,
    *,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) for the steps from `start_step` up to `stop_step` (exclusive), or without end.

    The global batch of a step depends only on (seed, step, batch_size) and the dataset, not on `start_step` or the
    number of processes. Each of the `world` processes gets an equal slice of it, process `rank` the `rank`-th.

    Args:
        batch_size: of the global batch; a multiple of `world`.
        num_workers: processes that make batches ahead of time; 0: this process makes them on demand. On Linux they are
            forked, so that the labels are in memory once.
        pin_memory: batches from workers are in page-locked memory, for a GPU.

    Raises:
        DataError: there are no photos. WorkerError: a worker process died, or /dev/shm is too small for its batches.
        ValueError: a `batch_size` or `rank` that does not fit `world`.
    """
    if len(dataset) == 0:
        raise DataError(f"no images to learn from in {dataset.labels.source}")
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"batch size {batch_size} cannot be shared by {world} processes; expected a multiple of {world}"
        )
    if not 0 <= rank < world:
        raise ValueError(f"expected a rank from 0 to {world - 1}, got {rank}")
    return _stream(dataset, batch_size, seed, start_step, stop_step, rank, world, num_workers, pin_memory)


def _stream(
    dataset: LabelDataset,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int | None,
    rank: int,
    world: int,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[tuple[int, Batch]]:
    share = batch_size // world

    def steps() -> Iterator[int]:
        return count(start_step) if stop_step is None else iter(range(start_step, stop_step))

    def own_samples() -> Iterator[list[tuple[int, int]]]:
        for step in steps():
            yield step_samples(len(dataset), batch_size, step, seed)[rank * share : (rank + 1) * share]

    if num_workers == 0:
        made: Iterator[Batch | SohesError] = (collate([dataset[key] for key in keys]) for keys in own_samples())
    else:
        loader = DataLoader(
            _Batches(dataset, num_workers),
            sampler=own_samples(),
            batch_size=None,  # an item is a batch already
            num_workers=num_workers,
            pin_memory=pin_memory,
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            generator=torch.Generator(),  # else the loader would draw from the global one
        )
        made = _from_workers(loader, num_workers)
    for step, batch in zip(steps(), made, strict=True):
        if isinstance(batch, Exception):
            raise batch
        yield step, batch


class WorkerError(SohesError, RuntimeError):
    """A process that makes batches died or cannot pass them on; the message names the setting."""


def _from_workers(loader: DataLoader, num_workers: int) -> Iterator[Batch | SohesError]:
    """The batches of worker processes. Raises WorkerError within seconds after one died."""
    try:
        yield from _started(loader)
    except (RuntimeError, EOFError, ConnectionError) as error:
        if str(error).startswith("Caught "):  # an error of the worker's own code, with its traceback
            raise
        if not isinstance(error, RuntimeError):  # it died while it passed on a batch
            reason = "a DataLoader worker died"
        elif "DataLoader worker" in str(error):
            reason = str(error).partition(". ")[0].strip()
        else:
            raise
        raise WorkerError(
            f"{reason}: one of the processes that make batches (views.num-workers {num_workers}) was killed; if memory "
            "or shared memory (/dev/shm) ran out, set fewer or 0"
        ) from error


def _started(loader: DataLoader) -> Iterator[Batch | SohesError]:
    """The loader's iterator, without the signal handler it installs.

    The handler would raise the death of a worker at any point of the main thread, such as inside a training step.
    Without it the request for the next batch raises it, within five seconds.
    """
    is_main = sys.platform != "win32" and threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if is_main else None
    with torch.device("cpu"):  # the loader draws a seed, as a tensor of the default device
        iterator = iter(loader)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    return iterator


class _Batches(Dataset):
    """Batches by the keys of their samples, for worker processes. Errors are returned, so that they keep their type."""

    def __init__(self, dataset: LabelDataset, num_workers: int):
        self.dataset, self.num_workers = dataset, num_workers

    def __getitem__(self, keys: list[tuple[int, int]]) -> Batch | SohesError:
        try:
            batch = collate([self.dataset[key] for key in keys])
        except SohesError as error:
            return error
        try:
            # Here, as an error in the thread that sends the batch is lost, and the main process would wait forever.
            return batch.share_memory()
        except RuntimeError as error:
            reason = (str(error).splitlines() or [""])[0]
            return WorkerError(
                f"no space for a batch in shared memory, /dev/shm ({reason}): make it larger (docker run "
                f"--shm-size=8g), or use fewer than {self.num_workers} processes: --views.num-workers 0 needs none"
            )
