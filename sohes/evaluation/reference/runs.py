# SPDX-License-Identifier: Apache-2.0
"""Masks as the runs of their COCO RLE, in numpy: decoded in batches, measured and intersected."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sohes.evaluation.shapes import RunMasks
from sohes.ops.reference.mask_rle import Counts, compress

# Batches are small, so that temporary arrays fit in the cache and memory does not grow with the number of masks.
CHARACTERS_AT_A_TIME = 1 << 15
RUNS_AT_A_TIME = 1 << 15
MAX_GROUPS = 12  # per number, 60 bits


def as_texts(counts: Sequence[Counts]) -> list[bytes]:
    """RLE ``counts`` in any form -> compressed RLE."""
    return [one.encode() if isinstance(one, str) else _as_bytes(one) for one in counts]


def read_runs(texts: Sequence[bytes], size: tuple[int, int]) -> RunMasks:
    """N masks of one size from their compressed RLEs.

    Raises ValueError with the index of the mask if counts are not an RLE or do not add up to H * W.
    """
    parts = []
    for part in _split(np.array([len(text) for text in texts], np.int64), CHARACTERS_AT_A_TIME):
        parts.append(_read_some(texts[part], size, part.start))
    if len(parts) == 1:
        return parts[0]
    base = np.cumsum([0] + [len(part.starts) for part in parts])
    bounds = np.concatenate([part.bounds + low for part, low in zip(parts, base, strict=False)])
    columns = zip(*((part.starts, part.stops, part.areas, part.boxes) for part in parts), strict=True)
    starts, stops, areas, boxes = (np.concatenate(column) for column in columns)
    return RunMasks(size, starts, stops, bounds, areas, boxes)


def _read_some(texts: Sequence[bytes], size: tuple[int, int], index: int) -> RunMasks:
    """See ``read_runs``; ``index``: of the first mask, for errors."""
    table, row_bounds = _decompress(texts, size, index)  # [rows, 2], [N + 1]
    ends = np.cumsum(table.sum(1))  # [rows], end of each set run, masks concatenated
    line = np.append(0, ends)[row_bounds]  # [N + 1]
    _check(table, row_bounds, np.diff(line), size, index)
    is_set = table[:, 1] > 0  # [rows]
    stops = (ends - np.repeat(line[:-1], np.diff(row_bounds)))[is_set]  # [R]
    starts = stops - table[is_set, 1]  # [R]
    first = np.append(0, np.cumsum(is_set))[row_bounds]  # [N + 1]
    areas = np.diff(np.append(0, np.cumsum(table[:, 1]))[row_bounds])  # [N]
    return RunMasks(
        size, starts, stops, np.stack((first[:-1], first[1:]), 1), areas, _boxes(starts, stops, first, size)
    )


def intersect(a: RunMasks, b: RunMasks, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Number of pixels shared by mask ``rows[p]`` of ``a`` and mask ``columns[p]`` of ``b``, int64 [P].

    ``C(x)``, the number of set pixels of b before pixel x, is linear between the ends of b's runs. A run of a from s
    to e shares ``C(e) - C(s)`` pixels. The masks of b are concatenated, with H * W pixels for each. (Interpolation is
    exact, as all slopes are 0 or 1.)
    """
    num_pixels = a.size[0] * a.size[1]
    shared = np.zeros(len(rows), np.int64)  # [P]
    of_b, _, counts = _concatenate_runs(b.bounds)
    if len(of_b) == 0:
        return shared
    shift = np.repeat(np.arange(len(b)) * num_pixels, counts)  # [runs of b]
    starts, stops = b.starts[of_b], b.stops[of_b]
    ends = np.stack((starts + shift, stops + shift), 1).ravel()  # [2 * runs of b]
    covered = np.cumsum(np.stack((np.zeros_like(starts), stops - starts), 1).ravel())  # C at ends
    num_runs = (a.bounds[:, 1] - a.bounds[:, 0])[rows]  # [P]
    todo = np.flatnonzero(num_runs)  # [p]
    for part in _split(num_runs[todo], RUNS_AT_A_TIME):
        pairs = todo[part]  # [p]
        run, begin, per_pair = _concatenate_runs(a.bounds[rows[pairs]])
        shift = np.repeat(columns[pairs] * num_pixels, per_pair)  # [runs]
        gain = np.interp(a.stops[run] + shift, ends, covered) - np.interp(a.starts[run] + shift, ends, covered)
        shared[pairs] = np.add.reduceat(gain, begin)
    return shared


def _concatenate_runs(bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indices of all runs of the masks with these ``bounds``, start of each mask in them, runs per mask)."""
    counts = bounds[:, 1] - bounds[:, 0]  # [n]
    begin = np.cumsum(counts) - counts  # [n]
    return np.arange(counts.sum()) + np.repeat(bounds[:, 0] - begin, counts), begin, counts


def _split(amounts: np.ndarray, limit: int) -> list[slice]:
    """Consecutive slices whose amounts sum to about ``limit``, or of one item; of no items, one empty slice."""
    chunk = np.cumsum(amounts) // limit
    cuts = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(amounts)]
    return [slice(low, high) for low, high in pairwise(cuts)]


def _as_bytes(counts: bytes | Sequence[int]) -> bytes:
    return counts if isinstance(counts, bytes) else compress(np.asarray(counts, np.int64)).encode("ascii")


def _decompress(counts: Sequence[bytes], size: tuple[int, int], index: int) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths int64 [rows, 2], (unset, set) pairs, and the row bounds of the masks, int64 [N + 1].

    A character minus 48 is a group of five bits of a number, least significant first; bit 32 means that another group
    follows; the number is signed. From a mask's fourth run on, the number is the difference to the run two before it.
    So in two columns, runs are cumulative sums. A mask with an odd number of runs ends with a set run of 0.
    """
    groups = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(48)  # [characters], wraps around below 48
    char_bounds = np.cumsum([0] + [len(one) for one in counts])  # [N + 1]
    ends = np.flatnonzero(groups < 32)  # [runs], last group of each number
    bounds = np.searchsorted(ends, char_bounds)  # [N + 1], run bounds of the masks
    _refuse_broken(groups, ends, bounds, char_bounds, index)
    runs = (groups[ends].astype(np.int64) ^ 16) - 16  # [runs]
    digits = np.diff(ends, prepend=-1)  # [runs]
    longer = np.flatnonzero(digits > 1)
    for k in range(1, digits.max(initial=0)):  # from the most significant group down
        longer = longer[digits[longer] > k]
        runs[longer] = (runs[longer] << 5) | (groups[ends[longer] - k] & 31)
    _refuse_long_runs(runs, digits, bounds, size, index)

    num_rows = (np.diff(bounds) + 1) // 2  # [N]
    row_bounds = np.append(0, np.cumsum(num_rows))  # [N + 1]
    is_run = np.ones(2 * row_bounds[-1], bool)
    is_run[2 * row_bounds[1:][np.diff(bounds) % 2 == 1] - 1] = False
    padded = np.zeros(len(is_run), np.int64)
    padded[is_run] = runs
    table = padded.reshape(-1, 2)  # [rows, 2]
    top, num_rows = row_bounds[:-1][num_rows > 0], num_rows[num_rows > 0]
    first_runs = table[top, 0]  # no number is a difference to a mask's first run
    table[top, 0] = 0
    above = np.cumsum(table, axis=0)  # [rows, 2]
    above -= np.repeat(above[top] - table[top], num_rows, axis=0)
    above[top, 0] = first_runs
    # Padding now has the sum of its column.
    above.ravel()[~is_run] = 0
    return above, row_bounds


def _refuse_broken(
    groups: np.ndarray, ends: np.ndarray, bounds: np.ndarray, char_bounds: np.ndarray, index: int
) -> None:
    if groups.max(initial=0) > 63:
        index += np.searchsorted(char_bounds, np.flatnonzero(groups > 63)[0], side="right") - 1
        raise ValueError(f"mask {index}: counts is not a compressed RLE string")
    last = np.append(-1, ends)[bounds[1:]]  # [N], end of the last number of this mask or an earlier one
    cut = np.flatnonzero((np.diff(char_bounds) > 0) & (last != char_bounds[1:] - 1))
    if len(cut):
        raise ValueError(f"mask {index + cut[0]}: counts is cut short")


def _refuse_long_runs(
    runs: np.ndarray, digits: np.ndarray, bounds: np.ndarray, size: tuple[int, int], index: int
) -> None:
    """Refuse numbers larger than the image, so that sums fit int64. (A number is a run or a difference of two.)"""
    num_pixels = size[0] * size[1]
    wrong = np.flatnonzero((digits > MAX_GROUPS) | (runs > num_pixels) | (runs < -num_pixels))
    if len(wrong):
        index += np.searchsorted(bounds, wrong[0], side="right") - 1
        if digits[wrong[0]] > MAX_GROUPS:
            raise ValueError(f"mask {index}: counts hold a run of more than 60 bits")
        got = f"a run of {runs[wrong[0]]} pixels"
        raise ValueError(f"mask {index}: counts hold {got}, expected {size[0]} x {size[1]} = {num_pixels} in all")


def _check(table: np.ndarray, row_bounds: np.ndarray, totals: np.ndarray, size: tuple[int, int], index: int) -> None:
    if table.min(initial=0) < 0:
        row = np.flatnonzero((table < 0).any(1))[0]
        index += np.searchsorted(row_bounds, row, side="right") - 1
        raise ValueError(f"mask {index}: counts hold a negative run length, {table[row].min()}")
    wrong = np.flatnonzero(totals != size[0] * size[1])
    if len(wrong):
        raise ValueError(
            f"mask {index + wrong[0]}: run lengths add up to {totals[wrong[0]]}, expected {size[0]} x {size[1]} = "
            f"{size[0] * size[1]}"
        )


def _boxes(starts: np.ndarray, stops: np.ndarray, first: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bounding boxes, int64 [N, 4]. A run that crosses into the next column touches the bottom and the top."""
    boxes = np.zeros((len(first) - 1, 4), np.int64)
    full = np.flatnonzero(np.diff(first))  # [n], masks with a pixel
    if len(full) == 0:
        return boxes
    head, tail = first[full], first[full + 1] - 1  # [n] each, first and last run
    left, right = starts // size[0], (stops - 1) // size[0]  # [R] each, first and last column of the run
    low = np.where(left == right, starts - left * size[0], 0)  # [R]
    high = np.where(left == right, stops - left * size[0], size[0])  # [R]
    boxes[full, 0], boxes[full, 2] = left[head], right[tail] + 1
    boxes[full, 1], boxes[full, 3] = np.minimum.reduceat(low, head), np.maximum.reduceat(high, head)
    return boxes
