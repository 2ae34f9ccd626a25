# SPDX-License-Identifier: Apache-2.0
"""The order of training: which photos make the batch of a step, from any step on, on any number of processes."""

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

    int32, so that the two orders this process keeps take 8 bytes a photo; int64 of 2^31 photos and more.
    """
    order = np.arange(num, dtype=np.int32 if num < 2**31 else np.int64)
    Generator(PCG64(SeedSequence([seed, epoch]))).shuffle(order)
    order.flags.writeable = False
    return order


def step_samples(num: int, batch_size: int, step: int, seed: int) -> list[tuple[int, int]]:
    """The (epoch, index) pairs of the global batch of a step.

    Epochs follow one another without a gap: a batch may hold the end of one and the start of the next, and with fewer
    photos than `batch_size` several views of one photo. The first step of an epoch takes time for all its photos, the
    others for their batch.
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
    """Yield (step, batch) for the steps from `start_step` up to `stop_step`, or for ever.

    The batch of a step depends on nothing but (seed, step, batch_size) and the dataset: a stream that starts later goes
    on as one that never stopped, and the `world` processes share out one global batch, process `rank` its `rank`-th
    slice, whatever their number.

    Args:
        batch_size: of the global batch; a multiple of `world`.
        num_workers: processes that make samples ahead of time; 0: this process, when a batch is asked for. On Linux
            they are forked, so that the labels are in memory once.
        pin_memory: batches of workers come in page-locked memory, for a GPU.

    Raises:
        DataError: no photos. WorkerError: a process of `num_workers` is gone, or /dev/shm too small for its batches.
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
        made = (collate([dataset[key] for key in keys]) for keys in own_samples())
    else:
        loader = DataLoader(
            _Batches(dataset, num_workers),
            sampler=own_samples(),
            batch_size=None,  # an item is a batch already
            num_workers=num_workers,
            pin_memory=pin_memory,
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            generator=torch.Generator(),  # else the loader would draw from, and so shift, the global one
        )
        made = _of_workers(loader, num_workers)
    for step, batch in zip(steps(), made, strict=True):
        if isinstance(batch, Exception):
            raise batch
        yield step, batch


class WorkerError(SohesError, RuntimeError):
    """A process that makes batches is gone or cannot hand them over; the message names the setting."""


def _of_workers(loader: DataLoader, num_workers: int) -> Iterator[Batch | SohesError]:
    """The batches of worker processes. Raises WorkerError within seconds of the end of one."""
    try:
        yield from _started(loader)
    except (RuntimeError, EOFError, ConnectionError) as error:
        if str(error).startswith("Caught "):  # of the worker's own, with its traceback
            raise
        if not isinstance(error, RuntimeError):  # it went while it handed over a batch
            reason = "a DataLoader worker is gone"
        elif "DataLoader worker" in str(error):
            reason = str(error).partition(". ")[0].strip()
        else:
            raise
        raise WorkerError(
            f"{reason}: of those that make batches (views.num-workers {num_workers}) one was killed; where memory or "
            "shared memory (/dev/shm) ran out, take fewer or 0"
        ) from error


def _started(loader: DataLoader) -> Iterator[Batch | SohesError]:
    """The loader's iterator, without the signal handler it installs: that one would raise the death of a worker in the
    midst of whatever the main thread does, a training step say. Without it the next batch does, in five seconds."""
    is_main = sys.platform != "win32" and threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if is_main else None
    with torch.device("cpu"):  # the loader draws a seed, as a tensor of the default device
        batches_to_come = iter(loader)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    return batches_to_come


class _Batches(Dataset):
    """Batches by their samples' keys, for worker processes. An error comes back as itself, not as a traceback."""

    def __init__(self, dataset: LabelDataset, num_workers: int):
        self.dataset, self.num_workers = dataset, num_workers

    def __getitem__(self, keys: list[tuple[int, int]]) -> Batch | SohesError:
        try:
            batch = collate([self.dataset[key] for key in keys])
        except SohesError as error:
            return error
        try:
            # Here, not in the thread that sends it: an error there is told to nobody, who then waits for ever.
            return batch.share_memory()
        except RuntimeError as error:
            reason = (str(error).splitlines() or [""])[0]
            return WorkerError(
                f"no room to hand over a batch in shared memory, /dev/shm ({reason}): make it larger (docker run "
                f"--shm-size=8g), or take fewer than {self.num_workers} processes: --views.num-workers 0 needs none"
            )
