# SPDX-License-Identifier: Apache-2.0
"""The annotations of one image, from JSON to columns, in plain Python."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace

import numpy as np
from pycocotools import mask as coco_mask

from sohes.evaluation.overlap import Pairs, find_pairs
from sohes.evaluation.runs import read_runs
from sohes.evaluation.shapes import Boxes, MeasuredMasks, RunMasks, boxes_of_masks, take
from sohes.masks import Size
from sohes.ops.reference.mask_rle import Counts

NO_PARENT, UNKNOWN_PARENT = -1, -2


@dataclass(frozen=True, eq=False)
class Against:
    """True masks that predictions are compared with while they are read: see ``find_pairs``."""

    gt: RunMasks
    crowd: np.ndarray
    min_iou: float


@dataclass(frozen=True, eq=False)
class Want:
    """What is to be read beside the rest. against: the pairs of masks with these; masks may then be just measured."""

    masks: bool = True
    boxes: bool = False
    scores: bool = False
    against: Against | None = None


@dataclass(frozen=True, eq=False)
class Annotations:
    """The N annotations of one image, in the order of the file.

    masks, boxes, scores (float64 [N]): where asked for, masks also where some box has to be taken from them. areas:
    float64 [N] as annotated, NaN where not. crowd: bool [N]. categories: int64 [N], None unless all have one.
    annotators: who drew each one, None where nobody is named. parents: int64 [N], the index of each one's parent,
    NO_PARENT, or UNKNOWN_PARENT for one that is not among these. has_hierarchy: some have a ``parent``, if only null.
    pairs: where asked for.
    """

    masks: RunMasks | MeasuredMasks | None
    boxes: Boxes | None
    scores: np.ndarray | None
    areas: np.ndarray
    crowd: np.ndarray
    categories: np.ndarray | None
    annotators: list | None
    parents: np.ndarray
    has_hierarchy: bool
    pairs: Pairs | None = None

    def __len__(self) -> int:
        return len(self.areas)

    def select(self, index: np.ndarray) -> Annotations:
        """Those at ``index`` (int64 [n]), in that order, without pairs; a parent that is not among them is unknown."""
        place = np.full(len(self) + 2, UNKNOWN_PARENT)  # the last two answer for parents of -2 and -1
        place[index] = np.arange(len(index))
        place[-1] = NO_PARENT
        chosen: dict = {"parents": place[self.parents[index]], "has_hierarchy": self.has_hierarchy, "pairs": None}
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


def read_annotations(text: bytes, size: Size, want: Want) -> Annotations:
    """JSON objects with commas between; see ``sohes.evaluation.annotations``."""
    records: list[dict] = json.loads(b"[" + text + b"]")
    given, is_given = _given_boxes(records if want.boxes else [])
    against = want.against
    masks = _read_masks(records, size) if want.masks or not is_given.all() else None
    return Annotations(
        masks=masks,
        boxes=join_boxes(given, is_given, masks) if want.boxes else None,
        scores=_numbers("score", [record.get("score") for record in records]) if want.scores else None,
        areas=_numbers("area", [record.get("area", float("nan")) for record in records]),
        crowd=np.array([bool(record.get("iscrowd")) for record in records], bool),
        categories=_categories(records),
        annotators=_annotators(records),
        parents=_find_parents(records),
        has_hierarchy=any("parent" in record for record in records),
        pairs=None if against is None else find_pairs(masks, against.gt, against.crowd, against.min_iou),
    )


def join_boxes(given: np.ndarray, is_given: np.ndarray, masks: RunMasks | MeasuredMasks | None) -> Boxes:
    """given: float64 [N, 4], the boxes annotated where ``is_given`` (bool [N]); elsewhere those around the masks."""
    areas = given[:, 2] * given[:, 3]  # [N]
    if is_given.all():
        return Boxes(given, areas)
    around = boxes_of_masks(masks)
    return Boxes(np.where(is_given[:, None], given, around.xywh), np.where(is_given, areas, around.areas))


def _given_boxes(records: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    boxes, is_given = np.zeros((len(records), 4)), np.array(["bbox" in record for record in records], bool)
    for box, record in zip(boxes, records, strict=True):
        if "bbox" in record:
            value = record["bbox"]
            if not isinstance(value, list) or len(value) != 4 or not all(isinstance(v, int | float) for v in value):
                raise ValueError(f"{_name(record)}: expected a bbox of four numbers, got {value!r}")
            box[:] = value
    return boxes, is_given


def _read_masks(records: list[dict], size: Size) -> RunMasks:
    try:
        return read_runs([_counts(record, size) for record in records], size)
    except TypeError as error:  # run lengths or corners that are no numbers
        raise ValueError(str(error)) from error


def _counts(record: dict, size: Size) -> Counts:
    """The RLE counts of an annotation; polygons are drawn by pycocotools."""
    segmentation = record.get("segmentation")
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str | list):
        if segmentation.get("size") != [*size]:
            got = segmentation.get("size")
            raise ValueError(f"{_name(record)}: expected a mask of size {list(size)}, got {got}")
        return segmentation["counts"]
    if not isinstance(segmentation, list) or not all(isinstance(p, list) and len(p) >= 6 for p in segmentation):
        raise ValueError(f"{_name(record)}: expected a segmentation, RLE or polygons of three corners or more")
    if not segmentation:
        return [size[0] * size[1]]
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))["counts"]


def _name(record: dict) -> str:
    return f"annotation {record.get('id', '(without id)')}"


def _numbers(name: str, values: list) -> np.ndarray:
    """float64 [N] of a number that every annotation must have."""
    for value in values:
        if not isinstance(value, int | float):
            raise ValueError(f"expected a number as {name} of every annotation, got {value!r}")
    return np.array(values, np.float64)


def _categories(records: list[dict]) -> np.ndarray | None:
    values = [record.get("category_id") for record in records]
    return np.array(values, np.int64) if all(isinstance(value, int) for value in values) else None


def _annotators(records: list[dict]) -> list | None:
    values = [record.get("annotator") for record in records]
    if all("annotator" not in record for record in records):
        return None
    if not all(isinstance(value, int | str) for value in values):
        raise ValueError("expected an annotator on every annotation, as on others of this file")
    return values


def _find_parents(records: list[dict]) -> np.ndarray:
    index_of = {record["id"]: index for index, record in enumerate(records) if isinstance(record.get("id"), int | str)}
    parents = np.full(len(records), NO_PARENT)
    for index, record in enumerate(records):
        parent = record.get("parent")
        if parent is not None:
            parents[index] = index_of.get(parent, UNKNOWN_PARENT) if isinstance(parent, int | str) else UNKNOWN_PARENT
    return parents
