# SPDX-License-Identifier: Apache-2.0
"""MergeTree: cuts, candidates, areas, boxes, masks and nesting, against a replay of the merges on pixels."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch

from sohes.ops.merge_regions import merge_regions
from sohes.ops.merge_tree import MergeTree
from sohes.ops.reference.merge_regions import grid_edges, merge_regions_heap
from sohes.ops.reference.merge_tree import distinct_nodes

THRESHOLDS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def tree_of(features: np.ndarray, mask: np.ndarray | None = None, min_similarity: float = -inf) -> MergeTree:
    height, width, channels = features.shape
    edges = grid_edges(height, width, mask)
    merges, similarity = merge_regions_heap(features.reshape(-1, channels), edges, min_similarity)
    leaf_mask = None if mask is None else torch.from_numpy(mask.ravel())
    return MergeTree(
        num_leaves=height * width,
        merges=torch.from_numpy(merges),
        similarity=torch.from_numpy(similarity),
        grid=(height, width),
        min_similarity=min_similarity,
        leaf_mask=leaf_mask,
    )


def random_tree(seed: int, height: int = 7, width: int = 9) -> MergeTree:
    return tree_of(np.random.default_rng(seed).normal(size=(height, width, 5)).astype(np.float32) + 0.3)


def replayed_labels(tree: MergeTree, num_merges: int) -> np.ndarray:
    labels = np.arange(tree.num_leaves)
    for k in range(num_merges):
        labels[np.isin(labels, tree.merges[k].numpy())] = tree.num_leaves + k
    return labels.reshape(tree.grid)


@pytest.fixture
def pinned() -> MergeTree:
    """A 2x3 grid: leaves 0 1 2 over 3 4 5. The third merge is closer than the second."""
    merges = torch.tensor([[0, 1], [2, 5], [6, 7], [3, 4], [8, 9]], dtype=torch.int32)
    similarity = torch.tensor([0.9, 0.5, 0.7, 0.4, 0.1])
    return MergeTree(num_leaves=6, merges=merges, similarity=similarity, grid=(2, 3))


def test_pinned_cuts(pinned):
    assert pinned.cut(0.95).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert pinned.cut(0.6).tolist() == [[6, 6, 2], [3, 4, 5]]  # the 0.7 behind the 0.5 does not happen
    assert pinned.cut(0.5).tolist() == [[8, 8, 8], [3, 4, 8]]
    assert pinned.cut(0.2).tolist() == [[8, 8, 8], [9, 9, 8]]
    assert pinned.cut(-1.0).tolist() == [[10, 10, 10], [10, 10, 10]]
    assert pinned.cut(0.5).dtype == torch.int32


def test_pinned_layout(pinned):
    assert pinned.areas.tolist() == [1] * 6 + [2, 2, 4, 2, 6]
    assert pinned.boxes[6:].tolist() == [[0, 0, 2, 1], [2, 0, 3, 2], [0, 0, 3, 2], [0, 1, 2, 2], [0, 0, 3, 2]]
    assert pinned.boxes[4].tolist() == [1, 1, 2, 2]
    assert pinned.parents.tolist() == [6, 6, 7, 9, 9, 7, 8, 8, 10, 10, -1]
    assert pinned.node_masks(torch.tensor([8]))[0].tolist() == [[True, True, True], [False, False, True]]
    assert pinned.contains(torch.tensor([10, 8, 6]), torch.tensor([8, 9, 0])).tolist() == [
        [True, True, True],
        [True, False, True],
        [False, False, True],
    ]


def test_pinned_candidates(pinned):
    assert pinned.candidates([0.5, 0.2]).tolist() == [3, 4, 8, 9]
    assert pinned.candidates([0.6]).tolist() == [2, 3, 4, 5, 6]
    assert pinned.candidates([]).tolist() == []


@pytest.mark.parametrize("seed", range(10))
def test_every_cut_equals_a_replay(seed):
    tree = random_tree(seed)
    for threshold in (*THRESHOLDS, 0.9, -0.5, -2.0, *tree.similarity[::9].tolist()):
        below = np.flatnonzero(tree.similarity.numpy() < np.float32(threshold))
        num_merges = int(below[0]) if len(below) else len(tree.merges)
        assert np.array_equal(tree.cut(threshold).numpy(), replayed_labels(tree, num_merges))


def test_several_cuts_at_once_equal_single_ones_in_any_order():
    tree = random_tree(3)
    thresholds = [0.1, 2.0, -2.0, 0.1, 0.5, float(tree.similarity[7])]
    cuts = tree.cuts(thresholds)
    assert cuts.shape == (6, 7, 9)
    for threshold, labels in zip(thresholds, cuts, strict=True):
        assert torch.equal(labels, tree.cut(threshold))
    assert tree.cuts([]).shape == (0, 7, 9)


@pytest.mark.parametrize("seed", range(5))
def test_areas_boxes_and_nesting_equal_the_masks(seed):
    tree = random_tree(seed)
    ids = torch.arange(tree.num_nodes)
    masks = tree.node_masks(ids)
    assert torch.equal(masks.sum(dim=(1, 2)), tree.areas)
    for mask, box in zip(masks, tree.boxes.tolist(), strict=True):
        rows, columns = np.nonzero(mask.numpy())
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    flat = masks.flatten(1).float()
    assert torch.equal(tree.contains(ids, ids), flat @ flat.T == tree.areas)


@pytest.mark.parametrize("seed", range(5))
def test_candidates_are_the_labels_of_all_cuts(seed):
    tree = random_tree(seed)
    expected = sorted({node for threshold in THRESHOLDS for node in tree.cut(threshold).unique().tolist()})
    assert tree.candidates(THRESHOLDS).tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 7, 40, 100])
def test_cut_to_a_number_of_regions(count):
    tree = merge_regions(torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(count))[None])[0]
    labels = tree.cut_to(count)
    assert labels.shape == (5, 8)
    assert len(labels.unique()) == min(count, 40)
    expected = tree.cut(float(tree.similarity[-1]) - 1) if count == 1 else None
    assert expected is None or torch.equal(labels, expected)


def test_leaves_outside_the_mask_have_no_label():
    rng = np.random.default_rng(3)
    mask = rng.random((6, 8)) > 0.4
    tree = tree_of(rng.normal(size=(6, 8, 4)).astype(np.float32), mask)
    labels = tree.cut(-1.0).numpy()
    assert np.array_equal(labels == -1, ~mask)
    assert set(tree.candidates([-1.0, 2.0]).tolist()) == set(labels[mask]) | set(np.flatnonzero(mask.ravel()))


def test_a_threshold_below_the_stop_is_refused():
    tree = tree_of(np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32), min_similarity=0.25)
    tree.cut(0.25)
    with pytest.raises(ValueError) as error:
        tree.cut(0.1)
    message = "threshold must be at least min_similarity = 0.25, where merging stopped, got 0.1"
    assert str(error.value) == message


def test_a_nan_threshold_is_refused(pinned):
    with pytest.raises(ValueError, match="got nan"):
        pinned.cut(float("nan"))


def test_ids_out_of_range_are_refused(pinned):
    with pytest.raises(ValueError) as error:
        pinned.node_masks(torch.tensor([3, 11]))
    assert str(error.value) == "ids must be a vector of node ids in [0, 11), got [ 3 11]"


def test_a_general_graph_has_sizes_but_no_boxes():
    merges = torch.tensor([[0, 2], [1, 3]], dtype=torch.int32)
    tree = MergeTree(3, merges, torch.tensor([0.5, 0.4]), leaf_sizes=torch.tensor([10, 20, 5]))
    assert tree.areas.tolist() == [10, 20, 5, 15, 35]
    assert tree.cut(0.45).tolist() == [3, 1, 3]
    assert tree.node_masks(torch.tensor([3])).tolist() == [[True, False, True]]
    with pytest.raises(ValueError) as error:
        _ = tree.boxes
    assert str(error.value) == "a merge tree over a general graph has no boxes: its leaves have no positions on a grid"


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1)])
def test_thin_grids(grid):
    tree = random_tree(1, *grid)
    assert len(tree.merges) == grid[0] * grid[1] - 1
    assert tree.cut(-1.0).unique().tolist() == [tree.num_nodes - 1]
    assert tree.areas[-1] == grid[0] * grid[1]
    assert tree.boxes[-1].tolist() == [0, 0, grid[1], grid[0]]


@pytest.mark.parametrize("iou", [0.0, 0.5, 0.7, 1.0])
def test_distinct_nodes_are_those_by_pixels(iou):
    tree = random_tree(3)
    order = np.random.default_rng(0).permutation(tree.num_nodes)
    masks = tree.node_masks(torch.arange(tree.num_nodes)).flatten(1).double()
    shared = masks @ masks.T
    ratio = shared / (masks.sum(1)[:, None] + masks.sum(1) - shared)
    expected = []
    for node in order:
        if all(ratio[node, other] <= iou for other in expected):
            expected.append(int(node))
    kept = tree.distinct(order, iou)
    assert kept.dtype == np.int64
    assert kept.tolist() == expected
    assert tree.distinct(order, iou, limit=3).tolist() == expected[:3]
    assert tree.distinct(order[:0], iou).tolist() == []


def test_distinct_nodes_equal_those_of_the_reference():
    for seed in range(4):
        tree = replace(random_tree(seed, 12, 13), leaf_sizes=torch.randint(1, 40, (156,)))
        order = np.random.default_rng(seed).permutation(tree.num_nodes)[: 100 * (seed + 1)]
        arrays = (tree.merges.numpy(), tree.parents.numpy(), tree.areas.numpy())
        for limit in (0, 1, 20, len(order)):
            expected = distinct_nodes(*arrays, order, 0.8, limit)
            assert tree.distinct(order, 0.8, limit).tolist() == expected.tolist()
    with pytest.raises(ValueError, match=r"^ids must be a vector of node ids in \[0, 311\), got \[311\]$"):
        tree.distinct(np.array([311]), 0.8)
