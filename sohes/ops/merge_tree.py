# SPDX-License-Identifier: Apache-2.0
"""MergeTree: the hierarchy of regions of one image, with label maps at any threshold without the features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np
import torch
from torch import Tensor

from sohes.ops._binary import find_binary
from sohes.ops.reference.merge_tree import TreeLayout, cut_labels, distinct_nodes, tree_layout


@dataclass(frozen=True, eq=False, repr=False)
class MergeTree:
    """The merges of one image, in the order of merging.

    Nodes are regions. The N leaves 0..N-1 are the starting regions (patch (y, x) of a grid is leaf y*w + x); merge k
    joins nodes merges[k] = (lower id, higher id) into the new node N + k. There are R = N + M nodes. M is N - 1 for a
    full tree, and less after an early stop, with a region mask, or on a graph that is not connected.

    All tensors are on the CPU. The layout is computed on first use and cached.

    Attributes:
        num_leaves: N.
        merges: int32 [M, 2].
        similarity: float32 [M] of each merge. Not monotonic: a sum may be closer to a neighbour than its parts are.
        grid: (h, w) with h*w == N, or None for a tree over a general graph (shapes below are then [N] for [h, w]).
        min_similarity: merging stopped before the first merge below this.
        leaf_mask: bool [N], True for leaves inside the region mask; None means all.
        leaf_sizes: int64 [N], the size of each leaf in `areas`; None means 1 each.
    """

    num_leaves: int
    merges: Tensor
    similarity: Tensor
    grid: tuple[int, int] | None = None
    min_similarity: float = -inf
    leaf_mask: Tensor | None = None
    leaf_sizes: Tensor | None = None

    def __repr__(self) -> str:
        grid = "" if self.grid is None else f" of a grid {self.grid[0]} x {self.grid[1]}"
        return f"MergeTree({self.num_leaves} leaves{grid}, {len(self.merges)} merges)"

    @property
    def num_nodes(self) -> int:
        """Number of nodes, R = N + M."""
        return self.num_leaves + len(self.merges)

    @cached_property
    def parents(self) -> Tensor:
        """Parent of each node, int64 [R], -1 for a root."""
        return self._layout_tensors[2].long()

    @cached_property
    def areas(self) -> Tensor:
        """Number of leaves (patches) in each node, or sum of their leaf_sizes, int64 [R]."""
        if self.leaf_sizes is None:
            return self._layout_tensors[0]
        by_position = self.leaf_sizes.numpy()[self._order]
        total = np.concatenate([[0], np.cumsum(by_position, dtype=np.int64)])
        return torch.from_numpy(total[self._starts + self._counts] - total[self._starts])

    @cached_property
    def boxes(self) -> Tensor:
        """Box of each node in patches, int32 [R, 4]: x0, y0, x1, y1, half-open.

        Raises:
            ValueError: the tree has no grid.
        """
        if self.grid is None:
            raise ValueError("a merge tree over a general graph has no boxes: its leaves have no positions on a grid")
        return self._layout_tensors[4]

    @property
    def intervals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Depth-first layout: starts int64 [R], counts int64 [R], order int64 [N].

        Node r holds the leaves order[starts[r]] ... order[starts[r] + counts[r] - 1].
        """
        return torch.from_numpy(self._starts), torch.from_numpy(self._counts), torch.from_numpy(self._order)

    def num_merges(self, threshold: float) -> int:
        """Number of merges before the first one with a similarity below `threshold` (rounded to float32).

        Raises:
            ValueError: threshold is NaN, or below the min_similarity at which merging stopped.
        """
        self._check_threshold(threshold)
        is_below = self.similarity.numpy() < np.float32(threshold)
        first = int(is_below.argmax()) if len(is_below) else 0
        return first if len(is_below) and is_below[first] else len(is_below)

    def cut(self, threshold: float) -> Tensor:
        """Label map of the regions before the first merge below `threshold`.

        Returns:
            Node ids, int32 [h, w] (or [N] without a grid), -1 outside leaf_mask.
        """
        return self.cuts([threshold])[0]

    def cuts(self, thresholds: Sequence[float]) -> Tensor:
        """Label maps at n thresholds, in one pass over the tree: int32 [n, h, w] (or [n, N] without a grid)."""
        labels = torch.empty((len(thresholds), *self._leaf_shape), dtype=torch.int32, device="cpu")
        kernels = find_binary().module
        if kernels is None:
            for row, threshold in zip(labels, thresholds, strict=True):
                row.copy_(self._labels_after(self.num_merges(threshold)))
        else:
            for threshold in thresholds:
                self._check_threshold(threshold)
            kernels.merge_tree_cuts(self.similarity.contiguous(), *self._layout_tensors[:4], list(thresholds), labels)
        if self.leaf_mask is not None:
            labels.view(len(thresholds), self.num_leaves)[:, ~self.leaf_mask] = -1
        return labels

    def cut_to(self, count: int) -> Tensor:
        """Label map with `count` regions, or the nearest possible number: int32 [h, w] ([N] without a grid).

        Node ids, -1 outside leaf_mask; leaves outside are counted as regions.
        """
        merged = min(max(self.num_leaves - count, 0), len(self.merges))
        labels = self._labels_after(merged)
        if self.leaf_mask is not None:
            labels.view(-1)[~self.leaf_mask] = -1
        return labels

    def candidates(self, thresholds: Iterable[float]) -> Tensor:
        """Ids, ascending, of the nodes that are regions in the cut of at least one of `thresholds`, int64 [n]."""
        # A node is a region after m merges if and only if born <= m <= died.
        cuts = np.unique([self.num_merges(threshold) for threshold in thresholds])
        born = np.maximum(np.arange(self.num_nodes) - self.num_leaves + 1, 0)
        died = np.where(self._parents < 0, len(self.merges), self._parents - self.num_leaves)
        alive = np.searchsorted(cuts, died, side="right") > np.searchsorted(cuts, born, side="left")
        if self.leaf_mask is not None:
            alive[: self.num_leaves] &= self.leaf_mask.numpy()
        return torch.from_numpy(np.flatnonzero(alive))

    def node_masks(self, ids: Tensor) -> Tensor:
        """Masks of the nodes `ids` (int64 [n]) over the leaves: bool [n, h, w] (or [n, N] without a grid)."""
        nodes = self._check_ids(ids)
        position = self._starts[: self.num_leaves]
        start, end = self._starts[nodes], self._starts[nodes] + self._counts[nodes]
        inside = (position >= start[:, None]) & (position < end[:, None])
        return torch.from_numpy(inside.reshape(len(nodes), *self._leaf_shape))

    def contains(self, outer: Tensor, inner: Tensor) -> Tensor:
        """Whether node outer[i] is node inner[j] or an ancestor of it, bool [n, m]. Nodes are nested or disjoint."""
        out, inn = self._check_ids(outer), self._check_ids(inner)
        start, end = self._starts[out], self._starts[out] + self._counts[out]
        inner_end = self._starts[inn] + self._counts[inn]
        return torch.from_numpy((start[:, None] <= self._starts[inn]) & (inner_end <= end[:, None]))

    def distinct(self, ids: np.ndarray, iou: float, limit: int | None = None) -> np.ndarray:
        """The first `limit` of the nodes `ids` [n], best first, whose IoU with every better one is at most `iou`.

        IoU is that of `areas`; no limit means all. int64 [kept].

        Raises:
            ValueError: ids are not a vector of nodes.
        """
        kernels, areas, nodes = find_binary().module, self.areas, self._check_ids(ids)
        limit = len(ids) if limit is None else min(limit, len(ids))
        if kernels is None:
            return distinct_nodes(self.merges.numpy(), self._parents, areas.numpy(), nodes, iou, limit)
        dropped = torch.zeros(self.num_nodes, dtype=torch.bool, device="cpu")
        kept = torch.empty(limit, dtype=torch.int64, device="cpu")
        parents = self._layout_tensors[2]
        order = torch.from_numpy(nodes).contiguous()
        args = (self.merges.contiguous(), parents, areas.contiguous(), order, iou, limit, dropped, kept)
        return kept[: kernels.merge_tree_distinct(*args)].numpy()

    def _labels_after(self, num_merges: int) -> Tensor:
        """Label map after `num_merges` merges, without regard to leaf_mask: int32 [h, w] ([N] without a grid)."""
        return torch.from_numpy(cut_labels(self._layout, self.num_leaves + num_merges)).view(self._leaf_shape)

    def _check_threshold(self, threshold: float) -> None:
        if not threshold >= self.min_similarity:
            raise ValueError(
                f"threshold must be at least min_similarity = {self.min_similarity}, where merging stopped, "
                f"got {threshold}"
            )

    # With the leaves in depth-first order every node is one interval [start, start + count) of positions, so masks,
    # nesting and cuts are comparisons of numbers.

    @cached_property
    def _layout_tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The fields of TreeLayout as tensors."""
        width = self.grid[1] if self.grid else 1
        kernels = find_binary().module
        if kernels is None:
            layout = tree_layout(self.merges.numpy(), self.num_leaves, width)
            counts, starts, parents = (torch.from_numpy(x) for x in (layout.counts, layout.starts, layout.parents))
            return counts, starts, parents, torch.from_numpy(layout.order), torch.from_numpy(layout.boxes)
        counts = torch.empty(self.num_nodes, dtype=torch.int64, device="cpu")
        starts, parents = (torch.empty(self.num_nodes, dtype=torch.int32, device="cpu") for _ in range(2))
        order = torch.empty(self.num_leaves, dtype=torch.int32, device="cpu")
        boxes = torch.empty((self.num_nodes, 4), dtype=torch.int32, device="cpu")
        kernels.merge_tree_layout(self.merges.contiguous(), width, counts, starts, parents, order, boxes)
        return counts, starts, parents, order, boxes

    @cached_property
    def _layout(self) -> TreeLayout:
        return TreeLayout(*(array.numpy() for array in self._layout_tensors))

    @property
    def _counts(self) -> np.ndarray:
        return self._layout.counts

    @property
    def _starts(self) -> np.ndarray:
        return self._layout.starts

    @property
    def _order(self) -> np.ndarray:
        return self._layout.order

    @property
    def _parents(self) -> np.ndarray:
        return self._layout.parents

    @property
    def _leaf_shape(self) -> tuple[int, ...]:
        return self.grid if self.grid is not None else (self.num_leaves,)

    def _check_ids(self, ids: Tensor | np.ndarray) -> np.ndarray:
        nodes = torch.as_tensor(ids, dtype=torch.int64, device="cpu").cpu().numpy()
        if nodes.ndim != 1 or (len(nodes) and (nodes.min() < 0 or nodes.max() >= self.num_nodes)):
            raise ValueError(f"ids must be a vector of node ids in [0, {self.num_nodes}), got {nodes}")
        return nodes
