# SPDX-License-Identifier: Apache-2.0
import re
from math import inf

import numpy as np
import pytest
import torch
from merge_cases import EDGE_CASES, KINDS, edge_case, random_map, scene_map
from torch.library import opcheck

from sohes._binary import find_binary
from sohes.ops._library import BackendUnavailable
from sohes.ops.merge_regions import OPERATOR, merge_regions, merge_regions_graph
from sohes.ops.reference.merge_regions import cosine, grid_edges, merge_regions_heap, merge_regions_loop

BACKENDS = ["reference", "cpp", "triton", "cuda"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NEEDS_BINARY = pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason or "")


def device_for(backend):
    """A device that the backend runs on here; skips with the reason where there is none."""
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
    """Regions with many neighbours, edge lists moved together, rows given back and taken again."""
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
    """0 and 1 make (2, 0), with 2 that is (3, 1); means of means would make (2, 1) and end with -1/sqrt(10)."""
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [-1.0, 1.0]]], device=device_for(backend))
    (tree,) = merge_regions(features, backend=backend)
    assert tree.merges.tolist() == [[0, 1], [2, 4], [3, 5]]
    assert tree.similarity.tolist() == pytest.approx([1.0, 1 / np.sqrt(2), -2 / np.sqrt(20)], abs=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pinned_zero_and_nan(backend):
    """A zero has similarity 0 with everything and merges before opposites; a NaN comes last, with -inf."""
    features = torch.tensor([[[1.0], [-1.0], [0.0], [float("nan")]]], device=device_for(backend))
    (tree,) = merge_regions(features, backend=backend)
    assert tree.merges.tolist() == [[1, 2], [0, 4], [3, 5]]
    assert tree.similarity.tolist() == [0.0, -1.0, -inf]


# 3. Properties.


@pytest.mark.parametrize("kind", KINDS)
def test_the_heap_equals_the_loop_on_graphs(kind):
    """Random graphs, some of several pieces, with repeated and reversed edges; numpy heap and C++ alike."""
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


# 6. opcheck, 7. compile and export.


def operator_args(*sizes):
    total = sum(height * width for height, width in sizes)
    torch.manual_seed(0)
    return torch.randn(total, 6), None, torch.rand(total) < 0.9, [side for size in sizes for side in size], -inf


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_opcheck(backend):
    operator = torch.ops.sohes.merge_regions.default
    opcheck(operator, (*operator_args((4, 5), (3, 2)), backend))
    edges = torch.tensor([[0, 1], [1, 2]])
    opcheck(operator, (torch.randn(3, 4), edges, None, [3, 1], 0.5, backend))


class Merging(torch.nn.Module):
    def forward(self, features):
        images, height, width, channels = features.shape
        rows = features.reshape(-1, channels)
        return torch.ops.sohes.merge_regions(rows, None, None, [height, width] * images, -inf)


def test_compile_does_not_recompile_for_another_size():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled = torch.compile(Merging(), fullgraph=True, dynamic=True, backend=counter)
    for height, width in [(4, 5), (6, 3)]:
        features = torch.randn(2, height, width, 8)
        merges, similarity, num_merges = compiled(features)
        for image, start in ((0, 0), (1, height * width)):
            expected = by_loop(features[image].numpy())
            count = num_merges[image]
            assert np.array_equal(merges[start : start + count].numpy(), expected[0])
            assert np.array_equal(similarity[start : start + count].numpy(), expected[1])
    assert counter.frame_count == 1


def test_export():
    height, width = torch.export.Dim("height", min=2, max=64), torch.export.Dim("width", min=2, max=64)
    program = torch.export.export(
        Merging(), (torch.randn(2, 4, 5, 8),), dynamic_shapes={"features": {1: height, 2: width}}
    )
    features = torch.randn(2, 7, 3, 8)
    for exported, eager in zip(program.module()(features), Merging()(features), strict=True):
        assert torch.equal(exported, eager)


# 8. Determinism.


@NEEDS_BINARY
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits():
    from sohes.ops.merge_regions import run_cpp

    # Channels that are no multiple of any vector, and sums of every rounding.
    batch = torch.from_numpy(np.stack([scene_map(20, channels=45, seed=seed) for seed in range(5)]))
    args = batch.reshape(-1, 45), None, None, [20, 20] * 5, -inf
    before = torch.get_num_threads()
    for dtype in DTYPES:
        rows = args[0].to(dtype)
        expected = run_cpp(rows, *args[1:])
        for loops in find_binary().module.merge_regions_loops():
            for num_threads in (1, 3):
                torch.set_num_threads(num_threads)
                found = run_cpp(rows, *args[1:], loops=loops)
                torch.set_num_threads(before)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@NEEDS_BINARY
def test_the_last_loops_run_anywhere():
    assert find_binary().module.merge_regions_loops()[-1] in ("baseline", "neon")


@NEEDS_BINARY
def test_extra_memory_is_within_two_and_a_half_times_the_features():
    scratch = find_binary().module.merge_regions_scratch
    for side in (28, 60, 100, 200):
        features = side * side * 768
        assert scratch([side, side], -1, 768, False, 1) <= 1.0 * features * 4
        assert scratch([side, side], -1, 768, True, 1) <= 2.5 * features * 2
        assert scratch([side, side] * 2, -1, 768, False, 2) <= 1.0 * 2 * features * 4


# 9. Errors.


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (
            torch.zeros(4, 5),
            {},
            "merge_regions: expected features [h, w, C], [B, h, w, C] or a list of [h, w, C], got [4, 5]",
        ),
        (
            [torch.zeros(2, 4, 5, 3)],
            {},
            "merge_regions: expected features [h, w, C], [B, h, w, C] or a list of [h, w, C], got [2, 4, 5, 3]",
        ),
        (
            torch.zeros(4, 5, 2, dtype=torch.float64),
            {},
            "merge_regions: expected float32, float16 or bfloat16 features, got torch.float64",
        ),
        (
            torch.zeros(4, 0, 2),
            {},
            "merge_regions: expected at least one patch and channel, got [4, 0, 2]",
        ),
        (
            [torch.zeros(2, 2, 3), torch.zeros(2, 2, 4)],
            {},
            "merge_regions: expected images of one number of channels, dtype and device, "
            "got 3 torch.float32 cpu and 4 torch.float32 cpu",
        ),
        (
            torch.zeros(4, 5, 2),
            {"region_mask": torch.ones(5, 4, dtype=torch.bool)},
            "merge_regions: expected region_mask of sizes [[4, 5]], got [[5, 4]]",
        ),
        (
            torch.zeros(4, 5, 2),
            {"region_mask": torch.ones(4, 5)},
            "merge_regions: expected a bool region_mask, got torch.float32",
        ),
        (
            torch.zeros(4, 5, 2),
            {"min_similarity": float("nan")},
            "merge_regions: min_similarity is NaN; -inf merges everything",
        ),
        (
            torch.zeros(4, 5, 2),
            {"backend": "fortran"},
            "merge_regions: unknown backend 'fortran', expected one of: auto, cpp, cuda, triton, reference",
        ),
    ],
)
def test_errors(features, options, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        merge_regions(features, **options)


@pytest.mark.parametrize(
    ("features", "edges", "options", "message"),
    [
        (
            torch.zeros(3),
            torch.zeros(0, 2, dtype=torch.int64),
            {},
            "merge_regions_graph: expected features [N, C], none empty, got [3]",
        ),
        (
            torch.zeros(3, 2),
            torch.zeros(4, 3, dtype=torch.int64),
            {},
            "merge_regions_graph: expected edges int64 [E, 2], got torch.int64 [4, 3]",
        ),
        (
            torch.zeros(3, 2),
            torch.tensor([[0, 1], [1, 3], [2, 2]]),
            {},
            "merge_regions_graph: expected edges between different regions in [0, 3), got ids from 0 to 3, "
            "1 of the edges from a region to itself",
        ),
        (
            torch.zeros(3, 2),
            torch.tensor([[0, 1]]),
            {"sizes": torch.ones(2, dtype=torch.int64)},
            "merge_regions_graph: expected sizes int64 [3], got torch.int64 [2]",
        ),
    ],
)
def test_graph_errors(features, edges, options, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        merge_regions_graph(features, edges, **options)


def test_an_explicit_backend_that_cannot_run_says_why():
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    with pytest.raises(BackendUnavailable, match=r"^merge_regions: backend 'cuda' cannot run on cpu torch\.float32: "):
        merge_regions(torch.zeros(2, 2, 3), backend="cuda")
