# SPDX-License-Identifier: Apache-2.0
"""Candidates from the merge tree of a photo's patches: thresholds, area limits, scores, duplicates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sohes.configs.run import ExploreConfig
from sohes.labels.candidates import Candidates, best_candidates, geometric_mean, has_allowed_area
from sohes.labels.node_statistics import NodeStatistics, node_statistics
from sohes.labels.view import View
from sohes.ops.merge_tree import MergeTree

# Lab difference between patches at which an edge has half its full strength. [ours]
_EDGE_SOFTNESS = 10.0
# Exponents of the score's factors contrast, separation, share of the image and roundness, measured on photos. [ours]
_EXPONENTS = (1.0, 1.0, 0.4, 0.5)


def find_patch_candidates(tree: MergeTree, view: View, config: ExploreConfig) -> Candidates:
    """The best nodes of a merge tree of patches: alive at a threshold, of allowed area, without duplicates.

    Equal scores are ordered by id, the lower first.
    """
    tree = replace(tree, leaf_sizes=view.patch_sizes.cpu())  # areas in pixels of the view
    areas = tree.areas.numpy()  # [R]
    size = (view.lab.shape[1], view.lab.shape[2])
    if config.cuts == "adaptive" and config.num_cuts == 0:
        ids = np.arange(tree.num_nodes)
    else:
        ids = tree.candidates(cut_thresholds(tree, config)).numpy()
    ids = ids[has_allowed_area(areas[ids], size, view.photo_size, config)]
    scores = node_scores(node_statistics(tree, view.pool(view.lab), _EDGE_SOFTNESS), areas / (size[0] * size[1]))
    return best_candidates(tree, ids, scores, config)


def cut_thresholds(tree: MergeTree, config: ExploreConfig) -> list[float]:
    """The similarities at which the regions alive become candidates.

    Adaptive thresholds are quantiles of the tree's own similarities, so that they suit any backbone: the numbers of
    regions left are evenly spaced on a logarithmic scale between 1 and the number of patches.
    """
    if config.cuts == "fixed":
        return list(config.thresholds)
    if len(tree.merges) == 0 or config.num_cuts == 0:
        return []
    # A threshold is compared with the running minimum, as similarities may rise again.
    lowest = np.minimum.accumulate(tree.similarity.numpy())
    regions = np.geomspace(2, tree.num_leaves, config.num_cuts)
    return np.unique(lowest[(tree.num_leaves - regions).round().astype(int)]).tolist()


def node_scores(statistics: NodeStatistics, share: np.ndarray) -> np.ndarray:
    """Score in (0, 1] of every node, float64 [R]; `share` [R] is the node's area divided by the image's.

    A weighted geometric mean of: contrast along the border, dissimilarity to the region it was merged with, area, and
    roundness (4 * patches / border^2, at most 1/4 for a region away from the image's border).
    """
    roundness = (4 * statistics.counts / np.maximum(statistics.border, 4) ** 2).clip(0, 1)
    factors = (statistics.contrast, statistics.separation, share, roundness)
    return geometric_mean(factors, _EXPONENTS)
