# SPDX-License-Identifier: Apache-2.0
"""Candidates from the merge trees of a photo's basins: trees, statistics of their nodes, scores, duplicates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.labels.basins import Basins, by_color
from sohes.labels.candidates import Candidates, best_candidates, geometric_mean, has_allowed_area, num_drawn
from sohes.ops.merge_borders import merge_borders
from sohes.ops.merge_tree import MergeTree

# Exponents of the score's factors, measured on photos: contrast, rank, area, roundness, stability, inside, variety,
# sibling. [ours]
_EXPONENTS = (2.0, 1.2, 0.25, 0.5, 0.4, 0.6, 0.4, 0.4)
# The factor variety is (1 + variance of Lab / _VARIETY) / _VARIETY, at most 1. [ours]
_VARIETY = 100.0
# Exponent of sizes that makes merging by distance alone Ward's criterion.
_WARD = 0.5


def find_basin_candidates(basins: Basins, photo_size: tuple[int, int], config: ExploreConfig) -> list[Candidates]:
    """The best nodes of every merge tree of the basins, at most `num_drawn` in all trees together.

    Up to three trees: by a network's features (`has_feature_tree`), by colours and borders, by colours alone (Ward).
    """
    settings = []  # basins, border weight, size exponent, weight of the scores
    if has_feature_tree(config):
        settings.append((basins, config.feature_border_weight, config.size_exponent, config.feature_weight))
        basins = by_color(basins, config)
    settings.append((basins, config.border_weight, config.size_exponent, 1.0))
    if config.ward_weight > 0:
        settings.append((basins, 0.0, _WARD, config.ward_weight))
    found = [_best_nodes(*setting, photo_size, config) for setting in settings]
    scores = torch.cat([part.scores for part in found])
    limit = num_drawn(config)
    if len(scores) <= limit:
        return found
    worst = scores.sort(descending=True).values[limit]
    return [Candidates(part.tree, part.ids[part.scores > worst], part.scores[part.scores > worst]) for part in found]


def has_feature_tree(config: ExploreConfig) -> bool:
    """Whether a ViT's features have a merge tree of their own, beside those of colours."""
    return config.features != "descriptor" and config.color_trees


def grow_tree(basins: Basins, border_weight: float, size_exponent: float) -> tuple[MergeTree, Tensor]:
    """The merge tree of a photo's basins, and the border each merge removed, float32 [M, 2]; see `merge_borders`."""
    return merge_borders(
        basins.means,
        basins.sizes,
        basins.edges,
        basins.borders,
        border_weight=border_weight,
        size_exponent=size_exponent,
    )


def _best_nodes(
    basins: Basins,
    border_weight: float,
    size_exponent: float,
    weight: float,
    photo_size: tuple[int, int],
    config: ExploreConfig,
) -> Candidates:
    """The best nodes of one tree of the basins; `weight` scales their scores."""
    tree, shared = grow_tree(basins, border_weight, size_exponent)
    size = (basins.labels.shape[0], basins.labels.shape[1])
    scores = weight * score_nodes(tree, shared, basins)
    ids = np.flatnonzero(has_allowed_area(tree.areas.numpy(), size, photo_size, config))
    return best_candidates(tree, ids, scores, config)


def score_nodes(tree: MergeTree, shared: Tensor, basins: Basins) -> np.ndarray:
    """Score in (0, 1] of every node, float64 [R]: a weighted geometric mean of these factors, each in 0..1.

    - contrast: mean edge strength along the border.
    - rank: 1 - log(regions left when the node was merged into its parent) / log(all).
    - area: as a share of the image.
    - roundness: 4 pi area / perimeter^2, low for thin regions.
    - stability: 1 - cost of the merge that made the node / cost of the merge that ended it.
    - inside: the share of the perimeter that is not the edge of the image.
    - variety: variance of Lab inside the node, so that parts can differ.
    - sibling: area of the sibling as a share of the parent's: low where the sibling is a speck of the node.
    """
    num_leaves = tree.num_leaves
    length, strength = border_sums(tree, shared, basins)  # [R], [R]
    frame = _sum_over_nodes(tree, _frame_sides(basins.labels))  # [R]
    pixels = tree.areas.numpy()
    highest = np.maximum.accumulate(-tree.similarity.double().numpy())  # [M], as costs may fall again
    parents = tree.parents.numpy()
    has_parent = parents >= 0
    born, died = np.zeros(tree.num_nodes), np.full(tree.num_nodes, highest[-1] if len(highest) else 1.0)
    born[num_leaves:] = highest
    died[has_parent] = highest[parents[has_parent] - num_leaves]
    left = np.ones(tree.num_nodes)  # regions in the image after the merge that ended the node
    left[has_parent] = 2 * num_leaves - 1 - parents[has_parent]

    sibling = np.where(has_parent, pixels[parents] - pixels, 0)  # [R], pixels of the sibling
    colors = basins.colors.numpy() * basins.sizes.numpy()[:, None]  # [N, 4]
    *lab, squared = (_sum_over_nodes(tree, channel) / pixels for channel in colors.T)
    variance = np.maximum(squared - sum(mean**2 for mean in lab), 0)  # of Lab inside the node

    perimeter = np.maximum(length + frame, 1)
    factors = (
        strength / np.maximum(length, 1),
        1 - np.log(left) / np.log(num_leaves + 1),
        pixels / basins.labels.numel(),
        4 * np.pi * pixels / perimeter**2,
        1 - born / np.maximum(died, 1e-9),
        1 - frame / perimeter,
        (1 + variance / _VARIETY) / _VARIETY,
        sibling / (sibling + pixels),
    )
    return geometric_mean(factors, _EXPONENTS)


def border_sums(tree: MergeTree, shared: Tensor, basins: Basins) -> tuple[np.ndarray, np.ndarray]:
    """Length of every node's border inside the image, and edge strength summed along it; float64 [R] each.

    The sum of the borders of the leaves inside, minus twice those between two of them: the borders that the merges
    below the node removed.
    """
    starts, counts, _ = (array.numpy() for array in tree.intervals)
    separator = starts[tree.merges.numpy()].max(1)  # [M], where the right child begins: inside no node below the merge
    sums = []
    for column in (0, 1):
        weights = basins.borders[:, column].numpy()
        a, b = (np.bincount(basins.edges[:, side], weights, tree.num_leaves) for side in (0, 1))
        inner = np.bincount(separator, shared[:, column].numpy(), tree.num_leaves)
        below = np.concatenate([[0.0], np.cumsum(inner)])
        sums.append(_sum_over_nodes(tree, a + b) - 2 * (below[starts + counts] - below[starts + 1]))
    return np.maximum(sums[0], 0), np.maximum(sums[1], 0)


def _sum_over_nodes(tree: MergeTree, leaves: np.ndarray) -> np.ndarray:
    """Sum over each node of a value of the leaves [N], float64 [R]."""
    starts, counts, order = (array.numpy() for array in tree.intervals)
    total = np.concatenate([[0.0], np.cumsum(leaves[order])])
    return total[starts + counts] - total[starts]


def _frame_sides(labels: Tensor) -> np.ndarray:
    """Pixel sides of each basin on the edge of the image, float64 [N]."""
    frame = torch.cat([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return torch.bincount(frame, minlength=int(labels.max()) + 1).double().numpy()
