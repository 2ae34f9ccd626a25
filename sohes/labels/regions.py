# SPDX-License-Identifier: Apache-2.0
"""From basins to scored masks: two merge trees, statistics of their nodes, a ranking, and drawing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.labels.basins import Basins, by_color, find_basins
from sohes.labels.candidates import area_limits, drop_nested_duplicates, num_drawn
from sohes.labels.draw import draw_nodes
from sohes.labels.features import FeatureExtractor
from sohes.ops.merge_borders import merge_borders
from sohes.ops.merge_regions import merge_regions
from sohes.ops.merge_tree import MergeTree
from sohes.structures.masks import PackedMasks

# Exponents of the score's factors, measured on photos: contrast, rank, area, roundness, stability, inside, variety,
# sibling. [ours]
_EXPONENTS = (2.0, 1.2, 0.25, 0.5, 0.4, 0.6, 0.4, 0.4)
# Variance of Lab that counts as one more shade; this many shades are the most that count. [ours]
_VARIETY = 100.0
# Exponent of sizes that makes merging by distance alone Ward's criterion.
_WARD = 0.5


@dataclass(frozen=True, eq=False)
class Regions:
    """Nodes worth drawing of one tree, best first. ids: int64 [n]. scores: float32 [n] in (0, 1]."""

    tree: MergeTree
    ids: Tensor
    scores: Tensor


def find_regions(basins: Basins, photo_size: tuple[int, int], config: ExploreConfig) -> list[Regions]:
    """The best nodes of all trees, a little more than can be kept; nested duplicates are left out."""
    settings = []
    if _has_own_tree(config):
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
    return [Regions(part.tree, part.ids[part.scores > worst], part.scores[part.scores > worst]) for part in found]


def grow_tree(basins: Basins, border_weight: float, size_exponent: float) -> tuple[MergeTree, Tensor]:
    """The tree of a photo's basins and the border of each merge, see `merge_borders`."""
    return merge_borders(
        basins.means,
        basins.sizes,
        basins.edges,
        basins.borders,
        border_weight=border_weight,
        size_exponent=size_exponent,
    )


def photo_tree(image: Tensor, extractor: FeatureExtractor) -> tuple[MergeTree, Tensor]:
    """The (first) merge tree of a photo uint8 [3, H, W], and the leaf of every pixel, int64 [H, W]."""
    config = extractor.config
    view = extractor.view(image)
    if config.start == "patches":
        return merge_regions(extractor([view]), schedule=config.schedule)[0], view.photo_patches()
    # Basins have colours of their own; only what a network knows has to be pooled into them.
    features = None if config.features == "descriptor" else extractor([view])[0]
    basins = find_basins(view, features, config)
    border_weight = config.feature_border_weight if _has_own_tree(config) else config.border_weight
    return grow_tree(basins, border_weight, config.size_exponent)[0], view.at_photo_size(basins.labels)


def _has_own_tree(config: ExploreConfig) -> bool:
    """Do a ViT's features make a tree of their own, beside those of colours?"""
    return config.features != "descriptor" and config.color_trees


def _best_nodes(
    basins: Basins,
    border_weight: float,
    size_exponent: float,
    weight: float,
    photo_size: tuple[int, int],
    config: ExploreConfig,
) -> Regions:
    tree, shared = grow_tree(basins, border_weight, size_exponent)
    pixels = tree.areas.numpy()
    smallest, largest = area_limits(photo_size, config)
    to_photo = photo_size[0] * photo_size[1] / basins.labels.numel()
    scores = weight * score_nodes(tree, shared, basins)
    ids = np.flatnonzero((pixels * to_photo >= smallest) & (pixels * to_photo <= largest))
    ids = ids[np.argsort(-scores[ids], kind="stable")]
    kept = drop_nested_duplicates(tree, ids, config.nms_iou, limit=num_drawn(config))
    return Regions(tree, torch.from_numpy(kept), torch.from_numpy(scores[kept].astype(np.float32)))


def score_nodes(tree: MergeTree, shared: Tensor, basins: Basins) -> np.ndarray:
    """Score in (0, 1] of every node, float64 [R]: a geometric mean of factors in 0..1.

    An entity has a strong border (contrast), is among the last to be swallowed (rank: 1 - the logarithm of the number
    of regions left then, relative to all), is not tiny, is round rather than thread-like, was made much more cheaply
    than it is swallowed (stability), is not mostly bounded by the edge of the image (inside), has more than one shade
    in it (variety), and was not swallowed by something far smaller, which would be a speck of it (sibling).
    """
    num_leaves = tree.num_leaves
    length, strength = border_sums(tree, shared, basins)  # [R], [R]
    frame = _sum_over_nodes(tree, _frame_sides(basins.labels))  # [R]
    pixels = tree.areas.numpy()
    highest = np.maximum.accumulate(-tree.similarity.double().numpy())  # [M]: costs need not rise
    parents = tree.parents.numpy()
    has_parent = parents >= 0
    born, died = np.zeros(tree.num_nodes), np.full(tree.num_nodes, highest[-1] if len(highest) else 1.0)
    born[num_leaves:] = highest
    died[has_parent] = highest[parents[has_parent] - num_leaves]
    left = np.ones(tree.num_nodes)  # regions in the image after the node was swallowed
    left[has_parent] = 2 * num_leaves - 1 - parents[has_parent]

    sibling = np.where(has_parent, pixels[parents] - pixels, 0)
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
    logarithm = sum(e * np.log(np.clip(f, 1e-3, 1)) for e, f in zip(_EXPONENTS, factors, strict=True))
    return np.exp(logarithm / sum(_EXPONENTS))


def border_sums(tree: MergeTree, shared: Tensor, basins: Basins) -> tuple[np.ndarray, np.ndarray]:
    """Length of every node's border inside the image, and edge strength summed along it; float64 [R] each.

    The borders of all leaves inside, minus twice what lies between two of them: the borders of the merges below.
    """
    starts, counts, _ = (array.numpy() for array in tree.intervals)
    separator = starts[tree.merges.numpy()].max(1)  # [M], where the right child begins: inside the merged node alone
    sums = []
    for column in (0, 1):
        ends = sum(
            np.bincount(basins.edges[:, side], basins.borders[:, column].numpy(), tree.num_leaves) for side in (0, 1)
        )
        inner = np.bincount(separator, shared[:, column].numpy(), tree.num_leaves)
        below = np.concatenate([[0.0], np.cumsum(inner)])
        sums.append(_sum_over_nodes(tree, ends) - 2 * (below[starts + counts] - below[starts + 1]))
    return np.maximum(sums[0], 0), np.maximum(sums[1], 0)


def _sum_over_nodes(tree: MergeTree, leaves: np.ndarray) -> np.ndarray:
    """Sums of a value of the leaves [N] over every node, float64 [R]."""
    starts, counts, order = (array.numpy() for array in tree.intervals)
    total = np.concatenate([[0.0], np.cumsum(leaves[order])])
    return total[starts + counts] - total[starts]


def _frame_sides(labels: Tensor) -> np.ndarray:
    """Pixel sides of each region on the edge of the image, float64 [N]."""
    frame = torch.cat([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return torch.bincount(frame, minlength=int(labels.max()) + 1).double().numpy()


def draw_regions(regions: list[Regions], labels: Tensor) -> tuple[PackedMasks, Tensor]:
    """Masks of the nodes of all trees at the size of labels int64 [H, W], and their scores float32 [n]."""
    masks = PackedMasks.cat([draw_nodes(part.tree, part.ids, labels) for part in regions])
    return masks, torch.cat([part.scores for part in regions])
