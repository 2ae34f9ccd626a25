# SPDX-License-Identifier: Apache-2.0
"""A second, closer look at small candidates: crops of the photo at its full resolution, enlarged and clustered again.

Masks found in a crop join those of the photo when nearly all of them lies inside the candidate that the crop was made
for: they are its parts, or itself with a finer outline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.configs.run import ExploreConfig
from sohes.labels.view import fit_area
from sohes.structures.masks import PackedMasks, mask_coverage

Cluster = Callable[[Sequence[Tensor], ExploreConfig], list[tuple[PackedMasks, Tensor]]]


@dataclass(frozen=True, eq=False)
class Crop:
    """box: (y0, x0, y1, x1) in pixels of the photo. image: uint8 [3, h, w], enlarged. index: of the candidate."""

    box: tuple[int, int, int, int]
    image: Tensor
    index: int


def look_closer(
    images: Sequence[Tensor], found: Sequence[tuple[PackedMasks, Tensor]], cluster: Cluster, config: ExploreConfig
) -> list[tuple[PackedMasks, Tensor]]:
    """Masks and scores of each photo, joined by those of the crops of its small candidates.

    images: uint8 [3, H, W] each. found: masks of the photo's size and their scores, best first, of each. cluster: masks
    and scores of each of several images, which are the crops of all photos at once. The best mask of a crop
    scores what its candidate does, others less.
    """
    crops = [make_crops(image, masks, config) for image, (masks, _) in zip(images, found, strict=True)]
    inner = replace(config, max_masks=config.local_masks, min_area=config.min_area * config.local_min_area)
    clustered = iter(cluster([crop.image for own in crops for crop in own], inner))
    return [_join(masks, scores, own, clustered, config) for (masks, scores), own in zip(found, crops, strict=True)]


def _join(
    masks: PackedMasks,
    scores: Tensor,
    crops: Sequence[Crop],
    clustered: Iterator[tuple[PackedMasks, Tensor]],
    config: ExploreConfig,
) -> tuple[PackedMasks, Tensor]:
    """Masks of one photo, and what was found in its crops: the next ones of `clustered`."""
    parts, part_scores = [masks], [scores]
    for crop, (inner, inner_scores) in zip(crops, islice(clustered, len(crops)), strict=True):
        y0, x0, y1, x1 = crop.box
        dense = inner.resize((y1 - y0, x1 - x0)).to_dense()  # [n, h, w]
        placed = PackedMasks.from_dense(F.pad(dense, (x0, masks.size[1] - x1, y0, masks.size[0] - y1)))
        inside = mask_coverage(placed, masks[crop.index : crop.index + 1])[:, 0] >= config.local_cover
        parts.append(placed[inside])
        # Scores of different images are not of one scale: what counts is the rank among the crop's own.
        share = inner_scores / inner_scores.max() if len(inner_scores) else inner_scores
        part_scores.append(share[inside] * scores[crop.index])
    return PackedMasks.cat(parts), torch.cat(part_scores)


def make_crops(image: Tensor, masks: PackedMasks, config: ExploreConfig) -> list[Crop]:
    """Crops around the best small candidates: smaller than `theta_small`, large enough to have parts.

    A candidate whose box lies in a crop that is made already is looked at there: it gets none of its own.
    """
    height, width = masks.size
    small = (masks.areas < config.theta_small * height * width) & (masks.areas >= 4 * config.min_pixels)
    boxes, crops = masks.boxes.tolist(), []
    for index in small.nonzero()[:, 0].tolist():
        if len(crops) == config.local_regions:
            break
        x0, y0, x1, y1 = boxes[index]
        if any(c.box[0] <= y0 and c.box[1] <= x0 and y1 <= c.box[2] and x1 <= c.box[3] for c in crops):
            continue
        margin = round(config.local_margin * max(x1 - x0, y1 - y0)) + 1
        y0, x0 = max(0, y0 - margin), max(0, x0 - margin)
        y1, x1 = min(height, y1 + margin), min(width, x1 + margin)
        size = fit_area((y1 - y0, x1 - x0), config.local_side**2, 1, enlarge=True)
        pixels = F.interpolate(image[None, :, y0:y1, x0:x1].float(), size, mode="bilinear", antialias=True)[0]
        crops.append(Crop((y0, x0, y1, x1), pixels.round().clamp(0, 255).byte(), index))
    return crops
