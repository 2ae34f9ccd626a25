# SPDX-License-Identifier: Apache-2.0
"""The human line: how much of one annotator's segments do the other annotators of the same photo find?

For each annotator of a photo the predictions are the segments of all other annotators, without near-duplicates. A
segment that more of the others drew ranks higher (votes); of equal votes the larger one does. A vote is a segment of
IoU >= 0.5 by another of these annotators, so the order uses nothing of the one who is scored. As predictions differ by
annotator, both files have one image per annotator, with the id `PHOTO/ANNOTATOR`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sohes.baselines.output import DESCRIPTION, BaselineError, check_replaceable
from sohes.configs.evaluate import BaselineConfig
from sohes.data.coco import to_rle, write_coco_stream
from sohes.data.coco_fields import has_region
from sohes.evaluation.datasets.base import DataSet, Sample
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, mask_iou, nms_masks

NAME = "other-annotators"
VOTE_IOU = 0.5

Pair = tuple[dict[str, Any], list[dict[str, Any]]]
"""An image record and its annotations."""

logger = logging.getLogger(__name__)


def write_others(
    dataset: DataSet,
    keys: Sequence[Hashable],
    pred: Path,
    truth: Path,
    config: BaselineConfig,
    on_image: Callable[[int, int], None] | None = None,
) -> int:
    """Write the predictions to `pred` and the annotations to `truth`, with one image per annotator in both.

    Photos with one annotator are left out with a warning, those without annotations silently. on_image(done, total):
    after every photo. Returns the number of photos used.

    Raises:
        BaselineError: a file exists and was not written by a baseline, no photo has several annotators, or an
            annotation has no annotator or an invalid mask.
    """
    check_replaceable(pred, f"--pred {pred}")
    check_replaceable(truth, str(truth))
    used, alone = _find_photos(dataset, keys)
    write_coco_stream(truth, _truth_pairs(dataset, used), {"description": f"{DESCRIPTION} {NAME}: ground truth"})
    predictions = _predicted_pairs(dataset, used, config, on_image)
    write_coco_stream(pred, predictions, {"description": f"{DESCRIPTION} {NAME}"})
    if alone:
        logger.warning("%d of %d photos have one annotator alone and are left out", alone, alone + len(used))
    return len(used)


def others_of(
    masks: PackedMasks, owners: Tensor, people: int, config: BaselineConfig
) -> Iterator[tuple[Forest, Tensor]]:
    """For each annotator 0, 1, ..., P - 1 of a photo the segments of the others, best first, and their indices [n].

    masks: N segments. owners: int64 [N], who drew each. people: P >= 2, the number of annotators. A score is (votes +
    share of the photo) / (P - 1), in 0..1. Empty masks are left out.
    """
    similar = mask_iou(masks, masks) >= VOTE_IOU  # [N, N]
    votes = torch.stack([similar[:, owners == who].any(1) for who in range(people)], 1)  # [N, P]
    votes[torch.arange(len(masks)), owners] = False
    share = masks.areas.double() / (masks.size[0] * masks.size[1])  # [N]
    for who in range(people):
        others = torch.nonzero((owners != who) & (masks.areas > 0)).flatten()  # [M]
        agreed = votes[others].sum(1) - votes[others, who].long()  # [M]
        scores = (agreed + share[others]) / (people - 1)  # float64 [M]
        kept = nms_masks(masks[others], config.nms_iou, scores)[: config.max_masks]  # [n]
        chosen = masks[others[kept]]
        yield Forest(chosen, scores[kept].float(), build_forest(chosen)), others[kept]


def _find_photos(dataset: DataSet, keys: Sequence[Hashable]) -> tuple[list[Hashable], int]:
    """Keys of the photos with several annotators, and the number of those with one. Raises BaselineError."""
    used: list[Hashable] = []
    alone, is_named = 0, False
    source = dataset.inputs()[0] if len(dataset.inputs()) == 1 else dataset.root
    for key in keys:
        sample = dataset.read(key)
        if sample is None or not sample.annotations:
            continue
        people = {one.get("annotator") for one in sample.annotations}
        is_named = is_named or people != {None}
        if None in people and len(people) > 1:
            name = sample.image["file_name"]
            raise BaselineError(f"{source}: {name}: expected an annotator on every annotation, as on others of it")
        used += [key] if len(people) > 1 else []
        alone += len(people) == 1
    if not used:
        missing = "no photo has two" if is_named else "no annotation has the field `annotator`"
        raise BaselineError(f"{source}: {NAME} needs photos that several annotators drew on, and {missing}")
    return used, alone


def _by_annotator(sample: Sample) -> dict[Any, list[Mapping[str, Any]]]:
    """The annotations of each annotator, in the order of first appearance."""
    drawn: dict[Any, list[Mapping[str, Any]]] = {}
    for one in sample.annotations:
        drawn.setdefault(one["annotator"], []).append(one)
    return drawn


def _image_record(sample: Sample, who: Any) -> dict[str, Any]:
    return {**sample.image, "id": f"{sample.image['id']}/{who}"}


def _samples(dataset: DataSet, keys: Sequence[Hashable]) -> Iterator[Sample]:
    for key in keys:
        sample = dataset.read(key)
        assert sample is not None  # _find_photos read it before
        yield sample


def _truth_pairs(dataset: DataSet, keys: Sequence[Hashable]) -> Iterator[Pair]:
    first_id = 1
    for sample in _samples(dataset, keys):
        for who, drawn in _by_annotator(sample).items():
            image = _image_record(sample, who)
            new_id = {one["id"]: first_id + k for k, one in enumerate(drawn) if "id" in one}
            records = []
            for k, one in enumerate(drawn):
                record = {"category_id": 1, "iscrowd": 0, **one, "id": first_id + k, "image_id": image["id"]}
                del record["annotator"]
                if one.get("parent") is not None:
                    if one["parent"] not in new_id:
                        name = sample.image["file_name"]
                        raise BaselineError(f"{name}: parent {one['parent']!r} is no annotation of annotator {who!r}")
                    record["parent"] = new_id[one["parent"]]
                records.append(record)
            first_id += len(drawn)
            yield image, records


def _predicted_pairs(
    dataset: DataSet,
    keys: Sequence[Hashable],
    config: BaselineConfig,
    on_image: Callable[[int, int], None] | None,
) -> Iterator[Pair]:
    first_id = 1
    for done, sample in enumerate(_samples(dataset, keys), start=1):
        people = list(_by_annotator(sample))
        drawn = [one for one in sample.annotations if has_region(one) and not one.get("iscrowd")]
        owners = torch.tensor([people.index(one["annotator"]) for one in drawn], dtype=torch.int64, device="cpu")
        try:
            masks = PackedMasks.from_rle([to_rle(one, sample.size) for one in drawn], sample.size)
        except ValueError as error:
            raise BaselineError(f"{sample.image['file_name']}: {error}") from error
        for who, (forest, indices) in zip(people, others_of(masks, owners, len(people), config), strict=True):
            image = _image_record(sample, who)
            records = forest.to_coco(image["id"], first_id)
            for record, index in zip(records, indices.tolist(), strict=True):
                record["category_id"] = drawn[index].get("category_id", 1)
            first_id += len(records)
            yield image, records
        if on_image is not None:
            on_image(done, len(keys))
