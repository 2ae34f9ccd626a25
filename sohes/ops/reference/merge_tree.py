# SPDX-License-Identifier: Apache-2.0
"""Reference of the depth-first layout of a merge tree, computed in two passes over the merges."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class TreeLayout(NamedTuple):
    """Arrays by node of a merge tree with N leaves and M merges; R = N + M.

    Attributes:
        counts: int64 [R], the number of leaves below each node.
        starts: int32 [R], the first position of each node, which spans positions start .. start + count - 1.
        parents: int32 [R], the parent of each node, -1 for a root.
        order: int32 [N], the leaf at each position.
        boxes: int32 [R, 4], (x0, y0, x1, y1) half-open.
    """

    counts: np.ndarray
    starts: np.ndarray
    parents: np.ndarray
    order: np.ndarray
    boxes: np.ndarray


def tree_layout(merges: np.ndarray, num_leaves: int, width: int) -> TreeLayout:
    """The layout with leaves in depth-first order, so that every node is one interval of positions.

    Roots are in ascending order of ids; the left child of a node comes first.

    Args:
        merges: int32 [M, 2]; merge k joins two nodes into node num_leaves + k.
        num_leaves: N.
        width: leaf i is at column i % width, row i // width.
    """
    num_nodes = num_leaves + len(merges)
    pairs = merges.tolist()
    columns, rows = np.arange(num_leaves) % width, np.arange(num_leaves) // width
    counts = [1] * num_leaves
    boxes = np.stack([columns, rows, columns + 1, rows + 1], axis=1).tolist()
    parents = [-1] * num_nodes
    for k, (left, right) in enumerate(pairs):
        counts.append(counts[left] + counts[right])
        a, b = boxes[left], boxes[right]
        boxes.append([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
        parents[left] = parents[right] = num_leaves + k

    starts = [0] * num_nodes
    position = 0
    for node in range(num_nodes):
        if parents[node] < 0:
            starts[node] = position
            position += counts[node]
    for k in range(len(pairs) - 1, -1, -1):
        left, right = pairs[k]
        starts[left] = starts[num_leaves + k]
        starts[right] = starts[left] + counts[left]

    order = np.empty(num_leaves, dtype=np.int32)
    order[starts[:num_leaves]] = np.arange(num_leaves)
    return TreeLayout(
        counts=np.asarray(counts, dtype=np.int64),
        starts=np.asarray(starts, dtype=np.int32),
        parents=np.asarray(parents, dtype=np.int32),
        order=order,
        boxes=np.asarray(boxes, dtype=np.int32).reshape(num_nodes, 4),
    )


def cut_labels(layout: TreeLayout, end: int) -> np.ndarray:
    """The root at each leaf when only the nodes with ids below `end` exist, int32 [N]."""
    parents = layout.parents[:end]
    alive = np.flatnonzero((parents < 0) | (parents >= end)).astype(np.int32)
    alive = alive[np.argsort(layout.starts[alive])]
    labels = np.empty(len(layout.order), dtype=np.int32)
    labels[layout.order] = np.repeat(alive, layout.counts[alive])
    return labels


def distinct_nodes(
    merges: np.ndarray, parents: np.ndarray, areas: np.ndarray, ids: np.ndarray, iou: float, limit: int
) -> np.ndarray:
    """The first `limit` of `ids` [n], best first, whose IoU with every better one is at most `iou`; int64 [kept].

    Two nodes of a tree are nested or disjoint, and the IoU of nested ones is the ratio of their areas. So only the
    ancestors and descendants of a kept node with a similar area can be its duplicates.

    Args:
        merges: int32 [M, 2]. parents: int32 [R]. areas: int64 [R], none larger than that of its parent.
    """
    area, parent, children = areas.tolist(), parents.tolist(), merges.tolist()
    num_leaves = len(area) - len(children)
    dropped = bytearray(len(area))
    kept: list[int] = []
    for node in ids.tolist():
        if dropped[node]:
            continue
        if len(kept) == limit:
            break
        kept.append(node)
        above = parent[node]
        while above >= 0 and area[node] > iou * area[above]:
            dropped[above] = True
            above = parent[above]
        stack = [node]
        while stack:
            below = stack.pop()
            for child in children[below - num_leaves] if below >= num_leaves else ():
                if area[child] > iou * area[node]:
                    dropped[child] = True
                    stack.append(child)
    return np.asarray(kept, dtype=np.int64)
