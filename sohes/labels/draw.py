# SPDX-License-Identifier: Apache-2.0
"""Candidates drawn as masks, the selection of masks (holes, area, corners, duplicates), and their forest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.labels.candidates import Candidates, area_limits
from sohes.ops.merge_tree import MergeTree
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, nms_masks

# Pixels written at a time when masks are drawn, which bounds the memory for any number of masks.
_CHUNK = 1 << 22


class ScoredMasks(NamedTuple):
    """N masks of one image and their scores in (0, 1], float32 [N]."""

    masks: PackedMasks
    scores: Tensor


def draw_nodes(tree: MergeTree, ids: Tensor, leaves: Tensor) -> PackedMasks:
    """Masks of the nodes `ids` [n] of a tree, at the size of `leaves` int64 [H, W], the leaf of every pixel.

    With the pixels in the tree's depth-first order every node is one slice, so the cost is the total area of the masks.
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
        # Every bit is added once, which sets it.
        words.view(-1).index_add_(0, owner * words.shape[1] + inside // 64, torch.ones_like(inside) << (inside % 64))
    return PackedMasks(words, size)


def draw_candidates(candidates: Sequence[Candidates], leaves: Tensor) -> ScoredMasks:
    """Masks of the candidates of all trees, at the size of `leaves` int64 [H, W], the leaf of every pixel."""
    masks = PackedMasks.cat([draw_nodes(one.tree, one.ids, leaves) for one in candidates])
    return ScoredMasks(masks, torch.cat([one.scores for one in candidates]))


def select_masks(masks: PackedMasks, scores: Tensor, photo_size: tuple[int, int], config: ExploreConfig) -> ScoredMasks:
    """The best `max_masks` masks, best first: holes filled, of allowed area and corners, without duplicates.

    The masks may be smaller than the photo; area limits are those of the photo.
    """
    masks = masks.fill_holes()
    smallest, largest = area_limits(photo_size, config)
    areas = masks.areas * (photo_size[0] * photo_size[1] / (masks.size[0] * masks.size[1]))
    is_allowed = (areas >= smallest) & (areas <= largest) & (masks.num_corners() <= config.max_corners)
    masks, scores = masks[is_allowed], scores[is_allowed]
    kept = nms_masks(masks, config.nms_iou, scores)[: config.max_masks]
    return ScoredMasks(masks[kept], scores[kept])


def make_forest(masks: PackedMasks, scores: Tensor, config: ExploreConfig) -> Forest:
    """The forest of masks: the parent of each is the smallest mask that covers `theta_cover` of it."""
    return Forest(masks, scores.to(torch.float32), build_forest(masks, config.theta_cover))
