# SPDX-License-Identifier: Apache-2.0
"""Candidates as pixels: drawing, filters, duplicates, and the forest of one photo."""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.config import ExploreConfig
from sohes.forest import Forest, build_forest
from sohes.labels.candidates import Candidates, area_limits
from sohes.masks import PackedMasks, nms_masks
from sohes.ops.merge_tree import MergeTree

# Masks that exist unpacked at a time, so that memory does not grow with their number.
_CHUNK = 32
# Filters and duplicates take some of the drawn masks away: this many times max_masks are drawn.
_SPARE = 1.5


def draw_nodes(tree: MergeTree, ids: Tensor, patches: Tensor) -> PackedMasks:
    """Masks of tree nodes ids [n] at the size of patches int64 [H, W], which names the patch of every pixel."""
    size = (patches.shape[0], patches.shape[1])
    columns = patches.T.contiguous()  # [W, H]: the order of packed masks
    parts = [PackedMasks.empty(size)]
    for chunk in ids.split(_CHUNK):
        leaves = tree.node_masks(chunk).flatten(1)  # [n, h*w]
        parts.append(PackedMasks.from_dense(leaves[:, columns].transpose(1, 2)))
    return PackedMasks.cat(parts)


def draw_candidates(
    tree: MergeTree, candidates: Candidates, patches: Tensor, config: ExploreConfig
) -> tuple[PackedMasks, Tensor]:
    """Masks of the best candidates and their scores float32 [N], best first: filled, filtered, without duplicates."""
    best = slice(0, int(config.max_masks * _SPARE) + 1)
    masks = draw_nodes(tree, candidates.ids[best], patches).fill_holes()
    scores = candidates.scores[best]
    smallest, largest = area_limits(masks.size, config)
    legal = (masks.areas >= smallest) & (masks.areas <= largest) & (masks.num_corners() <= config.max_corners)
    masks, scores = masks[legal], scores[legal]
    kept = nms_masks(masks, config.nms_iou, scores)[: config.max_masks]
    return masks[kept], scores[kept]


def make_forest(masks: PackedMasks, scores: Tensor, config: ExploreConfig) -> Forest:
    """Masks with their parents by coverage."""
    return Forest(masks, scores.to(torch.float32), build_forest(masks, config.theta_cover))
