# SPDX-License-Identifier: Apache-2.0
from math import inf

import numpy as np
import pytest
import torch
from merge_cases import EDGE_CASES, KINDS, edge_case, random_map, scene_map

from sohes.ops.merge_regions import OPERATOR, merge_regions, merge_regions_graph
from sohes.ops.reference.merge_regions import cosine, grid_edges, merge_regions_heap, merge_regions_loop

BACKENDS = ["reference", "cpp", "triton", "cuda"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def device_for(backend):
    """A device on which the backend runs; skips the test with the reason if there is none."""
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    reasons = [OPERATOR.explain(device, torch.float32)[backend] for device in devices]
    for device, reason in zip(devices, reasons, strict=True):
        if reason is None:
            return device
    pytest.skip(reasons[-1])


def by_loop(features, mask=None, min_similarity=-inf):
    """The definition, on float32 [h, w, C]."""
    height, width, channels = features.shape
    return merge_regions_loop(features.reshape(-1, channels), grid_edges(height, width, mask), min_similarity)


def assert_is(tree, expected):
    merges, similarity = expected
    assert np.array_equal(tree.merges.numpy(), merges)
    assert np.array_equal(tree.similarity.numpy(), similarity)


def assert_replays(tree, features, edges, tolerance=1e-5):
    """Replay the tree's merges in float64: each similarity is within `tolerance` of the best pair at that time."""
    sums = dict(enumerate(features.astype(np.float64)))

    def similarity(a, b):
        return float(cosine(sums[a] @ sums[b], sums[a] @ sums[a], sums[b] @ sums[b]))

    pairs = {(a, b): similarity(a, b) for a, b in edges.tolist()}
    for k, (a, b) in enumerate(tree.merges.tolist()):
        assert pairs[a, b] >= max(pairs.values()) - tolerance
        assert abs(tree.similarity[k].item() - pairs[a, b]) <= tolerance
        new = len(features) + k
        sums[new] = sums[a] + sums[b]
        around = {region for pair in pairs if a in pair or b in pair for region in pair} - {a, b}
        pairs = {pair: value for pair, value in pairs.items() if not {a, b} & {*pair}}
        pairs.update({(n, new): similarity(n, new) for n in around})
    assert all(value < tree.min_similarity for value in pairs.values())


# 1. Every backend, dtype and case equals the literal loop.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_cases(backend, dtype, name):
    device = device_for(backend)
    features = torch.from_numpy(edge_case(name)).to(dtype)
    (tree,) = merge_regions(features.to(device), backend=backend)
    assert_is(tree, by_loop(features.float().numpy()))


@pytest.mark.parametrize("backend", ["reference", "cpp", "cuda"])
@pytest.mark.parametrize("kind", KINDS)
def test_random_and_adversarial_maps(backend, kind):
    device = device_for(backend)
    maps = [random_map(kind, seed) for seed in range(60)]
    for features in maps:
        (tree,) = merge_regions(torch.from_numpy(features).to(device), backend=backend)
        assert_is(tree, by_loop(features))


@pytest.mark.parametrize("kind", KINDS)
def test_random_maps_in_triton(kind):
    device = device_for("triton")
    for seed in range(2):
        features = random_map(kind, seed, most=5)
        (tree,) = merge_regions(torch.from_numpy(features).to(device), backend="triton")
        assert_is(tree, by_loop(features))


@pytest.mark.parametrize("backend", ["reference", "cpp", "cuda"])
def test_a_map_large_enough_for_every_path(backend):
    """Regions with many neighbours, compaction of the lists, reuse of rows."""
    features = scene_map(28, channels=96)
    (tree,) = merge_regions(torch.from_numpy(features).to(device_for(backend)), backend=backend)
    assert_is(tree, by_loop(features))


# 2. Pinned by hand.


@pytest.mark.parametrize("backend", BACKENDS)
def test_pinned_order(backend):
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], device=device_for(backend))
    (tree,) = merge_regions(features, backend=backend)
    assert tree.merges.tolist() == [[0, 1], [2, 3]]
    assert tree.similarity.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pinned_ties_go_to_the_lower_ids(backend):
    """All equal on 2x3: 0-1 first, then 2 with the lower of its neighbours 5 and 6, then 3 with 4, and so on."""
    (tree,) = merge_regions(torch.ones(2, 3, 4, device=device_for(backend)), backend=backend)
    assert tree.merges.tolist() == [[0, 1], [2, 5], [3, 4], [6, 7], [8, 9]]
    assert tree.similarity.tolist() == [1.0] * 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_pinned_sums_not_means(backend):
    """0 and 1 make (2, 0), adding 2 gives (3, 1); means of means would give (2, 1) and end with -1/sqrt(10)."""
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [-1.0, 1.0]]], device=device_for(backend))
    (tree,) = merge_regions(features, backend=backend)
    assert tree.merges.tolist() == [[0, 1], [2, 4], [3, 5]]
    assert tree.similarity.tolist() == pytest.approx([1.0, 1 / np.sqrt(2), -2 / np.sqrt(20)], abs=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pinned_zero_and_nan(backend):
    """A zero feature has similarity 0 to all others and merges before opposite ones; NaN merges last, with -inf."""
    features = torch.tensor([[[1.0], [-1.0], [0.0], [float("nan")]]], device=device_for(backend))
    (tree,) = merge_regions(features, backend=backend)
    assert tree.merges.tolist() == [[1, 2], [0, 4], [3, 5]]
    assert tree.similarity.tolist() == [0.0, -1.0, -inf]


# 3. Properties.


@pytest.mark.parametrize("kind", KINDS)
def test_the_heap_equals_the_loop_on_graphs(kind):
    """Random graphs, some not connected, with repeated and reversed edges; numpy heap and C++ agree."""
    for seed in range(20):
        features = random_map(kind, seed)
        features = features.reshape(-1, features.shape[-1])
        rng = np.random.default_rng(seed)
        edges = rng.integers(0, len(features), (2 * len(features), 2))
        edges = edges[edges[:, 0] != edges[:, 1]]
        expected = merge_regions_loop(features, edges)
        heap = merge_regions_heap(features, edges)
        assert np.array_equal(heap[0], expected[0])
        assert np.array_equal(heap[1], expected[1])
        assert_is(merge_regions_graph(torch.from_numpy(features), torch.from_numpy(edges)), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_replay_in_float64(backend, dtype):
    side = 5 if backend == "triton" else 14
    features = torch.from_numpy(scene_map(side, channels=48)).to(dtype)
    (tree,) = merge_regions(features.to(device_for(backend)), backend=backend)
    assert len(tree.merges) == side * side - 1
    assert_replays(tree, features.double().numpy().reshape(-1, 48), grid_edges(side, side))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stop_is_a_prefix(backend):
    device = device_for(backend)
    features = torch.from_numpy(random_map("noise", 5, most=4)).to(device)
    (full,) = merge_regions(features, backend=backend)
    for min_similarity in (0.9, 0.3, 0.0, float(full.similarity[len(full.similarity) // 2])):
        (tree,) = merge_regions(features, min_similarity=min_similarity, backend=backend)
        kept = full.num_merges(min_similarity)
        assert len(tree.merges) == kept
        assert_is(tree, (full.merges[:kept].numpy(), full.similarity[:kept].numpy()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_region_mask(backend):
    device = device_for(backend)
    for seed in range(3):
        features = random_map("shifted", seed, most=5)
        mask = np.random.default_rng(seed).random(features.shape[:2]) < 0.6
        (tree,) = merge_regions(
            torch.from_numpy(features).to(device), region_mask=torch.from_numpy(mask).to(device), backend=backend
        )
        assert_is(tree, by_loop(features, mask))
        assert np.array_equal(tree.cut(-1.0).numpy() == -1, ~mask)


@pytest.mark.parametrize("backend", ["reference", "cpp", "cuda"])
def test_the_scale_of_all_features_does_not_matter(backend):
    features = torch.from_numpy(scene_map(12, channels=33)).to(device_for(backend))
    (tree,) = merge_regions(features, backend=backend)
    (scaled,) = merge_regions(features * 2.0**20, backend=backend)
    assert_is(scaled, (tree.merges.numpy(), tree.similarity.numpy()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_and_lists_equal_single_images(backend):
    device = device_for(backend)
    images = [torch.from_numpy(random_map("noise", seed, most=4)[..., :1]).to(device) for seed in range(4)]
    for image, tree in zip(images, merge_regions(images, backend=backend), strict=True):
        assert_is(tree, by_loop(image.cpu().numpy()))
        assert tree.grid == tuple(image.shape[:2])
    batch = torch.randn(2, 3, 4, 6, device=device)
    for image, tree in zip(batch, merge_regions(batch, backend=backend), strict=True):
        assert_is(tree, by_loop(image.cpu().numpy()))


def test_non_contiguous_and_expanded_features():
    features = torch.randn(7, 6, 5)
    channels_first = features.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not channels_first.is_contiguous()
    (tree,) = merge_regions(channels_first)
    assert_is(tree, by_loop(features.numpy()))
    for tree in merge_regions(features[None].expand(3, -1, -1, -1)):
        assert_is(tree, by_loop(features.numpy()))


def test_graph_sizes_weigh_the_sums():
    """A region of 3 patches with mean m counts as three patches of m."""
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    sizes, edges = torch.tensor([3, 1, 2]), torch.tensor([[0, 1], [2, 1]])
    tree = merge_regions_graph(means, edges, sizes=sizes)
    assert tree.merges.tolist() == [[1, 2], [0, 3]]
    assert tree.areas.tolist() == [3, 1, 2, 3, 6]
    assert tree.similarity[1].item() == pytest.approx(2 / np.sqrt(4 + 9))


def test_nothing_to_merge():
    assert merge_regions([]) == []
    assert merge_regions(torch.empty(0, 4, 4, 8)) == []
    tree = merge_regions_graph(torch.randn(3, 2), torch.empty(0, 2, dtype=torch.int64))
    assert len(tree.merges) == 0
    assert tree.cut(0.0).tolist() == [0, 1, 2]


def test_features_that_require_a_gradient_give_a_tree_without_one():
    (tree,) = merge_regions(torch.randn(3, 3, 4, requires_grad=True))
    assert not tree.similarity.requires_grad
