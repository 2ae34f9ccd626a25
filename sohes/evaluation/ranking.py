# SPDX-License-Identifier: Apache-2.0
"""Scored predictions as rows of fixed size, and all rows of many images by falling score in little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Interface

import numpy as np

ROWS_AT_A_TIME = 1 << 16  # 1.5 MB under the default protocol


def row_type(num_ranges: int, num_lanes: int) -> np.dtype:
    """What is kept of a prediction. score: float64. rank: int32, its place among those of its image, from 0. outside:
    bit a says that its own area is out of area range a. hit, ignored: bit l says that in lane l (see
    ``reference.matching``) it is matched to a mask that counts, or to one that is ignored. Bit b is bit ``b % 8`` of
    byte ``b // 8``."""
    lanes = -(-num_lanes // 8)
    fields = [("score", np.float64), ("rank", np.int32), ("outside", np.uint8, (-(-num_ranges // 8),))]
    return np.dtype([*fields, ("hit", np.uint8, (lanes,)), ("ignored", np.uint8, (lanes,))])


class Run(Interface):
    """Rows by falling score."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``, both within the run."""


@dataclass(frozen=True, eq=False)
class RunInMemory:
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.rows[start:stop]


@dataclass(frozen=True, eq=False)
class RunInFile:
    """``count`` rows of ``dtype`` of a file, from row ``first`` on."""

    path: Path
    dtype: np.dtype
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> np.ndarray:
        place = (self.first + start) * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, stop - start, offset=place)


def sort_rows(rows: np.ndarray) -> np.ndarray:
    """By falling score, equals in the order given."""
    return rows.take(np.argsort(-rows["score"], kind="stable"))  # twenty times as fast as an index on such rows


def join_rows(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One array of at least one. As bytes, since numpy joins rows field by field."""
    return np.frombuffer(b"".join(parts), parts[0].dtype)


def merge_runs(runs: Sequence[Run], num_rows: int = ROWS_AT_A_TIME) -> Iterator[np.ndarray]:
    """All rows by falling score, of equals those of the earlier run first; some at a time, as many as fit.

    At most ``num_rows`` rows, or one of each run, are held (and twice while they are sorted).
    """
    runs = [run for run in runs if len(run)]
    each = max(1, num_rows // max(1, len(runs)))
    held = [run.read(0, 0) for run in runs]
    done = [0] * len(runs)  # rows read of each run
    while True:
        for n, run in enumerate(runs):
            if len(held[n]) == 0 and done[n] < len(run):
                stop = min(done[n] + each, len(run))
                held[n], done[n] = run.read(done[n], stop), stop
        if not any(map(len, held)):
            return
        # What is not read yet comes after the last row held of its run: up to the first of those, order is known.
        limits = [(-float(held[n]["score"][-1]), n) for n, run in enumerate(runs) if done[n] < len(run)]
        if limits:
            key, last = min(limits)
            sure = [
                int(np.searchsorted(-rows["score"], key, side="right" if n <= last else "left"))
                for n, rows in enumerate(held)
            ]
        else:
            sure = list(map(len, held))
        yield sort_rows(join_rows([rows[:count] for rows, count in zip(held, sure, strict=True)]))
        held = [rows[count:] for rows, count in zip(held, sure, strict=True)]
