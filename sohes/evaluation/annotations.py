# SPDX-License-Identifier: Apache-2.0
"""The annotations of one image as columns, parsed from JSON."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from sohes.evaluation.matching import Pairs, empty_pairs, first_pairs, run_arrays
from sohes.evaluation.reference import annotations as reference
from sohes.evaluation.reference.annotations import NO_PARENT, UNKNOWN_PARENT, Annotations, PairWith, Want
from sohes.evaluation.runs import read_runs_at
from sohes.evaluation.shapes import MeasuredMasks, RunMasks
from sohes.ops._binary import find_binary
from sohes.structures.masks import Size

__all__ = ["NO_PARENT", "UNKNOWN_PARENT", "Annotations", "PairWith", "Want", "read_annotations"]

# Integer and float columns of coco_records, and the bits of its first column; see csrc/include/sohes/evaluation.h.
HAS, ID, PARENT, CATEGORY, ANNOTATOR, CROWD, HEIGHT, WIDTH, COUNTS, COUNTS_END = range(10)
SCORE, AREA, BOX = range(3)
NUM_COLUMNS, NUM_NUMBERS = 10, 6
HAS_ID, HAS_PARENT_KEY, HAS_PARENT, HAS_CATEGORY, HAS_ANNOTATOR, HAS_SCORE, HAS_AREA, HAS_BOX, HAS_RLE = (
    1 << bit for bit in range(9)
)


def read_annotations(text: bytes, count: int, size: Size, want: Want) -> Annotations:
    """Columns of ``count`` annotations, JSON objects separated by commas, of an image of ``size``.

    Raises ValueError for invalid annotations; the message does not name the file.
    """
    binary = find_binary().module
    if binary is not None and count:
        found = _read_compiled(binary, text, count, size, want)
        if found is not None:
            return found
    return reference.read_annotations(text, size, want)


def _read_compiled(binary: ModuleType, text: bytes, count: int, size: Size, want: Want) -> Annotations | None:
    """The columns, or None for unusual or invalid annotations, which are left to the reference."""
    columns, numbers = np.empty((count, NUM_COLUMNS), np.int64), np.empty((count, NUM_NUMBERS), np.float64)
    if not binary.coco_records(text, columns, numbers):
        return None
    has = columns[:, HAS]
    every, some = int(np.bitwise_and.reduce(has)), int(np.bitwise_or.reduce(has))
    if (want.scores and not every & HAS_SCORE) or some & HAS_ANNOTATOR != every & HAS_ANNOTATOR:
        return None
    masks: RunMasks | MeasuredMasks | None = None
    pairs = None
    if want.masks or not every & HAS_BOX:  # a missing box is computed from the mask
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
        has_parent_key=(has & HAS_PARENT_KEY) > 0,
        has_mask=np.ones(count, bool),
        has_box=(has & HAS_BOX) > 0,
        pairs=pairs,
    )


def _measure_and_pair(
    binary: ModuleType, text: bytes, places: np.ndarray, size: Size, against: PairWith
) -> tuple[MeasuredMasks | None, Pairs | None]:
    """Areas and boxes of the predicted masks, and their pairs; (None, None) if a mask is invalid."""
    num = len(places)
    longest = int((places[:, 1] - places[:, 0]).max())
    masks = MeasuredMasks(size, np.empty(num, np.int64), np.empty((num, 4), np.int64))
    pairs = empty_pairs(num, len(against.gt))
    scratch = np.empty((2, longest // 2 + 1), np.int64)
    given = (text, places, True, *size, run_arrays(against.gt), against.crowd, against.min_iou)
    broken, count = binary.rle_pairs(*given, scratch, masks.areas, masks.boxes, pairs.pred, pairs.gt, pairs.iou)
    return (None, None) if broken >= 0 else (masks, first_pairs(pairs, count))


def _find_parents(columns: np.ndarray) -> np.ndarray:
    """Index of the parent of each annotation, int64 [N]; of duplicate ids, the last one counts."""
    parents = np.full(len(columns), NO_PARENT)  # [N]
    children = np.flatnonzero(columns[:, HAS] & HAS_PARENT)  # [n]
    if len(children) == 0:
        return parents
    parents[children] = UNKNOWN_PARENT
    owners = np.flatnonzero(columns[:, HAS] & HAS_ID)  # [m]
    ids = columns[owners, ID]  # [m]
    order = np.argsort(ids, kind="stable")  # [m]
    wanted = columns[children, PARENT]  # [n]
    position = np.searchsorted(ids[order], wanted, side="right") - 1  # [n]
    found = position >= 0
    found[found] = ids[order][position[found]] == wanted[found]
    parents[children[found]] = owners[order][position[found]]
    return parents
