# SPDX-License-Identifier: Apache-2.0
"""Masks as the runs of their COCO RLE, decoded in batches without drawing pixels.

A file may have 1000 masks per image, and few of them overlap a true mask. A mask has about 100 times fewer runs than
pixels, so areas, boxes and exact intersections are computed from the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from sohes.evaluation.reference import runs as reference
from sohes.evaluation.shapes import RunMasks
from sohes.ops._binary import find_binary
from sohes.ops.reference.mask_rle import Counts
from sohes.structures.masks import Size


def read_runs(counts: Sequence[Counts], size: Size) -> RunMasks:
    """N masks of one size from the ``counts`` of their RLEs: compressed str or bytes, or plain run lengths.

    Raises ValueError with the index of the mask if counts are not an RLE or do not add up to H * W.
    """
    texts = reference.as_texts(counts)
    binary = find_binary().module
    if binary is None:
        return reference.read_runs(texts, size)
    ends = np.cumsum([0, *map(len, texts)])  # [N + 1]
    places = np.stack((ends[:-1], ends[1:]), 1)  # [N, 2]
    masks = read_runs_at(binary, b"".join(texts), places, size, escaped=False)
    return reference.read_runs(texts, size) if masks is None else masks  # the reference raises the error


def read_runs_at(binary: ModuleType, text: bytes, places: np.ndarray, size: Size, *, escaped: bool) -> RunMasks | None:
    """The masks whose compressed counts are at ``places`` (int64 [N, 2], start and end byte) of ``text``, or None if
    one of them is not an RLE of ``size``. ``escaped``: as in JSON, where a backslash is written twice.
    """
    num = len(places)
    max_runs = int((places[:, 1] - places[:, 0]).sum()) // 2
    starts, stops = np.empty(max_runs, np.int64), np.empty(max_runs, np.int64)
    bounds, areas, boxes = np.empty((num, 2), np.int64), np.empty(num, np.int64), np.empty((num, 4), np.int64)
    broken = binary.rle_runs(text, places, escaped, *size, starts, stops, bounds, areas, boxes)
    return None if broken >= 0 else RunMasks(size, starts, stops, bounds, areas, boxes)
