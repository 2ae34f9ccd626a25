# SPDX-License-Identifier: Apache-2.0
"""The annotations of one image as columns, parsed from JSON in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from sohes.data.coco_fields import (
    check_annotation,
    check_rle_size,
    check_run_lengths,
    given_box,
    has_region,
    name_of,
)
from sohes.data.polygons import draw_polygons
from sohes.evaluation.matching import Pairs, find_pairs
from sohes.evaluation.protocol import IouType
from sohes.evaluation.runs import read_runs
from sohes.evaluation.shapes import Boxes, MeasuredMasks, RunMasks, boxes_of_masks, take
from sohes.ops.reference.mask_rle import Counts
from sohes.structures.masks import Size
from sohes.utils.json_stream import parse_json

NO_PARENT, UNKNOWN_PARENT = -1, -2


@dataclass(frozen=True, eq=False)
class PairWith:
    """True masks that predictions are paired with while they are read, see ``find_pairs``. crowd: bool [M]."""

    gt: RunMasks
    crowd: np.ndarray
    min_iou: float


@dataclass(frozen=True, eq=False)
class Want:
    """Optional columns to read. against: also find the pairs with these masks; ``masks`` may then be measured only."""

    masks: bool = True
    boxes: bool = False
    scores: bool = False
    against: PairWith | None = None


@dataclass(frozen=True, eq=False)
class Annotations:
    """The N annotations of one image as columns, in the order of the file.

    masks, boxes, scores (float64 [N]): if requested; masks also if a box has to be computed from its mask. areas:
    float64 [N] as annotated, else NaN. crowd: bool [N]. categories: int64 [N], dtype object if some are larger, None
    unless all are integers. annotators: one per annotation, None if the file has none. parents: int64 [N], index of
    the parent, NO_PARENT, or UNKNOWN_PARENT for a parent outside this image. has_parent_key: bool [N], has the key
    ``parent``, even if null. has_mask: bool [N], False if masks are read and there is no region (see
    ``coco_fields.has_region``); the mask is then empty. has_box: bool [N], has a ``bbox``. pairs: if requested.
    """

    masks: RunMasks | MeasuredMasks | None
    boxes: Boxes | None
    scores: np.ndarray | None
    areas: np.ndarray
    crowd: np.ndarray
    categories: np.ndarray | None
    annotators: list | None
    parents: np.ndarray
    has_parent_key: np.ndarray
    has_mask: np.ndarray
    has_box: np.ndarray
    pairs: Pairs | None = None

    def __len__(self) -> int:
        return len(self.areas)

    def shapes(self, iou_type: IouType) -> RunMasks | MeasuredMasks | Boxes:
        """The masks or the boxes. Raises ValueError if they were not requested."""
        shapes = self.masks if iou_type == "mask" else self.boxes
        if shapes is None:
            raise ValueError(f"expected annotations that were read with shapes of type {iou_type}")
        return shapes

    @property
    def known_scores(self) -> np.ndarray:
        """The scores, float64 [N]. Raises ValueError if they were not requested."""
        if self.scores is None:
            raise ValueError("expected annotations that were read with scores")
        return self.scores

    def select(self, index: np.ndarray) -> Annotations:
        """The annotations at ``index`` (int64 [n]), without pairs. A parent outside them becomes UNKNOWN_PARENT."""
        new_index = np.full(len(self) + 2, UNKNOWN_PARENT)  # the last two are for parents of -2 and -1
        new_index[index] = np.arange(len(index))
        new_index[-1] = NO_PARENT
        chosen: dict[str, Any] = {"parents": new_index[self.parents[index]], "pairs": None}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in chosen or value is None:
                continue
            if isinstance(value, np.ndarray):
                chosen[field.name] = value[index]
            elif isinstance(value, list):
                chosen[field.name] = [value[k] for k in index.tolist()]
            else:
                chosen[field.name] = take(value, index)
        return replace(self, **chosen)

    def keep(self, kept: np.ndarray) -> Annotations:
        """The annotations with ``kept`` (bool [N]); each gets its nearest kept ancestor as its parent.

        Raises ValueError for a cycle of parents.
        """
        above = self.parents  # [N]
        for _ in range(len(self)):
            gone = (above >= 0) & ~kept[above]  # [N]
            if not gone.any():
                return replace(self, parents=above).select(np.flatnonzero(kept))
            above = np.where(gone, self.parents[above], above)
        if len(self):
            raise ValueError("parents hold a cycle")
        return self


def read_annotations(text: bytes, size: Size, want: Want) -> Annotations:
    """See ``sohes.evaluation.annotations``; text: JSON objects separated by commas."""
    records: list[dict] = parse_json(b"[" + text + b"]")
    for record in records:
        check_annotation(record)
    given, has_box = _given_boxes(records)
    against = want.against
    masks = _read_masks(records, size, want) if want.masks or not has_box.all() else None
    return Annotations(
        masks=masks,
        boxes=join_boxes(given, has_box, masks) if want.boxes else None,
        scores=_scores(records) if want.scores else None,
        areas=np.array([_or_nan(record.get("area")) for record in records], np.float64),
        crowd=np.array([bool(record.get("iscrowd")) for record in records], bool),
        categories=_categories(records),
        annotators=_annotators(records),
        parents=_find_parents(records),
        has_parent_key=np.array(["parent" in record for record in records], bool),
        has_mask=np.array([masks is None or has_region(record) for record in records], bool),
        has_box=has_box,
        pairs=None
        if against is None or masks is None
        else find_pairs(masks, against.gt, against.crowd, against.min_iou),
    )


def join_boxes(given: np.ndarray, is_given: np.ndarray, masks: RunMasks | MeasuredMasks | None) -> Boxes:
    """The annotated boxes ``given`` (float64 [N, 4]) where ``is_given`` (bool [N]), else the masks' bounding boxes."""
    areas = given[:, 2] * given[:, 3]  # [N]
    if masks is None or is_given.all():
        return Boxes(given, areas)
    around = boxes_of_masks(masks)
    return Boxes(np.where(is_given[:, None], given, around.xywh), np.where(is_given, areas, around.areas))


def _given_boxes(records: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    boxes, is_given = np.zeros((len(records), 4)), np.zeros(len(records), bool)
    for index, record in enumerate(records):
        box = given_box(record)
        if box is not None:
            boxes[index], is_given[index] = box, True
    return boxes, is_given


def _read_masks(records: list[dict], size: Size, want: Want) -> RunMasks:
    counts = []
    for record in records:
        try:
            counts.append(_counts(record, size, want))
        except ValueError as error:
            raise ValueError(f"{name_of(record)}: {error}") from error
    return read_runs(counts, size)


def _counts(record: dict, size: Size, want: Want) -> Counts:
    """The RLE counts of an annotation, of an empty mask if it has no region. A prediction needs a region or []."""
    segmentation = record.get("segmentation")
    if not has_region(record) and (segmentation == [] or not want.scores):
        return [size[0] * size[1]]
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str | list):
        check_rle_size(segmentation, size)
        if isinstance(segmentation["counts"], list):
            check_run_lengths(segmentation["counts"], size)
        return segmentation["counts"]
    if not isinstance(segmentation, list) or not all(isinstance(p, list) and len(p) >= 6 for p in segmentation):
        raise ValueError("expected a segmentation, RLE or polygons of three corners or more")
    return draw_polygons(segmentation, size)["counts"]


def _scores(records: list[dict]) -> np.ndarray:
    """Scores, float64 [N]. Raises ValueError if one is missing."""
    for record in records:
        if record.get("score") is None:
            raise ValueError(f"{name_of(record)}: expected a number as score of every annotation, got none")
    return np.array([float(record["score"]) for record in records], np.float64)


def _or_nan(area: float | None) -> float:
    return float("nan") if area is None else float(area)


def _categories(records: list[dict]) -> np.ndarray | None:
    values: list[Any] = [record.get("category_id") for record in records]
    if not all(isinstance(value, int) for value in values):
        return None
    fits = all(-(2**63) <= value < 2**63 for value in values)
    return np.array(values, np.int64 if fits else object)


def _annotators(records: list[dict]) -> list | None:
    if all("annotator" not in record for record in records):
        return None
    values = [record.get("annotator") for record in records]
    if None in values:
        raise ValueError("expected an annotator on every annotation, as on others of this file")
    return values


def _find_parents(records: list[dict]) -> np.ndarray:
    index_of = {record["id"]: index for index, record in enumerate(records) if record.get("id") is not None}
    parents = np.full(len(records), NO_PARENT)
    for index, record in enumerate(records):
        if record.get("parent") is not None:
            parents[index] = index_of.get(record["parent"], UNKNOWN_PARENT)
    return parents
