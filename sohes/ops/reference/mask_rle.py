# SPDX-License-Identifier: Apache-2.0
"""Reference of COCO run-length encoding of packed masks, in numpy; the format of pycocotools.

Runs alternate outside, inside, outside, ... over the column-major pixels; the first may be 0. The sum is H * W. The
compressed form writes each run (from the fourth on: minus the run two before it) in groups of 5 bits, least significant
first, each plus 48 as a character. Bit 5 of a group marks that another group follows, bit 4 of the last group is the
sign.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sohes.ops.reference.mask_pack import num_words

Counts = str | bytes | Sequence[int]


def encode_rle(words: Tensor, num_pixels: int) -> list[str]:
    """Compressed `counts` of N masks, from words int64 [N, V] on the CPU."""
    octets = np.ascontiguousarray(words.numpy()).view(np.uint8)  # [N, 8*V]
    return [compress(_runs(row, num_pixels)) for row in octets]


def decode_rle(counts: Sequence[Counts], num_pixels: int) -> Tensor:
    """Words int64 [N, V] from N `counts`, compressed (str or bytes) or lists of run lengths.

    Raises ValueError if a string is not RLE or is truncated, a run is negative, or the runs do not sum to num_pixels.
    """
    octets = np.zeros((len(counts), 8 * num_words((num_pixels, 1))), np.uint8)  # [N, 8*V]
    for row, one in zip(octets, counts, strict=True):
        runs = decompress(one) if isinstance(one, str | bytes) else plain_runs(one)  # [runs]
        if (runs < 0).any():
            raise ValueError(f"RLE has a run of length {runs.min()}")
        if (runs > num_pixels).any():  # their sum may overflow
            raise ValueError(f"RLE has a run of {runs.max()} pixels, expected {num_pixels} in all")
        if runs.sum() != num_pixels:
            raise ValueError(f"RLE has {runs.sum()} pixels, expected {num_pixels}")
        bits = np.repeat((np.arange(len(runs)) & 1).astype(np.uint8), runs)  # [H*W]
        packed = np.packbits(bits, bitorder="little")  # [ceil(H*W/8)]
        row[: len(packed)] = packed
    return torch.from_numpy(octets.view(np.int64))


def plain_runs(counts: Sequence[int]) -> np.ndarray:
    """Run lengths int64 [runs] from a list. Raises ValueError for other values, and for numbers above int64."""
    runs = np.asarray(counts)
    if runs.ndim != 1 or (len(runs) and runs.dtype.kind != "i"):  # numpy uses another kind above int64
        raise ValueError(f"counts is not a list of run lengths: {str(counts)[:80]}")
    return runs.astype(np.int64)


def compress(runs: np.ndarray) -> str:
    """Compressed `counts` from run lengths int64 [runs]."""
    rest = runs.copy()  # [runs]
    rest[3:] -= runs[1:-2]
    groups = np.zeros((len(runs), 13), np.uint8)  # 13 groups of 5 bits fit any int64
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
    """Run lengths int64 [runs] from compressed `counts`. Raises ValueError if it is not RLE or is truncated."""
    text = counts.encode() if isinstance(counts, str) else counts
    groups = np.frombuffer(text, np.uint8).astype(np.int64) - 48  # [characters]
    if len(groups) == 0:
        return groups
    if groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError(f"counts is not compressed RLE, or is truncated: {text[:40]!r}")
    ends = np.flatnonzero((groups & 32) == 0)  # [runs]
    starts = np.concatenate(([0], ends[:-1] + 1))  # [runs]
    lengths = ends - starts + 1  # [runs]
    if lengths.max() > 12:
        raise ValueError(f"counts is not compressed RLE, a run has more than 60 bits: {text[:40]!r}")
    place = np.arange(len(groups)) - np.repeat(starts, lengths)  # [characters]
    runs = np.add.reduceat((groups & 31) << (5 * place), starts)  # [runs]
    runs = np.where(groups[ends] & 16, runs - (1 << (5 * lengths)), runs)  # [runs]
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _runs(octets: np.ndarray, num_pixels: int) -> np.ndarray:
    """Run lengths int64 [runs] of one mask, the first one outside, from its bytes [8*V]."""
    bits = np.unpackbits(octets, count=num_pixels, bitorder="little")  # [H*W]
    changes = np.flatnonzero(bits[1:] != bits[:-1]) + 1
    lead = [0, 0] if num_pixels and bits[0] else [0]
    return np.diff(np.concatenate((lead, changes, [num_pixels])).astype(np.int64))
