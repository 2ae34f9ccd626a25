# SPDX-License-Identifier: Apache-2.0
"""Masks as the runs of their COCO RLE: read many at once, measured and intersected without drawing a pixel.

Files hold a thousand masks an image of which few come near a true one. Their runs are a hundred times fewer than
their pixels, so areas, boxes and exact intersections are taken from the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sohes.ops.reference.mask_rle import Counts, compress

RUNS_AT_A_TIME = 1 << 20  # runs intersected at a time, so that memory does not follow the number of pairs


@dataclass(frozen=True, eq=False)
class RunMasks:
    """N masks of one size (H, W) over column-major pixels, all R runs of set pixels in one row.

    starts, stops: int64 [R], rising within a mask, half-open, no run empty. first: int64 [N + 1], mask n has runs
    ``first[n]`` up to ``first[n + 1]``. areas: int64 [N] in pixels. boxes: int64 [N, 4], x0, y0, x1, y1, half-open,
    zeros for an empty mask.
    """

    size: tuple[int, int]
    starts: np.ndarray
    stops: np.ndarray
    first: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)


def read_runs(counts: Sequence[Counts], size: tuple[int, int]) -> RunMasks:
    """The ``counts`` of N RLEs (compressed str or bytes, or plain run lengths) of one size.

    Raises ValueError, naming the mask by its index, where counts are no RLE or do not add up to H * W.
    """
    lengths, bounds = _decompress([_as_bytes(one) for one in counts])  # [all runs], [N + 1]
    _check(lengths, bounds, size)
    edges = np.cumsum(lengths)  # [all runs], where each run stops, masks one after the other
    num_before = np.repeat(np.arange(len(counts)) * (size[0] * size[1]), np.diff(bounds))  # [all runs]
    edges -= num_before
    place = np.arange(len(lengths)) - np.repeat(bounds[:-1], np.diff(bounds))  # [all runs]
    is_set = (place % 2 == 1) & (lengths > 0)
    stops = edges[is_set]  # [R]
    starts = stops - lengths[is_set]  # [R]
    first = np.concatenate(([0], np.cumsum(is_set)))[bounds]  # [N + 1]
    areas = np.diff(np.concatenate(([0], np.cumsum(stops - starts)))[first])  # [N]
    return RunMasks(size, starts, stops, first, areas, _boxes(starts, stops, first, size))


def intersect(a: RunMasks, b: RunMasks, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Pixels that mask ``rows[p]`` of ``a`` and mask ``columns[p]`` of ``b`` share, int64 [P].

    ``C(x)``, the set pixels of b before pixel x, is linear between the ends of b's runs. A run of a from s to e
    shares ``C(e) - C(s)`` pixels. All masks of b stand in one line, one image's pixels apart. (Interpolation is exact:
    its slopes are 0 and 1.)
    """
    num_pixels = a.size[0] * a.size[1]
    shared = np.zeros(len(rows), np.int64)  # [P]
    if len(b.starts) == 0:
        return shared
    shift = np.repeat(np.arange(len(b)) * num_pixels, np.diff(b.first))  # [runs of b]
    ends = np.stack((b.starts + shift, b.stops + shift), 1).ravel()  # [2 * runs of b]
    covered = np.cumsum(np.stack((np.zeros_like(b.starts), b.stops - b.starts), 1).ravel())  # C at ends
    num_runs = np.diff(a.first)[rows]  # [P]
    todo = np.flatnonzero(num_runs)  # [p]
    for part in _split(num_runs[todo]):
        pairs = todo[part]  # [p]
        per_pair = num_runs[pairs]  # [p]
        begin = np.cumsum(per_pair) - per_pair  # [p], where each pair's runs begin in the row below
        run = np.arange(per_pair.sum()) + np.repeat(a.first[rows[pairs]] - begin, per_pair)  # [runs]
        shift = np.repeat(columns[pairs] * num_pixels, per_pair)  # [runs]
        gain = np.interp(a.stops[run] + shift, ends, covered) - np.interp(a.starts[run] + shift, ends, covered)
        shared[pairs] = np.add.reduceat(gain, begin)
    return shared


def _split(num_runs: np.ndarray) -> list[slice]:
    """Slices over the pairs with about RUNS_AT_A_TIME runs each."""
    chunk = np.cumsum(num_runs) // RUNS_AT_A_TIME
    cuts = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(num_runs)]
    return [slice(low, high) for low, high in pairwise(cuts) if high > low]


def _as_bytes(counts: Counts) -> bytes:
    if isinstance(counts, bytes):
        return counts
    if isinstance(counts, str):
        return counts.encode("utf-8")  # whatever is not RLE is found below
    return compress(np.asarray(counts, np.int64)).encode("ascii")


def _decompress(counts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """All run lengths of all masks int64 [all runs], and where each mask's begin [N + 1].

    A character minus 48 is a group: five bits of the number, least first; 32 says that another group follows; 16 in
    the last group is the sign. From a mask's fourth run on, the number is the difference to the run two before.
    """
    groups = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(48)  # [characters], wraps below 48
    char_bounds = np.cumsum([0] + [len(one) for one in counts])  # [N + 1]
    ends_run = groups < 32  # [characters]
    _refuse_broken(groups, ends_run, char_bounds)
    ends = np.flatnonzero(ends_run)  # [all runs]
    starts = np.concatenate(([0], ends[:-1] + 1))[: len(ends)]  # [all runs]
    digits = ends - starts + 1  # [all runs]
    bits = groups & 31
    lengths = bits[starts].astype(np.int64)  # [all runs]
    for k in range(1, digits.max(initial=0)):
        longer = np.flatnonzero(digits > k)
        lengths[longer] |= bits[starts[longer] + k].astype(np.int64) << (5 * k)
    negative = np.flatnonzero(bits[ends] & 16)
    lengths[negative] -= np.int64(1) << (5 * digits[negative])
    bounds = np.searchsorted(ends, char_bounds)  # [N + 1]
    return _sum_differences(lengths, bounds), bounds


def _sum_differences(lengths: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Undo the differences: in two columns of even and odd runs they are plain sums downwards."""
    num_runs = np.diff(bounds)  # [N]
    num_rows = (num_runs + 1) // 2  # [N]
    top = np.cumsum(num_rows) - num_rows  # [N], each mask's first row
    place = np.arange(len(lengths)) + np.repeat(2 * top - bounds[:-1], num_runs)  # [all runs]
    table = np.zeros(2 * num_rows.sum(), np.int64)
    table[place] = lengths
    table = table.reshape(-1, 2)  # [rows, 2]
    top = top[num_runs > 0]
    leads = table[top, 0]  # a mask's very first run is no part of the sums
    table[top, 0] = 0
    sums = np.cumsum(table, axis=0)  # [rows, 2]
    sums -= np.repeat(sums[top] - table[top], num_rows[num_runs > 0], axis=0)
    sums[top, 0] = leads
    return sums.ravel()[place]


def _refuse_broken(groups: np.ndarray, ends_run: np.ndarray, char_bounds: np.ndarray) -> None:
    wrong = np.flatnonzero(groups > 63)
    if len(wrong):
        index = np.searchsorted(char_bounds, wrong[0], side="right") - 1
        raise ValueError(f"mask {index}: counts is not a compressed RLE string")
    last = char_bounds[1:] - 1  # [N]
    cut = np.flatnonzero((np.diff(char_bounds) > 0) & ~np.append(ends_run, True)[last])
    if len(cut):
        raise ValueError(f"mask {cut[0]}: counts is cut short")


def _check(lengths: np.ndarray, bounds: np.ndarray, size: tuple[int, int]) -> None:
    totals = np.diff(np.concatenate(([0], np.cumsum(lengths)))[bounds])  # [N]
    negative = np.flatnonzero(lengths < 0)
    if len(negative):
        index = np.searchsorted(bounds, negative[0], side="right") - 1
        raise ValueError(f"mask {index}: counts hold a negative run length, {lengths[negative[0]]}")
    wrong = np.flatnonzero(totals != size[0] * size[1])
    if len(wrong):
        raise ValueError(
            f"mask {wrong[0]}: run lengths add up to {totals[wrong[0]]}, expected {size[0]} x {size[1]} = "
            f"{size[0] * size[1]}"
        )


def _boxes(starts: np.ndarray, stops: np.ndarray, first: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """int64 [N, 4]. A run that goes on into the next column touches the top and the bottom."""
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
