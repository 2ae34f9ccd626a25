# SPDX-License-Identifier: Apache-2.0
"""Candidates as pixels: drawing, filters, duplicates, and the forest of one photo."""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.labels.candidates import Candidates, area_limits, num_drawn
from sohes.ops.merge_tree import MergeTree
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, nms_masks

# Pixels written at a time when masks are drawn: bounds memory, whatever the number of masks.
_CHUNK = 1 << 22


def draw_nodes(tree: MergeTree, ids: Tensor, leaves: Tensor) -> PackedMasks:
    """Masks of tree nodes ids [n] at the size of leaves int64 [H, W], which names the leaf of every pixel.

    With pixels in the tree's depth-first order every node is one slice of them: the work is the masks' total area.
    """
    size = (leaves.shape[0], leaves.shape[1])
    starts, counts, order = (array.long() for array in tree.intervals)
    position = torch.empty_like(order).index_copy_(
        0, order, torch.arange(len(order), device=order.device)
    )  # [N], of each leaf
    rank, bits = position[leaves.T.flatten()].sort(stable=True)  # [H*W]: bits of packed masks, column by column
    begin = torch.searchsorted(rank, torch.arange(tree.num_leaves + 1, device=rank.device))  # [N + 1]
    first, last = begin[starts[ids]], begin[starts[ids] + counts[ids]]  # [n]
    masks = PackedMasks.empty(size, leaves.device)
    words = masks.words.new_zeros((len(ids), masks.words.shape[1]))  # [n, V]
    chunks = ((last - first).cumsum(0) // _CHUNK).tolist()
    for chunk in sorted(set(chunks)):
        chosen = [i for i, of in enumerate(chunks) if of == chunk]
        inside = torch.cat([bits[first[i] : last[i]] for i in chosen])
        owner = torch.repeat_interleave(torch.tensor(chosen, device=first.device), (last - first)[chosen])
        # Every bit is added once, so that adding is setting it.
        words.view(-1).index_add_(0, owner * words.shape[1] + inside // 64, torch.ones_like(inside) << (inside % 64))
    return PackedMasks(words, size)


def draw_candidates(
    tree: MergeTree, candidates: Candidates, patches: Tensor, photo_size: tuple[int, int], config: ExploreConfig
) -> tuple[PackedMasks, Tensor]:
    """Masks of the best candidates and their scores float32 [N], best first: filled, filtered, without duplicates."""
    best = slice(0, num_drawn(config))
    return select_masks(draw_nodes(tree, candidates.ids[best], patches), candidates.scores[best], photo_size, config)


def select_masks(
    masks: PackedMasks, scores: Tensor, photo_size: tuple[int, int], config: ExploreConfig
) -> tuple[PackedMasks, Tensor]:
    """Masks with holes filled, of legal size and corners, without duplicates: the best `max_masks`, best first.

    The masks may be smaller than the photo, whose size decides which are legal.
    """
    masks = masks.fill_holes()
    smallest, largest = area_limits(photo_size, config)
    areas = masks.areas * (photo_size[0] * photo_size[1] / (masks.size[0] * masks.size[1]))
    legal = (areas >= smallest) & (areas <= largest) & (masks.num_corners() <= config.max_corners)
    masks, scores = masks[legal], scores[legal]
    kept = nms_masks(masks, config.nms_iou, scores)[: config.max_masks]
    return masks[kept], scores[kept]


def make_forest(masks: PackedMasks, scores: Tensor, config: ExploreConfig) -> Forest:
    """Masks with their parents by coverage."""
    return Forest(masks, scores.to(torch.float32), build_forest(masks, config.theta_cover))
