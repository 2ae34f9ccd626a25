# SPDX-License-Identifier: Apache-2.0
"""Time of merge_regions beside the published loop, a heap in numpy, and reading the features once.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/bench_merge_regions.py --benchmark-columns=min,median,rounds

Maps of 768 channels: `scene` has nested objects and the noise of ViT keys, `noisy` more noise; `shifted` is one
direction and noise: all similarities are close, and one region grows to have hundreds of neighbours.
SOHES_BENCH_LARGE=1 adds the literal loop at 60 x 60 and 100 x 100 (one round each), `noisy` and `shifted` 200 x 200.
`floor_ms` is the time to read the features once, measured in the same run on the same thread; `per_nlogn` is the time
over N log2(N) relative to 28 x 28, and `floor_per_nlogn` the same of the floor: the effect of the caches alone. GPU
rows are skipped without a GPU.
"""

import os
from math import log2

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from merge_cases import scene_map

from sohes.ops._binary import find_binary
from sohes.ops.merge_regions import OPERATOR, ROUNDS, merge_regions

IS_LARGE = os.environ.get("SOHES_BENCH_LARGE") == "1"
SIDES = (28, 60, 100, 200)
CHANNELS = 768
THRESHOLDS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
MEDIANS = {}  # of this run, by name, for the ratios

pytestmark = pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason or "")


def feature_map(kind: str, side: int) -> torch.Tensor:
    """float32 [side, side, 768]"""
    if kind == "shifted":
        rng = np.random.default_rng(0)
        return torch.from_numpy((rng.normal(size=(side, side, CHANNELS)) + 1).astype(np.float32))
    return torch.from_numpy(scene_map(side, CHANNELS, noise={"scene": 0.6, "noisy": 1.5}[kind]))


def literal_loop(features: torch.Tensor) -> int:
    """The published loop, as HASSOD's `hier_cluster` does it, without the thresholds and masks around it.

    A region is its sum, its unit vector and a list of its patches; a dictionary has the similarity of every adjacent
    pair, a product and a sum in torch. At every merge: the maximum over the dictionary, a pass over all of its keys for
    those of the two regions, and one similarity for each that goes (two for a neighbour of both). Nothing is kept that
    would spare this work, and nothing is added to it. Returns the number of regions ever made.
    """
    height, width, channels = features.shape
    sums = list(features.reshape(-1, channels))
    units = [functional.normalize(row, dim=0) for row in sums]
    patches = [[divmod(i, width)] for i in range(height * width)]

    def similarity(a: int, b: int) -> float:
        return (units[a] * units[b]).sum().item()

    pairs = {}
    for i in range(height * width):
        if (i + 1) % width:
            pairs[i, i + 1] = similarity(i, i + 1)
        if i + width < height * width:
            pairs[i, i + width] = similarity(i, i + width)
    while pairs:
        best = max(pairs, key=pairs.get)
        a, b = best
        new = len(sums)
        patches.append(patches[a] + patches[b])
        sums.append(sums[a] + sums[b])
        units.append(functional.normalize(sums[new] / len(patches[new]), dim=0))
        touched = [pair for pair in pairs if a == pair[0] or a == pair[1] or b == pair[0] or b == pair[1]]
        for pair in touched:
            del pairs[pair]
        for pair in touched:
            if pair != best:
                other = pair[1] if pair[0] in best else pair[0]
                pairs[other, new] = similarity(other, new)
    return len(sums)


def measure(benchmark, name, function, *, rounds=15, setup=None):
    warm = 0 if rounds == 1 or setup is not None else 1
    result = benchmark.pedantic(function, rounds=rounds, warmup_rounds=warm, setup=setup)
    MEDIANS[name] = benchmark.stats.stats.median
    return result


def add_ratio(benchmark, label, name, over):
    """Sets extra_info[label] to the time of `over` divided by that of `name`, if both ran."""
    if name in MEDIANS and over in MEDIANS:
        benchmark.extra_info[label] = round(MEDIANS[over] / MEDIANS[name], 3)


def add_growth(benchmark, label, name, side):
    """extra_info[label]: time over N log2 N, relative to that of 28 x 28."""
    if f"{name} 28" in MEDIANS:
        expected = MEDIANS[f"{name} 28"] * side**2 * log2(side**2) / (28**2 * log2(28**2))
        benchmark.extra_info[label] = round(MEDIANS[f"{name} {side}"] / expected, 2)


def memory(sides, dtype, num_threads=1, in_rounds=False):
    """Bytes of scratch over bytes of features."""
    scratch = find_binary().module.merge_regions_scratch
    grid = [sides[0], sides[0]] * len(sides)
    is_half = dtype != torch.float32
    num_bytes = scratch(grid, -1, CHANNELS, is_half, num_threads, in_rounds)
    return round(num_bytes / (len(sides) * sides[0] ** 2 * CHANNELS * dtype.itemsize), 2)


@pytest.fixture
def threads():
    """Sets the number of threads for one benchmark."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("side", SIDES)
def test_floor(benchmark, side, threads):
    """Reads every feature once, as a sum."""
    threads(1)
    benchmark.group = f"scene {side}"
    features = feature_map("scene", side)
    measure(benchmark, f"floor {side}", features.sum)
    benchmark.extra_info["GB_per_s"] = round(4 * features.numel() / MEDIANS[f"floor {side}"] / 1e9, 1)
    add_growth(benchmark, "per_nlogn", "floor", side)


@pytest.mark.parametrize("side", SIDES[: 3 if IS_LARGE else 1])
def test_literal_loop(benchmark, side, threads):
    threads(1)
    benchmark.group = f"scene {side}"
    features = feature_map("scene", side)
    measure(benchmark, f"loop {side}", lambda: literal_loop(features), rounds=1)


@pytest.mark.parametrize("side", SIDES[:3])
def test_numpy_heap(benchmark, side, threads):
    threads(1)
    benchmark.group = f"scene {side}"
    features = feature_map("scene", side)
    measure(benchmark, f"heap {side}", lambda: merge_regions(features, backend="reference"), rounds=2)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["scene", "noisy", "shifted"])
def test_cpp(benchmark, kind, side, threads):
    if side == 200 and kind != "scene" and not IS_LARGE:
        pytest.skip("SOHES_BENCH_LARGE=1 runs the 200 x 200 maps of every kind")
    threads(1)
    benchmark.group = f"{kind} {side}"
    features = feature_map(kind, side)
    name = f"{kind} {side}"
    rounds = max(3, (900 if kind == "scene" else 300) // side)
    measure(benchmark, name, lambda: merge_regions(features, backend="cpp"), rounds=rounds)
    benchmark.extra_info["memory"] = memory([side], torch.float32)
    add_growth(benchmark, "per_nlogn", kind, side)
    add_ratio(benchmark, "times_28", f"{kind} 28", name)
    add_ratio(benchmark, "times_60", f"{kind} 60", name)
    if f"floor {side}" in MEDIANS:
        benchmark.extra_info["floor_ms"] = round(MEDIANS[f"floor {side}"] * 1e3, 2)
        add_growth(benchmark, "floor_per_nlogn", "floor", side)
    if kind == "scene":
        add_ratio(benchmark, "speedup_over_loop", name, f"loop {side}")
        add_ratio(benchmark, "speedup_over_heap", name, f"heap {side}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half(benchmark, dtype, threads):
    threads(1)
    benchmark.group = "scene 60"
    features = feature_map("scene", 60).to(dtype)
    measure(benchmark, str(dtype), lambda: merge_regions(features, backend="cpp"))
    benchmark.extra_info["memory"] = memory([60], dtype)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_two_images(benchmark, num_threads, threads):
    threads(num_threads)
    benchmark.group = "two images"
    features = torch.stack([feature_map("scene", 60)] * 2)
    measure(benchmark, f"threads {num_threads}", lambda: merge_regions(features, backend="cpp"))
    benchmark.extra_info["memory"] = memory([60, 60], torch.float32, num_threads)
    add_ratio(benchmark, "speedup", f"threads {num_threads}", "threads 1")


def test_cuts_areas_and_boxes(benchmark, threads):
    """The candidates of a new tree at 6 thresholds."""
    threads(1)
    benchmark.group = "scene 60"
    features = feature_map("scene", 60)

    def fresh():
        return merge_regions(features, backend="cpp"), {}

    measure(benchmark, "cuts", lambda tree: (tree.areas, tree.boxes, tree.cuts(THRESHOLDS)), rounds=40, setup=fresh)
    add_ratio(benchmark, "share_of_merging", "scene 60", "cuts")


def agreement(exact, other, thresholds):
    """Share of the candidates of the exact tree (of 4 patches or more) that the other tree has, and the mean of their
    best IoU with its candidates."""
    masks = []
    for tree in (exact, other):
        ids = tree.candidates(thresholds)
        masks.append(tree.node_masks(ids[tree.areas[ids] >= 4]).flatten(1).float())
    inside = masks[0] @ masks[1].T
    iou = inside / (masks[0].sum(1)[:, None] + masks[1].sum(1) - inside)
    best = iou.max(1).values if iou.numel() else torch.zeros(len(iou))
    return {
        "candidates": len(best),
        "equal": round((best == 1).float().mean().item(), 3),
        "iou": round(best.mean().item(), 3),
    }


@pytest.mark.parametrize("side", SIDES[:3])
@pytest.mark.parametrize("kind", ["scene", "noisy"])
def test_rounds(benchmark, kind, side, threads):
    """schedule="rounds" on the CPU, and its agreement with the exact tree: at the thresholds of the method, and at
    quantiles of the similarities of the exact tree, most of which are noise within one object."""
    threads(1)
    benchmark.group = f"{kind} {side}"
    features = feature_map(kind, side)
    (tree,) = measure(
        benchmark,
        f"rounds {kind} {side}",
        lambda: merge_regions(features, schedule="rounds", backend="cpp"),
        rounds=5,
    )
    (exact,) = merge_regions(features, backend="cpp")
    quantiles = exact.similarity.quantile(torch.tensor([0.5, 0.3, 0.2, 0.1])).tolist()
    benchmark.extra_info["thresholds"] = agreement(exact, tree, THRESHOLDS)
    benchmark.extra_info["quantiles"] = agreement(exact, tree, quantiles)
    benchmark.extra_info["memory"] = memory([side], torch.float32, in_rounds=True)


@pytest.mark.gpu
@pytest.mark.parametrize("schedule", ["exact", "rounds"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gpu_batch(benchmark, backend, schedule):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    operator = {"exact": OPERATOR, "rounds": ROUNDS}[schedule]
    device = torch.device("cuda")
    reasons = operator.explain(device, torch.float32)
    if reasons.get(backend, "it has no such kernel") is not None:
        pytest.skip(f"{schedule}: {reasons.get(backend, 'it has no such kernel')}")
    benchmark.group = "batch of 64, 60"
    rows = feature_map("scene", 60).to(device).reshape(-1, CHANNELS).repeat(64, 1)

    def run():
        operator(rows, None, None, [60, 60] * 64, -float("inf"), backend)
        torch.cuda.synchronize()

    name = f"{backend} {schedule}"
    measure(benchmark, name, run, rounds=5)
    benchmark.extra_info["ms_per_image"] = round(MEDIANS[name] * 1e3 / 64, 3)
