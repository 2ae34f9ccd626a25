# SPDX-License-Identifier: Apache-2.0
"""schedule="rounds": all mutually best pairs at once."""

from math import inf

import numpy as np
import pytest
import torch
from merge_cases import EDGE_CASES, KINDS, edge_case, random_map, scene_map
from torch.library import opcheck

from sohes.ops._binary import find_binary
from sohes.ops.merge_regions import ROUNDS, merge_regions, merge_regions_graph, run_cpp
from sohes.ops.reference.merge_regions import cosine, grid_edges
from sohes.ops.reference.merge_rounds import merge_rounds_loop

FAST = ["cpp", "cuda"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def device_for(backend):
    """A device on which the backend runs; skips the test with the reason if there is none."""
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    reasons = [ROUNDS.explain(device, torch.float32)[backend] for device in devices]
    for device, reason in zip(devices, reasons, strict=True):
        if reason is None:
            return device
    pytest.skip(reasons[-1])


def in_rounds(features, **options):
    (tree,) = merge_regions(features, schedule="rounds", **options)
    return tree


def assert_same(tree, expected):
    assert torch.equal(tree.merges, expected.merges)
    assert torch.equal(tree.similarity, expected.similarity)


def partition(labels):
    """Labels replaced by the first index of their region: equal for equal partitions."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse].ravel()


# Every backend equals the reference, bitwise.


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_cases(backend, dtype, name):
    features = torch.from_numpy(edge_case(name)).to(dtype).to(device_for(backend))
    assert_same(in_rounds(features, backend=backend), in_rounds(features, backend="reference"))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("kind", KINDS)
def test_random_and_adversarial_maps(backend, kind):
    device = device_for(backend)
    images = [torch.from_numpy(random_map(kind, seed)).to(device) for seed in range(25)]
    for image in images:
        assert_same(in_rounds(image, backend=backend), in_rounds(image, backend="reference"))
    of_one_channel = [image[..., :1] for image in images]
    trees = merge_regions(of_one_channel, schedule="rounds", backend=backend)
    for image, tree in zip(of_one_channel, trees, strict=True):
        assert_same(tree, in_rounds(image, backend="reference"))


@pytest.mark.parametrize("backend", FAST)
def test_masks_stops_and_graphs(backend):
    device = device_for(backend)
    for seed in range(6):
        features = torch.from_numpy(random_map("noise", seed)).to(device)
        mask = torch.rand(features.shape[:2], generator=torch.Generator().manual_seed(seed)) < 0.7
        options = {"region_mask": mask.to(device), "min_similarity": 0.1}
        tree = in_rounds(features, backend=backend, **options)
        assert_same(tree, in_rounds(features, backend="reference", **options))
        assert torch.equal(tree.cut(0.1) == -1, ~mask)
        rows = features.flatten(0, 1)
        edges = torch.randint(0, len(rows), (3 * len(rows), 2), generator=torch.Generator().manual_seed(seed))
        edges = edges[edges[:, 0] != edges[:, 1]].to(device)
        graph = merge_regions_graph(rows, edges, schedule="rounds", backend=backend)
        assert_same(graph, merge_regions_graph(rows, edges, schedule="rounds", backend="reference"))


@pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason or "")
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits():
    rows = torch.from_numpy(np.stack([scene_map(16, channels=45, seed=seed) for seed in range(3)])).reshape(-1, 45)
    args = None, None, [16, 16] * 3, -inf
    expected = run_cpp(rows, *args, in_rounds=True)
    before = torch.get_num_threads()
    for loops in find_binary().module.merge_regions_loops():
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            found = run_cpp(rows, *args, loops=loops, in_rounds=True)
            torch.set_num_threads(before)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# Pinned by hand.


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_pinned_two_pairs_in_one_round(backend):
    """0-1 and 2-3 merge at once, though 2 is nearer to 0 and 1 together (65 degrees) than to 3 (70 degrees)."""
    angles = torch.deg2rad(torch.tensor([[30.0, 0.0, 80.0, 150.0]]))
    features = torch.stack([angles.cos(), angles.sin()], dim=-1).to(device_for(backend))
    tree = in_rounds(features, backend=backend)
    assert tree.merges.tolist() == [[0, 1], [2, 3], [4, 5]]
    cosines = torch.deg2rad(torch.tensor([30.0, 70.0, 100.0])).cos().tolist()
    assert tree.similarity.tolist() == pytest.approx(cosines, abs=1e-6)
    (exact,) = merge_regions(features)
    assert exact.merges.tolist() == [[0, 1], [2, 4], [3, 5]]


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_pinned_ties_go_to_the_lower_ids(backend):
    """All equal on 1x5: every region prefers its lower neighbour, so only 0-1 is mutual; then 5 with 2, and so on."""
    tree = in_rounds(torch.ones(1, 5, 3, device=device_for(backend)), backend=backend)
    assert tree.merges.tolist() == [[0, 1], [2, 3], [4, 6], [5, 7]]


# Properties.


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_tree_listed_by_falling_height(kind):
    for seed in range(10):
        tree = in_rounds(torch.from_numpy(random_map(kind, seed)))
        merges = tree.merges.tolist()
        assert len(merges) == tree.num_leaves - 1
        assert sorted(node for pair in merges for node in pair) == list(range(max(0, tree.num_nodes - 1)))
        height = [inf] * tree.num_leaves
        for k, (left, right) in enumerate(merges):
            assert left < right < tree.num_leaves + k
            height.append(min(height[left], height[right], tree.similarity[k].item()))
        assert height[tree.num_leaves :] == sorted(height[tree.num_leaves :], reverse=True)


# "cancelling" is left out: within the tolerance, a merge could be of more than one round.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cancelling"])
def test_every_merge_of_a_round_is_the_best_of_both_its_regions(kind):
    """A replay of the rounds in float64, within 1e-5."""
    for seed in range(5):
        features = random_map(kind, seed)
        edges = grid_edges(*features.shape[:2])
        rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
        if kind == "huge_range":
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        (merges, similarity), _ = merge_rounds_loop(rows.astype(np.float32), edges)
        sums = dict(enumerate(rows.astype(np.float32).astype(np.float64)))
        around = {region: set() for region in sums}
        for a, b in edges.tolist():
            around[a].add(b)
            around[b].add(a)

        def value(a, b, sums=sums):
            return float(cosine(sums[a] @ sums[b], sums[a] @ sums[a], sums[b] @ sums[b]))

        def is_best_of_both(pair, value=value, around=around):
            best = max(value(region, other) for region in pair for other in around[region])
            return value(*pair) >= best - 1e-5

        done, latest = 0, len(rows)
        while done < len(merges):
            this_round = []  # goes on as long as the merges could have been made in it
            while done < len(merges) and merges[done].max() < latest and is_best_of_both(merges[done].tolist()):
                this_round.append(tuple(merges[done].tolist()))
                assert abs(value(*this_round[-1]) - similarity[done]) <= 1e-5
                done += 1
            assert this_round
            for new, (a, b) in enumerate(this_round, start=latest):
                sums[new] = (sums[a] + sums[b]).astype(np.float32).astype(np.float64)
                around[new] = (around.pop(a) | around.pop(b)) - {a, b}
                for other in around[new]:
                    around[other] = around[other] - {a, b} | {new}
            latest += len(this_round)


def test_the_best_pair_of_all_merges_first_as_in_the_exact_order():
    for seed in range(10):
        features = torch.from_numpy(random_map("noise", seed))
        (exact,) = merge_regions(features)
        tree = in_rounds(features)
        assert torch.equal(tree.merges[:1], exact.merges[:1])
        assert torch.equal(tree.similarity[:1], exact.similarity[:1])


def test_it_equals_the_exact_tree_where_regions_are_constant():
    """Orthogonal constant regions: for any order a cut between 0 and 1 returns these regions."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, (6, 7)).repeat(2, 0).repeat(2, 1)
        features = torch.from_numpy(np.eye(4, dtype=np.float32)[labels] * rng.integers(1, 4, (12, 14, 1)))
        (exact,) = merge_regions(features.float())
        tree = in_rounds(features.float())
        assert np.array_equal(partition(tree.cut(0.5).numpy()), partition(exact.cut(0.5).numpy()))


def test_it_equals_the_exact_tree_up_to_three_regions():
    for seed in range(20):
        features = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(seed))
        (exact,) = merge_regions(features)
        tree = in_rounds(features)
        # The exact order may list a rise, which heights do not move.
        assert_same(tree, exact)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_a_stop_is_a_prefix(backend):
    features = torch.from_numpy(random_map("noise", 5)).to(device_for(backend))
    full = in_rounds(features, backend=backend)
    for min_similarity in (0.9, 0.3, 0.0, float(full.similarity[len(full.similarity) // 2])):
        tree = in_rounds(features, min_similarity=min_similarity, backend=backend)
        kept = full.num_merges(min_similarity)
        assert torch.equal(tree.merges, full.merges[:kept])
        assert torch.equal(tree.similarity, full.similarity[:kept])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_opcheck(backend):
    torch.manual_seed(0)
    operator = torch.ops.sohes.merge_rounds.default
    opcheck(operator, (torch.randn(12, 6), None, torch.rand(12) < 0.9, [2, 3, 3, 2], -inf, backend))


def test_an_unknown_schedule_is_refused():
    message = "^merge_regions: unknown schedule 'fast', expected one of: exact, rounds$"
    with pytest.raises(ValueError, match=message):
        merge_regions(torch.zeros(2, 2, 3), schedule="fast")
    with pytest.raises(ValueError, match=message):
        merge_regions_graph(torch.zeros(2, 2), torch.tensor([[0, 1]]), schedule="fast")
