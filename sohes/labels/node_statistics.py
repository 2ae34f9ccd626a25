# SPDX-License-Identifier: Apache-2.0
"""Statistics of every node of a merge tree of patches, without drawing masks: size, border, contrast, separation.

In the depth-first layout of the tree a node is one interval of leaves, so a sum over it is a difference of two running
sums. The border of a node are the edges between neighbouring patches with one end inside: all edge ends inside minus
twice the edges with both ends inside. The latter are the edges whose lowest common ancestor is the node or lies below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sohes.ops.merge_tree import MergeTree
from sohes.ops.reference.merge_regions import grid_edges


@dataclass(frozen=True, eq=False)
class NodeStatistics:
    """One value per node; float64 [R] unless said otherwise.

    counts: number of patches, int64. border: number of edges to patches outside (the border of the image does not
    count). contrast: mean edge strength along the border, 0 without one. separation: 1 - similarity to the sibling it
    was merged with, in 0..1; 1 for the root.
    """

    counts: np.ndarray
    border: np.ndarray
    contrast: np.ndarray
    separation: np.ndarray


def node_statistics(tree: MergeTree, colors: Tensor, softness: float) -> NodeStatistics:
    """Statistics of all nodes.

    Args:
        tree: over a grid of patches, merged down to one region.
        colors: float32 [h*w, 3], mean Lab of each patch.
        softness: Lab difference d at which an edge has half its full strength d / (d + softness).
    """
    starts, counts, order = (array.numpy() for array in tree.intervals)
    if tree.grid is None:
        raise ValueError("node_statistics: expected a merge tree of a grid of patches")
    a, b = grid_edges(*tree.grid).T  # [E], [E]
    color = colors.double().cpu().numpy()
    difference = np.sqrt(((color[a] - color[b]) ** 2).sum(1))  # [E]
    strength = difference / (difference + softness)  # [E]
    joined_at = _separator_of_ancestor(tree, a, b)  # [E]

    def along_border(weights: np.ndarray) -> np.ndarray:
        ends = np.bincount(a, weights, tree.num_leaves) + np.bincount(b, weights, tree.num_leaves)  # [N]
        ends = np.concatenate([[0.0], np.cumsum(ends[order])])  # [N + 1]
        inside = np.concatenate([[0.0], np.cumsum(np.bincount(joined_at, weights, tree.num_leaves))])  # [N + 1]
        # The separators of a node's merges lie strictly after its first position.
        return ends[starts + counts] - ends[starts] - 2 * (inside[starts + counts] - inside[starts + 1])

    border = along_border(np.ones(len(a)))
    contrast = np.where(border > 0.5, along_border(strength) / np.maximum(border, 1), 0.0).clip(0, 1)
    separation = np.ones(tree.num_nodes)
    parents = tree.parents.numpy()
    has_parent = parents >= 0
    similarity = tree.similarity.double().numpy()
    separation[has_parent] = (1 - similarity[parents[has_parent] - tree.num_leaves]).clip(0, 1)
    return NodeStatistics(counts, border, contrast, separation)


def _separator_of_ancestor(tree: MergeTree, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The position [E] that separates the two children of the lowest common ancestor of leaves a and b, [E] each.

    Every merge separates one pair of neighbouring positions, and a later merge has a higher id. So the lowest common
    ancestor of two leaves is the highest id among the separators between them: a range maximum, from a sparse table.
    """
    starts, _, order = (array.numpy() for array in tree.intervals)
    separator = starts[tree.merges.numpy()].max(1)  # [M]: where the right child of each merge begins
    merge_at = np.full(tree.num_leaves, -1, dtype=np.int64)
    merge_at[separator] = np.arange(len(separator))  # [N], by position
    table = [merge_at]  # table[k][i]: maximum over positions i .. i + 2^k - 1
    while 2 ** len(table) <= tree.num_leaves:
        step = 2 ** (len(table) - 1)
        table.append(np.maximum(table[-1][:-step], table[-1][step:]))

    position = np.empty(tree.num_leaves, dtype=np.int64)
    position[order] = np.arange(tree.num_leaves)
    low, high = np.minimum(position[a], position[b]) + 1, np.maximum(position[a], position[b]) + 1  # half-open
    level = np.frexp(high - low)[1] - 1  # floor(log2(length)), length >= 1
    merge = np.empty(len(a), dtype=np.int64)
    for k in np.unique(level):
        here = level == k
        merge[here] = np.maximum(table[k][low[here]], table[k][high[here] - 2**k])
    return separator[merge]
