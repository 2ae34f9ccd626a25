# SPDX-License-Identifier: Apache-2.0
"""Candidates drawn as masks, the selection of masks (area, corners, duplicates), and their forest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.labels.candidates import Candidates, area_limits
from sohes.ops.merge_tree import MergeTree
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, Size, nms_masks


class ScoredMasks(NamedTuple):
    """N masks of one image.

    scores: float32 [N] in (0, 1]. votes: float32 [N], the share of looks at the photo that have a mask like this one;
    None with one look.
    """

    masks: PackedMasks
    scores: Tensor
    votes: Tensor | None = None

    def take(self, index: Tensor) -> ScoredMasks:
        """Some of the masks, by indices or a bool for each."""
        return ScoredMasks(self.masks[index], self.scores[index], None if self.votes is None else self.votes[index])

    def fill_holes(self) -> ScoredMasks:
        """The same masks without holes."""
        return self._replace(masks=self.masks.fill_holes())

    def resize(self, size: Size) -> ScoredMasks:
        """The same masks at another size (H, W)."""
        return self if self.masks.size == size else self._replace(masks=self.masks.resize(size))


def draw_nodes(tree: MergeTree, ids: Tensor, leaves: Tensor) -> PackedMasks:
    """Masks of the nodes `ids` [n] of a tree, at the size of `leaves` int64 [H, W], the leaf of every pixel."""
    orders, nodes = node_table([tree], [ids])
    return PackedMasks.from_nodes(leaves, orders.to(leaves.device), nodes.to(leaves.device))


def draw_candidates(candidates: Sequence[Candidates], leaves: Tensor) -> ScoredMasks:
    """Masks of the candidates of all trees, holes filled, at the size of `leaves` int64 [H, W] (`draw_nodes`)."""
    orders, nodes = node_table([one.tree for one in candidates], [one.ids for one in candidates])
    masks = PackedMasks.from_nodes(leaves, orders.to(leaves.device), nodes.to(leaves.device), fill_holes=True)
    return ScoredMasks(masks, torch.cat([one.scores for one in candidates]))


def node_table(trees: Sequence[MergeTree], ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Orders int64 [T, L] and nodes int64 [N, 3] of `mask_from_nodes`: nodes ids[k] of trees[k], one tree after the
    other."""
    orders, nodes = [], []
    for index, (tree, chosen) in enumerate(zip(trees, ids, strict=True)):
        starts, counts, order = (array.long() for array in tree.intervals)  # [R], [R], [L]
        own = chosen.to(starts.device)
        orders.append(order)
        nodes.append(torch.stack([torch.full_like(own, index), starts[own], starts[own] + counts[own]], dim=1))
    return torch.stack(orders), torch.cat(nodes)


def select_masks(found: ScoredMasks, photo_size: Size, config: ExploreConfig) -> ScoredMasks:
    """The best `max_masks` masks, best first: of allowed area and corners, without duplicates.

    The masks have no holes (`PackedMasks.fill_holes`). They may be smaller than the photo; area limits are those of the
    photo.
    """
    smallest, largest = area_limits(photo_size, config)
    masks = found.masks
    areas = masks.areas * (photo_size[0] * photo_size[1] / (masks.size[0] * masks.size[1]))
    is_allowed = (areas >= smallest) & (areas <= largest) & (masks.num_corners() <= config.max_corners)
    return found.take(nms_masks(masks, config.nms_iou, found.scores, among=is_allowed)[: config.max_masks])


def make_forest(found: ScoredMasks, config: ExploreConfig) -> Forest:
    """The forest of masks: the parent of each is the smallest mask that covers `theta_cover` of it."""
    parents = build_forest(found.masks, config.theta_cover)
    return Forest(found.masks, found.scores.to(torch.float32), parents, found.votes)
