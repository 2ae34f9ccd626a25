# SPDX-License-Identifier: Apache-2.0
"""COCO run-length encoding of packed masks, defined in numpy.

Runs alternate outside, inside, outside, ... over the column-major pixels; the first may be 0. The compressed form
writes each run (from the fourth on: minus the run two before it) as groups of 5 bits, least first, each plus 48 as a
character; bit 5 of a group says that another follows, bit 4 of the last one is the sign. This is the format of
pycocotools. Runs add up to H * W.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sohes.ops.reference.mask_pack import num_words

Counts = str | bytes | Sequence[int]


def encode_rle(words: Tensor, num_pixels: int) -> list[str]:
    """words int64 [N, V] on the CPU -> N compressed `counts`."""
    octets = np.ascontiguousarray(words.numpy()).view(np.uint8)  # [N, 8*V]
    return [compress(_runs(row, num_pixels)) for row in octets]


def decode_rle(counts: Sequence[Counts], num_pixels: int) -> Tensor:
    """N `counts`, compressed (str or bytes) or plain run lengths -> words int64 [N, V].

    Raises ValueError when a string is no RLE or cut short, a run is negative, or the runs do not come to num_pixels.
    """
    octets = np.zeros((len(counts), 8 * num_words((num_pixels, 1))), np.uint8)  # [N, 8*V]
    for row, one in zip(octets, counts, strict=True):
        runs = decompress(one) if isinstance(one, str | bytes) else plain_runs(one)  # [runs]
        if (runs < 0).any():
            raise ValueError(f"RLE has a run of length {runs.min()}")
        if (runs > num_pixels).any():  # the sum of such runs may not fit a number
            raise ValueError(f"RLE has a run of {runs.max()} pixels, expected {num_pixels} in all")
        if runs.sum() != num_pixels:
            raise ValueError(f"RLE has {runs.sum()} pixels, expected {num_pixels}")
        bits = np.repeat((np.arange(len(runs)) & 1).astype(np.uint8), runs)  # [H*W]
        packed = np.packbits(bits, bitorder="little")  # [ceil(H*W/8)]
        row[: len(packed)] = packed
    return torch.from_numpy(octets.view(np.int64))


def plain_runs(counts: Sequence[int]) -> np.ndarray:
    """A list of run lengths -> int64 [runs]. Raises ValueError for anything else, and for what int64 does not hold."""
    runs = np.asarray(counts)
    if runs.ndim != 1 or (len(runs) and runs.dtype.kind != "i"):  # past int64 numpy takes another kind
        raise ValueError(f"counts is no list of run lengths: {str(counts)[:80]}")
    return runs.astype(np.int64)


def compress(runs: np.ndarray) -> str:
    """Run lengths int64 [runs] -> compressed `counts`."""
    rest = runs.copy()  # [runs]
    rest[3:] -= runs[1:-2]
    groups = np.zeros((len(runs), 13), np.uint8)  # 13 groups of 5 bits hold any int64
    used = np.zeros((len(runs), 13), bool)
    alive = np.ones(len(runs), bool)  # [runs]
    for k in range(13):
        group = rest & 31
        rest = rest >> 5
        more = np.where(group & 16, rest != -1, rest != 0)  # [runs]
        groups[:, k] = group + 32 * more + 48
        used[:, k] = alive
        alive = alive & more
    return groups[used].tobytes().decode("ascii")


def decompress(counts: str | bytes) -> np.ndarray:
    """Compressed `counts` -> run lengths int64 [runs]. Raises ValueError for what is no RLE or cut short."""
    text = counts.encode() if isinstance(counts, str) else counts
    groups = np.frombuffer(text, np.uint8).astype(np.int64) - 48  # [characters]
    if len(groups) == 0:
        return groups
    if groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError(f"counts is no compressed RLE, or is cut short: {text[:40]!r}")
    ends = np.flatnonzero((groups & 32) == 0)  # [runs]
    starts = np.concatenate(([0], ends[:-1] + 1))  # [runs]
    lengths = ends - starts + 1  # [runs]
    if lengths.max() > 12:
        raise ValueError(f"counts is no compressed RLE, a run has more than 60 bits: {text[:40]!r}")
    place = np.arange(len(groups)) - np.repeat(starts, lengths)  # [characters]
    runs = np.add.reduceat((groups & 31) << (5 * place), starts)  # [runs]
    runs = np.where(groups[ends] & 16, runs - (1 << (5 * lengths)), runs)  # [runs]
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _runs(octets: np.ndarray, num_pixels: int) -> np.ndarray:
    """One mask's bytes [8*V] -> run lengths int64 [runs], the first one outside."""
    bits = np.unpackbits(octets, count=num_pixels, bitorder="little")  # [H*W]
    changes = np.flatnonzero(bits[1:] != bits[:-1]) + 1
    lead = [0, 0] if num_pixels and bits[0] else [0]
    return np.diff(np.concatenate((lead, changes, [num_pixels])).astype(np.int64))
