# SPDX-License-Identifier: Apache-2.0
"""Local re-clustering: crops around small masks, cut from the full-resolution photo, enlarged and clustered again.

A mask found in a crop is added to those of the photo if nearly all of it lies inside the mask that the crop was made
for: it is a part of that mask, or the same entity with a finer outline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.configs.run import ExploreConfig
from sohes.labels.draw import ScoredMasks
from sohes.labels.view import fit_area
from sohes.structures.masks import PackedMasks, mask_coverage

FindMasks = Callable[[Sequence[Tensor], ExploreConfig], list[ScoredMasks]]
"""Images uint8 [3, h, w] -> the masks of each at any size, best first."""


@dataclass(frozen=True, eq=False)
class Crop:
    """A crop around one mask. box: (y0, x0, y1, x1) in pixels of the photo. image: uint8 [3, h, w], enlarged. index: of
    the mask."""

    box: tuple[int, int, int, int]
    image: Tensor
    index: int


def recluster_small_masks(
    images: Sequence[Tensor], found: Sequence[ScoredMasks], find_masks: FindMasks, config: ExploreConfig
) -> list[ScoredMasks]:
    """The masks of each photo, followed by those found in the crops around its small masks.

    Args:
        images: uint8 [3, H, W] each.
        found: masks of each photo at its size, best first.
        find_masks: called once, with the crops of all photos.
    """
    crops = [make_crops(image, one.masks, config) for image, one in zip(images, found, strict=True)]
    crop_config = replace(
        config, looks=("full",), max_masks=config.local_masks, min_area=config.min_area * config.local_min_area
    )
    found_in_crops = iter(find_masks([crop.image for own in crops for crop in own], crop_config))
    return [
        _add_crops(one, own, list(islice(found_in_crops, len(own))), config)
        for one, own in zip(found, crops, strict=True)
    ]


def _add_crops(
    found: ScoredMasks, crops: Sequence[Crop], found_in_crops: Sequence[ScoredMasks], config: ExploreConfig
) -> ScoredMasks:
    """The masks of one photo, followed by those of its crops that lie inside the mask of their crop.

    Scores of different images are not comparable. So the best mask of a crop gets the score of the crop's mask, and the
    others less, in proportion to their own scores.
    """
    masks, scores, votes = found
    all_masks, all_scores = [masks], [scores]
    for crop, (crop_masks, crop_scores, _) in zip(crops, found_in_crops, strict=True):
        y0, x0, y1, x1 = crop.box
        dense = crop_masks.resize((y1 - y0, x1 - x0)).to_dense()  # [n, h, w]
        placed = PackedMasks.from_dense(F.pad(dense, (x0, masks.size[1] - x1, y0, masks.size[0] - y1)))
        is_inside = mask_coverage(placed, masks[crop.index : crop.index + 1])[:, 0] >= config.local_cover
        all_masks.append(placed[is_inside])
        share = crop_scores / crop_scores.max() if len(crop_scores) else crop_scores
        all_scores.append(share[is_inside] * scores[crop.index])
    joined = torch.cat(all_scores)
    if votes is not None:  # crops are looked at once
        votes = torch.cat([votes, votes.new_full((len(joined) - len(votes),), 1 / len(config.looks))])
    return ScoredMasks(PackedMasks.cat(all_masks), joined, votes)


def make_crops(image: Tensor, masks: PackedMasks, config: ExploreConfig) -> list[Crop]:
    """Crops around the best small masks: smaller than `theta_small` of the photo, but large enough to have parts.

    A mask whose box lies inside an earlier crop gets none of its own.
    """
    height, width = masks.size
    small = (masks.areas < config.theta_small * height * width) & (masks.areas >= 4 * config.min_pixels)
    boxes = masks.boxes.tolist()
    crops: list[Crop] = []
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
