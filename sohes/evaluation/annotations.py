# SPDX-License-Identifier: Apache-2.0
"""The annotations of one image, from the bytes of their JSON to columns."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from sohes.evaluation.matching import Pairs, empty_pairs, first_pairs, run_arrays
from sohes.evaluation.reference import annotations as reference
from sohes.evaluation.reference.annotations import NO_PARENT, UNKNOWN_PARENT, Against, Annotations, Want
from sohes.evaluation.runs import read_runs_at
from sohes.evaluation.shapes import MeasuredMasks
from sohes.ops._binary import find_binary
from sohes.structures.masks import Size

__all__ = ["NO_PARENT", "UNKNOWN_PARENT", "Against", "Annotations", "Want", "read_annotations"]

# Columns and numbers of coco_records, and the bits of its first column: see csrc/include/sohes/evaluation.h.
HAS, ID, PARENT, CATEGORY, ANNOTATOR, CROWD, HEIGHT, WIDTH, COUNTS, COUNTS_END = range(10)
SCORE, AREA, BOX = range(3)
NUM_COLUMNS, NUM_NUMBERS = 10, 6
HAS_ID, HAS_PARENT_KEY, HAS_PARENT, HAS_CATEGORY, HAS_ANNOTATOR, HAS_SCORE, HAS_AREA, HAS_BOX, HAS_RLE = (
    1 << bit for bit in range(9)
)


def read_annotations(text: bytes, count: int, size: Size, want: Want) -> Annotations:
    """``count`` annotations, JSON objects with commas between, of an image of ``size``.

    Raises ValueError, without the file's name, for what is wrong with them.
    """
    binary = find_binary().module
    if binary is not None and count:
        found = _read_natively(binary, text, count, size, want)
        if found is not None:
            return found
    return reference.read_annotations(text, size, want)


def _read_natively(binary: ModuleType, text: bytes, count: int, size: Size, want: Want) -> Annotations | None:
    """None for what is not of the plainest form, or wrong: the reference reads it, or says what is the matter."""
    columns, numbers = np.empty((count, NUM_COLUMNS), np.int64), np.empty((count, NUM_NUMBERS), np.float64)
    if not binary.coco_records(text, columns, numbers):
        return None
    has = columns[:, HAS]
    every, some = int(np.bitwise_and.reduce(has)), int(np.bitwise_or.reduce(has))
    if (want.scores and not every & HAS_SCORE) or some & HAS_ANNOTATOR != every & HAS_ANNOTATOR:
        return None
    masks = pairs = None
    if want.masks or not every & HAS_BOX:  # a box that is not given is taken from the mask
        if not every & HAS_RLE or (columns[:, HEIGHT : WIDTH + 1] != size).any():
            return None
        places = columns[:, COUNTS : COUNTS_END + 1]
        if want.against is None:
            masks = read_runs_at(binary, text, places, size, escaped=True)
        else:
            masks, pairs = _measure_and_pair(binary, text, places, size, want.against)
        if masks is None:
            return None
    return Annotations(
        masks=masks,
        boxes=reference.join_boxes(numbers[:, BOX:], (has & HAS_BOX) > 0, masks) if want.boxes else None,
        scores=numbers[:, SCORE] if want.scores else None,
        areas=np.where(has & HAS_AREA, numbers[:, AREA], np.nan),
        crowd=columns[:, CROWD] != 0,
        categories=columns[:, CATEGORY] if every & HAS_CATEGORY else None,
        annotators=columns[:, ANNOTATOR].tolist() if every & HAS_ANNOTATOR else None,
        parents=_find_parents(columns),
        tells_parent=(has & HAS_PARENT_KEY) > 0,
        has_mask=np.ones(count, bool),
        has_box=(has & HAS_BOX) > 0,
        pairs=pairs,
    )


def _measure_and_pair(
    binary: ModuleType, text: bytes, places: np.ndarray, size: Size, against: Against
) -> tuple[MeasuredMasks | None, Pairs | None]:
    num = len(places)
    longest = int((places[:, 1] - places[:, 0]).max())
    masks = MeasuredMasks(size, np.empty(num, np.int64), np.empty((num, 4), np.int64))
    pairs = empty_pairs(num, len(against.gt))
    scratch = np.empty((2, longest // 2 + 1), np.int64)
    given = (text, places, True, *size, run_arrays(against.gt), against.crowd, against.min_iou)
    broken, count = binary.rle_pairs(*given, scratch, masks.areas, masks.boxes, pairs.pred, pairs.gt, pairs.iou)
    return (None, None) if broken >= 0 else (masks, first_pairs(pairs, count))


def _find_parents(columns: np.ndarray) -> np.ndarray:
    """The index of the annotation that each one names as its parent, int64 [N]; of equal ids the last counts."""
    parents = np.full(len(columns), NO_PARENT)  # [N]
    children = np.flatnonzero(columns[:, HAS] & HAS_PARENT)  # [n]
    if len(children) == 0:
        return parents
    parents[children] = UNKNOWN_PARENT
    owners = np.flatnonzero(columns[:, HAS] & HAS_ID)  # [m]
    ids = columns[owners, ID]  # [m]
    order = np.argsort(ids, kind="stable")  # [m]
    wanted = columns[children, PARENT]  # [n]
    place = np.searchsorted(ids[order], wanted, side="right") - 1  # [n]
    found = place >= 0
    found[found] = ids[order][place[found]] == wanted[found]
    parents[children[found]] = owners[order][place[found]]
    return parents
