# SPDX-License-Identifier: Apache-2.0
"""The pictures of a comparison: photos where runs differ most, best and worst photos, masks that every run misses."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.data.coco import LabelledImage, labelled_image
from sohes.evaluation.bootstrap import PhotoSums
from sohes.evaluation.coco_index import CocoIndex
from sohes.evaluation.protocol import COCO_AREAS
from sohes.report.photos import FOUND_IOU, GROUND_TRUTH, Photo, PhotoPanels, draw_photo, image_uri
from sohes.structures.masks import PackedMasks, mask_iou
from sohes.utils.errors import SohesError
from sohes.visual.draw import resize_image

SIZES = ("small", "medium", "large")  # of COCO_AREAS
_CROP_SIDE = 220  # long side of a crop in pixels of the page
_OUTLINE = torch.tensor([255, 40, 120], dtype=torch.uint8)
_MAX_MISSES_PER_PHOTO = 2  # shown per size


@dataclass(frozen=True, eq=False)
class PhotoSource:
    """Where photos, true masks and predictions come from.

    name: of the data, for display. truth, predictions: indexed files that agree on ids; predictions by run. read_photo:
    file name of the truth -> uint8 [3, H, W]; raises SohesError.
    """

    name: str
    truth: CocoIndex
    predictions: Mapping[str, CocoIndex]
    read_photo: Callable[[str], Tensor]

    def record(self, photo: Hashable) -> dict[str, Any]:
        """The COCO image record of the ground truth. Raises ValueError for an id that it does not have."""
        images = self.truth.images or {}
        if not isinstance(photo, (int, str)) or photo not in images:
            raise ValueError(f"{self.truth.path}: no image with id {photo!r}")
        return images[photo]

    def file_name(self, photo: Hashable) -> str:
        """File name in the ground truth, or the id where the record has none."""
        return str(self.record(photo).get("file_name", photo))

    def labels(self, photo: Hashable) -> dict[str, LabelledImage]:
        """The true masks and every run's predictions of one photo. Raises ValueError."""
        image, path = self.record(photo), Path(self.file_name(photo))
        indices = {GROUND_TRUTH: self.truth, **self.predictions}
        return {title: labelled_image(image, index.annotations(image["id"]), path) for title, index in indices.items()}


@dataclass(frozen=True)
class Miss:
    """A true mask that no run finds. uri: a crop as a data URI; area in pixels; best_ious: one per run."""

    photo: str
    uri: str
    area: int
    best_ious: list[float]


def choose_photos(runs: Mapping[str, PhotoSums], source: PhotoSource, count: int) -> PhotoPanels:
    """`count` photos of each kind: largest gain and loss of the last run against the first, best and worst of all runs.

    Ranked by AR at the largest number of masks. Photos without a true mask are ignored; no photo is shown twice.
    """
    names, sums = list(runs), list(runs.values())
    metric = next(iter(sums[0].sums))
    most = max(
        (name for name in sums[0].sums if name.startswith("AR@")), key=lambda name: int(name[3:]), default=metric
    )
    recalls = np.stack([run.of_photo(most) for run in sums])  # [runs, P]
    known = ~np.isnan(recalls).any(0)
    mean, change = recalls.mean(0), recalls[-1] - recalls[0]  # [P]
    kinds = [("best of all runs", mean, known), ("worst of all runs", -mean, known)]
    if len(names) > 1:
        kinds = [
            (f"{names[-1]} gains most on {names[0]}", change, known & (change > 0)),
            (f"{names[-1]} loses most to {names[0]}", -change, known & (change < 0)),
            *kinds,
        ]
    photos: list[Photo] = []
    problems: list[str] = []
    shown: set[int] = set()
    for kind, value, allowed in kinds:
        ranked = [p for p in np.argsort(-value, kind="stable").tolist() if allowed[p] and p not in shown]
        for place in ranked[:count]:
            shown.add(place)
            photo = sums[0].photos[place]
            scores = ", ".join(f"{name} {100 * recalls[k, place]:.1f}" for k, name in enumerate(names))
            title = f"{kind}: {source.file_name(photo)} ({most} {scores})"
            try:
                photos.append(draw_photo(title, source.read_photo(source.file_name(photo)), source.labels(photo)))
            except (SohesError, ValueError) as error:
                problems.append(str(error))
    return PhotoPanels("Photos on which the runs differ most, and their best and worst", photos, problems)


def find_misses(
    runs: Mapping[str, PhotoSums], source: PhotoSource, count: int
) -> tuple[dict[str, list[Miss]], list[str]]:
    """Up to `count` true masks per size that no run finds, the largest of a photo first; and error messages."""
    misses: dict[str, list[Miss]] = {}
    problems: dict[str, None] = {}
    sums = list(runs.values())
    for size in SIZES:
        misses[size] = []
        if f"AR-{size}" not in sums[0].sums:
            continue
        table = np.stack([run.sums[f"AR-{size}"] for run in sums])  # [runs, P, 2]
        missed = (table[:, :, 1] - table[:, :, 0]).min(0)  # [P], by the run that misses fewest
        for place in np.argsort(-missed, kind="stable").tolist()[: 2 * count]:
            if missed[place] <= 0 or len(misses[size]) >= count:
                break
            photo = sums[0].photos[place]
            try:
                found = _misses_of(
                    source, photo, COCO_AREAS[size], min(_MAX_MISSES_PER_PHOTO, count - len(misses[size]))
                )
            except (SohesError, ValueError) as error:
                problems[str(error)] = None
                continue
            misses[size] += found
    return misses, list(problems)


def _misses_of(source: PhotoSource, photo: Hashable, limits: tuple[float, float], count: int) -> list[Miss]:
    labels = source.labels(photo)
    truth = labels.pop(GROUND_TRUTH)
    masks = truth.forest.masks
    ious = torch.stack([_best_iou(masks, one.forest.masks) for one in labels.values()], 1)  # [M, runs]
    inside = (masks.areas >= limits[0]) & (masks.areas <= limits[1]) & (masks.areas > 0) & ~truth.crowd
    chosen = (inside & (ious.max(1).values < FOUND_IOU)).nonzero().flatten()  # [n]
    chosen = chosen[masks.areas[chosen].argsort(descending=True, stable=True)][:count]
    if len(chosen) == 0:
        return []
    image = source.read_photo(source.file_name(photo))
    if tuple(image.shape[1:]) != masks.size:
        raise ValueError(f"{source.file_name(photo)}: masks of size {masks.size}, photo of {tuple(image.shape[1:])}")
    name = source.file_name(photo)
    return [
        Miss(name, image_uri(draw_crop(image, masks[m])), int(masks.areas[m]), ious[m].tolist())
        for m in chosen.tolist()
    ]


def _best_iou(masks: PackedMasks, found: PackedMasks) -> Tensor:
    """Best IoU of each mask with any of `found`: float32 [M], 0 if `found` is empty."""
    return mask_iou(masks, found).max(1).values if len(found) else torch.zeros(len(masks))


def draw_crop(image: Tensor, mask: PackedMasks) -> Tensor:
    """Crop around one mask with its outline, uint8 [3, h, w], enlarged or reduced to the size shown on the page."""
    x0, y0, x1, y1 = mask.boxes[0].tolist()
    margin = max(12, (max(x1 - x0, y1 - y0) + 1) // 2)
    rows = slice(max(0, y0 - margin), min(image.shape[1], y1 + margin))
    columns = slice(max(0, x0 - margin), min(image.shape[2], x1 + margin))
    crop, inside = image[:, rows, columns], mask.to_dense()[0, rows, columns]  # [3, h, w], [h, w]
    scale = max(1, _CROP_SIDE // max(crop.shape[1:]))
    if scale > 1:  # small crops are enlarged by an integer factor
        crop = crop.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        inside = inside.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    elif max(crop.shape[1:]) > _CROP_SIDE:
        crop = resize_image(crop.contiguous(), _CROP_SIDE)
        inside = PackedMasks.from_dense(inside[None]).resize((crop.shape[1], crop.shape[2])).to_dense()[0]
    outline = PackedMasks.from_dense(inside[None]).boundary().to_dense()  # [1, h, w]
    outline = F.max_pool2d(outline.float(), 3, stride=1, padding=1)[0] > 0  # three pixels wide
    crop = crop.clone()
    crop[:, outline] = _OUTLINE[:, None]
    return crop


def run_names(paths: Sequence[Path]) -> list[str]:
    """A short name per path: its last part, with the parent folder where two would be equal."""
    short = [path.stem if path.is_file() else path.name for path in paths]
    return [
        name if short.count(name) == 1 else f"{path.resolve().parent.name}/{name}"
        for path, name in zip(paths, short, strict=True)
    ]
