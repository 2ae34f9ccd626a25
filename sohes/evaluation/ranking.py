# SPDX-License-Identifier: Apache-2.0
"""Scored predictions as rows of fixed size, and a merge of many sorted runs of rows in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Interface

import numpy as np

ROWS_AT_A_TIME = 1 << 16  # 1.5 MB under the default protocol


def row_type(num_ranges: int, num_lanes: int) -> np.dtype:
    """Structured dtype of a scored prediction.

    score: float64. rank: int32, rank by score within its image, from 0. outside: bit a is set if its own area is
    outside area range a. hit, ignored: bit l is set if it is matched in lane l (see ``reference.matching``) to a mask
    that counts, or to an ignored one. Bit b is bit ``b % 8`` of byte ``b // 8``.
    """
    lanes = -(-num_lanes // 8)
    fields = [("score", np.float64), ("rank", np.int32), ("outside", np.uint8, (-(-num_ranges // 8),))]
    return np.dtype([*fields, ("hit", np.uint8, (lanes,)), ("ignored", np.uint8, (lanes,))])


class Run(Interface):
    """A sequence of rows, sorted by falling score."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` (exclusive), both within the run."""


@dataclass(frozen=True, eq=False)
class RunInMemory:
    """A run that is held as an array."""

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.rows[start:stop]


@dataclass(frozen=True, eq=False)
class RunInFile:
    """A run in a file: ``count`` rows of ``dtype`` from row ``first`` on."""

    path: Path
    dtype: np.dtype
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> np.ndarray:
        offset = (self.first + start) * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, stop - start, offset=offset)


def sort_rows(rows: np.ndarray) -> np.ndarray:
    """The rows by falling score; ties keep their order."""
    return rows.take(np.argsort(-rows["score"], kind="stable"))  # 20 times as fast as indexing structured rows


def join_rows(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The concatenation of at least one array; of their bytes, as numpy copies structured rows field by field."""
    return np.concatenate([part.view(np.uint8) for part in parts]).view(parts[0].dtype)


def merge_runs(runs: Sequence[Run], num_rows: int = ROWS_AT_A_TIME) -> Iterator[np.ndarray]:
    """All rows by falling score, in blocks; ties in the order of the runs.

    At most ``num_rows`` rows, or one per run, are in memory (twice that while they are sorted).
    """
    runs = [run for run in runs if len(run)]
    each = max(1, num_rows // max(1, len(runs)))
    held = [run.read(0, 0) for run in runs]
    done = [0] * len(runs)  # rows read so far, per run
    while True:
        for n, run in enumerate(runs):
            if len(held[n]) == 0 and done[n] < len(run):
                stop = min(done[n] + each, len(run))
                held[n], done[n] = run.read(done[n], stop), stop
        if not any(map(len, held)):
            return
        # Unread rows come after the last row in memory of their run: up to the first of these, the order is final.
        limits = [(-float(held[n]["score"][-1]), n) for n, run in enumerate(runs) if done[n] < len(run)]
        if limits:
            key, last = min(limits)
            final = [
                int(np.searchsorted(-rows["score"], key, side="right" if n <= last else "left"))
                for n, rows in enumerate(held)
            ]
        else:
            final = list(map(len, held))
        yield sort_rows(join_rows([rows[:count] for rows, count in zip(held, final, strict=True)]))
        held = [rows[count:] for rows, count in zip(held, final, strict=True)]
