# SPDX-License-Identifier: Apache-2.0
"""Masks of several looks at a photo, joined into one ranked set: the consensus.

Every mask of every look is a guess at an entity. Its worth grows with its score and with the share of looks that have a
mask like it, and falls with every side of the image that it touches, where an entity may be cut. The set that is wanted
covers as much of this worth as possible with its first 10, 100 and 1000 masks. A mask covers another to the degree
q(IoU): the share of COCO's ten IoU thresholds 0.50, 0.55 .. 0.95 that the pair reaches. So with worth as the chance
that a mask is an entity, the worth covered by the first k masks is their expected recall, AR@k. It is a
facility-location function, whose greedy maximization gives one order for all k, at least (1 - 1/e) of the best for each
(Nemhauser, Wolsey and Fisher, 1978). [ours]

The order needs no suppression: a near-duplicate of a chosen mask covers little that is new. It chooses the mask in the
middle of many similar ones, not the best-scored one, and masks of different looks support each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.labels.draw import ScoredMasks
from sohes.labels.looks import LOOKS
from sohes.ops import facility_location, mask_pairs
from sohes.structures.masks import PackedMasks, Size, nms_masks

# COCO's IoU thresholds are _FIRST, _FIRST + 0.05, .. 0.95; a lower IoU covers nothing.
_FIRST, _STEP, _NUM_THRESHOLDS = 0.5, 0.05, 10
# Exponents of the score: in the worth of a mask to be covered, and in the preference of a mask to be chosen. [ours]
_WORTH, _CHOICE = 8.0, 2.0
# Factor on the worth for each of the four sides of the image that a mask touches. [ours]
_CUT = 0.75
# Near-duplicates are dropped at the end, so more masks are ordered than are kept.
_SPARE = 1.2
# Overlaps are measured at half size in images above this many pixels squared.
_SMALL = 256
# Exponent of a look's scale in the preference: outlines from a small look are coarse. [ours]
_SHARPNESS = 0.4


def join_looks(found: Sequence[ScoredMasks], config: ExploreConfig) -> ScoredMasks:
    """The consensus of the looks of `config.looks`, at most `max_masks` masks, best first.

    found: the masks of each look, without duplicates. The result has the size of the largest look.

    Scores are in (0, 1] and fall: the worth newly covered per look, brought back to the scale of the looks' scores. The
    votes of a mask are the share of looks with a mask of at least `vote_iou` with it, its own look included.
    """
    size = max((one.masks.size for one in found), key=prod)
    small = _reduced_size(size)
    reduced = PackedMasks.cat([one.masks.resize(small) for one in found])
    scores = torch.cat([one.scores for one in found]).double()  # [N]
    counts = torch.tensor([len(one.masks) for one in found], device="cpu")
    look = torch.repeat_interleave(torch.arange(len(found), device="cpu"), counts)  # [N]
    scale = torch.tensor([LOOKS[name].scale for name in config.looks], dtype=torch.float64, device="cpu")[look]  # [N]
    pairs, iou = mask_pairs(reduced, _FIRST)  # [E, 2], [E]
    votes = share_of_looks(pairs[iou >= config.vote_iou], look, len(found))  # [N]
    worth = scores**_WORTH * votes * _CUT ** num_sides(reduced)
    preference = scores**_CHOICE * scale**_SHARPNESS
    covered = ((iou - _FIRST) / _STEP + 1).div(_NUM_THRESHOLDS).clamp(0, 1)  # [E]
    num = int(config.max_masks * _SPARE) + 1
    order, gains = facility_location(pairs, covered, worth.float(), preference.float(), num)
    scores = (gains / len(found)).clamp(1e-30, 1) ** (1 / (_WORTH + _CHOICE))
    ranked = ScoredMasks(_gather([one.masks for one in found], order, size), scores, votes[order].float())
    return ranked.take(nms_masks(ranked.masks, config.nms_iou, scores)[: config.max_masks])


def _gather(sets: Sequence[PackedMasks], order: Tensor, size: Size) -> PackedMasks:
    """Masks of several sets, resized: those at places `order` of all sets one after the other."""
    first, chosen, places = 0, [], []
    for masks in sets:
        place = ((order >= first) & (order < first + len(masks))).nonzero()[:, 0]
        chosen.append(masks[order[place] - first].resize(size))
        places.append(place)
        first += len(masks)
    return PackedMasks.cat(chosen)[torch.cat(places).argsort()]


def share_of_looks(pairs: Tensor, look: Tensor, num_looks: int) -> Tensor:
    """Share of the looks that have a mask like each mask, float64 [N] in (0, 1].

    pairs: int64 [E, 2], masks that are alike. look: int64 [N], the look of each mask.
    """
    agrees = torch.zeros((len(look), num_looks), dtype=torch.bool, device=look.device)
    agrees[torch.arange(len(look), device=look.device), look] = True
    for one, other in (pairs.unbind(1), pairs.flip(1).unbind(1)):
        agrees[one, look[other]] = True
    return agrees.double().mean(1)


def num_sides(masks: PackedMasks) -> Tensor:
    """Number of sides of the image that each mask touches, within a pixel; int64 [N]."""
    height, width = masks.size
    x0, y0, x1, y1 = masks.boxes.unbind(1)  # [N] each
    return torch.stack([x0 <= 1, y0 <= 1, x1 >= width - 1, y1 >= height - 1]).sum(0)


def _reduced_size(size: Size) -> Size:
    """The size at which overlaps are measured: half of (H, W), a quarter of the bits, unless that is small already."""
    height, width = size
    return (height // 2, width // 2) if height * width > _SMALL**2 else size
