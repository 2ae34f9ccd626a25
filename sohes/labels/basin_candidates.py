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

# Exponents of the factors of the score: contrast, rank, area, roundness, stability, inside, variety, sibling. A mix of
# fits: three quarters to human masks of coco128_seg, a quarter to how well looks agree, without any (docs/results.md).
# [ours]
_EXPONENTS = (1.73, 1.48, 0.29, 0.83, 0.37, 0.5, 0.33, 0.31)
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
    leaves = sum_pixels(basins)
    found = [_best_nodes(*setting, leaves, photo_size, config) for setting in settings]
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
    leaves: np.ndarray,
    photo_size: tuple[int, int],
    config: ExploreConfig,
) -> Candidates:
    """The best nodes of one tree of the basins; `weight` scales their scores, `leaves` are of `sum_pixels`."""
    tree, shared = grow_tree(basins, border_weight, size_exponent)
    size = (basins.labels.shape[0], basins.labels.shape[1])
    ids = np.flatnonzero(has_allowed_area(tree.areas.numpy(), size, photo_size, config))
    scores = np.zeros(tree.num_nodes)
    scores[ids] = weight * score_nodes(tree, shared, leaves, ids)
    return best_candidates(tree, ids, scores, config)


def score_nodes(tree: MergeTree, shared: Tensor, leaves: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Score in (0, 1] of the nodes `ids` [n], float64 [n]: a weighted geometric mean of these factors, each in 0..1.

    - contrast: mean edge strength along the border.
    - rank: 1 - log(regions left when the node was merged into its parent) / log(all).
    - area: as a share of the image.
    - roundness: 4 pi area / perimeter^2, low for thin regions.
    - stability: 1 - cost of the merge that made the node / cost of the merge that ended it.
    - inside: the share of the perimeter that is not the edge of the image.
    - variety: variance of Lab inside the node, so that parts can differ.
    - sibling: area of the sibling as a share of the parent's: low where the sibling is a speck of the node.

    shared: float32 [M, 2], the border each merge removed. leaves: float64 [7, N], of `sum_pixels`.
    """
    num_leaves, areas = tree.num_leaves, tree.areas.numpy()
    length, strength, frame, *colors = sum_nodes(tree, shared, leaves, ids)  # [n] each
    pixels, parents = areas[ids], tree.parents.numpy()[ids]
    has_parent = parents >= 0
    highest = np.maximum.accumulate(-tree.similarity.double().numpy())  # [M], as costs may fall again
    cost = np.concatenate([np.zeros(num_leaves), highest])  # [R], of the merge that made each node
    born, died = cost[ids], np.where(has_parent, cost[parents], highest[-1] if len(highest) else 1.0)
    left = np.where(has_parent, 2 * num_leaves - 1 - parents, 1)  # regions after the merge that ended the node
    sibling = np.where(has_parent, areas[parents] - pixels, 0)  # pixels of the sibling
    *lab, squared = (channel / pixels for channel in colors)
    variance = np.maximum(squared - sum(mean**2 for mean in lab), 0)  # of Lab inside the node

    perimeter = np.maximum(length + frame, 1)
    factors = (
        strength / np.maximum(length, 1),
        1 - np.log(left) / np.log(num_leaves + 1),
        pixels / areas[:num_leaves].sum(),
        4 * np.pi * pixels / perimeter**2,
        1 - born / np.maximum(died, 1e-9),
        1 - frame / perimeter,
        (1 + variance / _VARIETY) / _VARIETY,
        sibling / (sibling + pixels),
    )
    return geometric_mean(factors, _EXPONENTS)


def sum_nodes(tree: MergeTree, shared: Tensor, leaves: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Sums over the pixels of the nodes `ids` [n], float64 [7, n], rows as in `sum_pixels`.

    The border of a node is the sum of the borders of the leaves inside, minus twice those between two of them: the
    borders that the merges below the node removed.
    """
    starts, counts, order = (array.numpy() for array in tree.intervals)
    first = starts[ids].astype(np.int64)
    last = first + counts[ids]
    separator = starts[tree.merges.numpy()].max(1)  # [M], where the right child begins: inside no node below the merge
    order = order.astype(np.int64)
    total = np.zeros(tree.num_leaves + 1)
    sums = np.empty((len(leaves), len(ids)))
    for row, values in zip(sums, leaves, strict=True):
        np.cumsum(values[order], out=total[1:])
        np.subtract(total[last], total[first], out=row)
    for row, removed in zip(sums[:2], shared.numpy().T, strict=True):
        np.cumsum(np.bincount(separator, removed, tree.num_leaves), out=total[1:])
        row -= 2 * (total[last] - total[first + 1])
    np.maximum(sums[:2], 0, out=sums[:2])
    return sums


def sum_pixels(basins: Basins) -> np.ndarray:
    """Sums over the pixels of every basin, float64 [7, N].

    The rows: length of its border inside the image, edge strength along it, pixel sides on the edge of the image, the
    three channels of Lab, and the squared length of Lab.
    """
    num_basins, labels = len(basins.sizes), basins.labels
    sides = basins.edges.T.flatten().numpy()  # [2E]
    borders = [np.bincount(sides, np.tile(values, 2), num_basins) for values in basins.borders.numpy().T]
    edge = torch.cat([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    frame = torch.bincount(edge, minlength=num_basins).numpy()
    return np.stack([*borders, frame, *(basins.colors * basins.sizes[:, None]).T.numpy()])
