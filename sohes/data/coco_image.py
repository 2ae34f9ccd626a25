# SPDX-License-Identifier: Apache-2.0
"""The labels of one image as a forest of masks, from its records in COCO JSON."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sohes.data.coco_fields import (
    check_annotation,
    check_image,
    check_rle_size,
    check_run_lengths,
    has_region,
    is_number,
    name_of,
    shorten,
)
from sohes.data.errors import DataError
from sohes.data.polygons import draw_polygons
from sohes.structures.forest import Forest, read_votes
from sohes.structures.masks import PackedMasks

_LARGEST_SCORE = float(np.finfo(np.float32).max)
_MOST_BYTES = 2**34
"""Limit of the packed masks of one image: 1000 masks of 137 megapixels."""


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """The labels of one image, N masks in the order of the file.

    path: of the image file, which is not opened. image_id: as in the file. size: (H, W) in pixels.
    forest: masks, scores (1 where the file has none) and parents. crowd: bool [N], COCO's `iscrowd`.
    annotator: int64 [N], which human drew each mask; None if the file does not say. Names, and integers of more than
    64 bits, are numbered within the image.
    """

    path: Path
    image_id: int | str
    forest: Forest
    size: tuple[int, int]
    crowd: Tensor
    annotator: Tensor | None


def labelled_image(image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], path: Path) -> LabelledImage:
    """The labels of one image from its records in COCO JSON; `path` is that of its photo.

    Annotations without a segmentation are left out; the parent of their children is their own parent.

    Raises ValueError for an invalid value, or a segmentation that cannot be decoded or has another size than the image.
    """
    check_image(image)
    size = (image["height"], image["width"])
    for annotation in annotations:
        check_annotation(annotation)
    has_mask = [has_region(annotation) for annotation in annotations]
    if sum(has_mask) * size[0] * size[1] // 8 > _MOST_BYTES:
        got = f"{sum(has_mask)} of {size[0]} x {size[1]} pixels"
        raise DataError(f"expected masks that take at most {_MOST_BYTES >> 30} GiB in an image, got {got}")
    forest = _read_forest(annotations, has_mask, size)
    with_mask = list(itertools.compress(annotations, has_mask))
    annotators = [one["annotator"] for one in with_mask if one.get("annotator") is not None]
    return LabelledImage(
        path=path,
        image_id=image["id"],
        forest=forest,
        size=size,
        crowd=torch.tensor([bool(one.get("iscrowd")) for one in with_mask], dtype=torch.bool, device="cpu"),
        annotator=_number(annotators) if annotators and len(annotators) == len(with_mask) else None,
    )


def _read_forest(annotations: Sequence[Mapping[str, Any]], has_mask: list[bool], size: tuple[int, int]) -> Forest:
    """The forest of the annotations that have a mask."""
    places = {annotation["id"]: n for n, annotation in enumerate(annotations) if annotation.get("id") is not None}
    above = [places.get(annotation.get("parent"), -1) for annotation in annotations]
    parents: list[int] = []  # of the annotations with a mask, as places among all annotations
    kept: dict[int, int] = {}  # place among all annotations -> place among those with a mask
    for n, annotation in enumerate(annotations):
        score = annotation.get("score")
        if score is not None and not is_number(score, -_LARGEST_SCORE, _LARGEST_SCORE):
            raise DataError(f"{name_of(annotation)}: expected a score that float32 holds, got {shorten(score)}")
        if not has_mask[n]:
            continue
        kept[n], parent, steps = len(kept), above[n], 0
        while parent >= 0 and not has_mask[parent]:
            parent, steps = above[parent], steps + 1
            if steps > len(annotations):
                raise DataError(f"{name_of(annotation)}: parents hold a cycle")
        parents.append(parent)
    with_mask = [annotations[n] for n in kept]
    scores = [1.0 if one.get("score") is None else one["score"] for one in with_mask]
    return Forest(
        PackedMasks.from_rle([to_rle(one, size) for one in with_mask], size),
        torch.tensor(scores, dtype=torch.float32, device="cpu"),
        torch.tensor([kept.get(parent, -1) for parent in parents], dtype=torch.int64, device="cpu"),
        read_votes(with_mask),
    )


def _number(annotators: list[int | str]) -> Tensor:
    """Annotators as int64 [N]: the ids themselves if all are 64-bit integers, else numbers by first appearance."""
    if not all(is_number(annotator, -(2**63), 2**63 - 1) for annotator in annotators):
        number_of = {annotator: n for n, annotator in enumerate(dict.fromkeys(annotators))}
        annotators = [number_of[annotator] for annotator in annotators]
    return torch.tensor(annotators, dtype=torch.int64, device="cpu")


def to_rle(annotation: Mapping, size: tuple[int, int]) -> dict:
    """The segmentation of an annotation as RLE of `size` (H, W); polygons are drawn. Without one an empty mask.

    Raises DataError for an invalid segmentation.
    """
    if not has_region(annotation):
        return {"size": list(size), "counts": [size[0] * size[1]]}
    segmentation = annotation["segmentation"]
    try:
        if not isinstance(segmentation, dict):
            return draw_polygons(segmentation, size)
        if "size" not in segmentation or not isinstance(segmentation.get("counts"), str | bytes | list):
            raise DataError(f"expected an RLE with size and counts, got {shorten(segmentation)}")
        check_rle_size(segmentation, size)
        if isinstance(segmentation["counts"], list):
            check_run_lengths(segmentation["counts"], size)
    except ValueError as error:
        raise DataError(str(error)) from error
    return segmentation
