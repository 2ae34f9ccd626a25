# SPDX-License-Identifier: Apache-2.0
"""Many file names in little memory: one block of bytes and an array of offsets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """A sequence of file names that takes their bytes and 8 more each; names need not be valid UTF-8.

    A million names of 30 bytes take 38 MB, as Python strings about 90 MB.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        text, ends = bytearray(), [0]
        for name in names:
            text += name
            ends.append(len(text))
        self._text = bytes(text)
        self._ends = np.array(ends, dtype=np.int64)  # [N + 1]

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return os.fsdecode(self.encoded(index))

    def encoded(self, index: int) -> bytes:
        """Name `index`, 0 <= index < N, as bytes."""
        return self._text[self._ends[index] : self._ends[index + 1]]

    def find(self, name: str) -> int | None:
        """The index of a name, of equal names the last; None if there is none."""
        wanted = os.fsencode(name)
        digests, order = self._digests
        digest = _digest(wanted)
        first, last = np.searchsorted(digests, digest, "left"), np.searchsorted(digests, digest, "right")
        for at in range(last - 1, first - 1, -1):  # more than one only for equal names, or a collision
            if self.encoded(order[at]) == wanted:
                return int(order[at])
        return None

    def distinct(self, keep_last: bool = False) -> np.ndarray:
        """Indices of the first (or last) occurrence of every distinct name, int64, ascending."""
        digests, order = self._sorted_digests()
        kept = np.ones(len(self), dtype=bool)
        for at in np.flatnonzero(digests[1:] == digests[:-1]):
            if self.encoded(order[at]) == self.encoded(order[at + 1]):
                kept[order[at if keep_last else at + 1]] = False
        return np.flatnonzero(kept)

    @cached_property
    def _digests(self) -> tuple[np.ndarray, np.ndarray]:
        return self._sorted_digests()

    def _sorted_digests(self) -> tuple[np.ndarray, np.ndarray]:
        """Digests of the names, uint64 [N], sorted, and their indices, int64 [N], ascending among equal digests."""
        digests = np.fromiter((_digest(self.encoded(i)) for i in range(len(self))), np.uint64, len(self))
        order = digests.argsort(kind="stable")
        return digests[order], order


def _digest(name: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))
