# SPDX-License-Identifier: Apache-2.0
"""merge_regions beside the loop that the field uses and a heap in numpy, in one run.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/bench_merge_regions.py --benchmark-columns=min,median,rounds

Maps of 768 channels: `scene` has objects in objects and noise as the keys of a ViT have, `noisy` more noise, `shifted`
is one direction and noise, where all similarities are close and one region grows to have hundreds of neighbours. The
literal loop runs at 28 x 28; SOHES_BENCH_LARGE=1 adds 60 x 60 (4 s) and the 200 x 200 maps of every kind. `floor_ms`
is the time to read the features once at 17 GB/s, the bandwidth of one thread of the machine that the project's figures
are from. `per_nlogn` is the time over N log2(N) relative to 28 x 28. On a GPU the batch of 64 runs too.
"""

import os
from math import log2

import numpy as np
import pytest
import torch
from merge_cases import scene_map

from sohes._binary import find_binary
from sohes.ops.merge_regions import OPERATOR, merge_regions
from sohes.ops.reference.merge_regions import grid_edges

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


def dictionary_loop(features: torch.Tensor) -> int:
    """The published way: a dictionary of edges, the maximum over all of them at every merge. float32, numpy."""
    height, width, channels = features.shape
    sums = dict(enumerate(features.reshape(-1, channels).numpy()))
    norms = {i: float(np.sqrt(x @ x)) for i, x in sums.items()}
    edges = {(a, b): float(sums[a] @ sums[b]) / (norms[a] * norms[b]) for a, b in grid_edges(height, width).tolist()}
    new = height * width
    while edges:
        a, b = max(edges, key=edges.get)
        sums[new] = sums.pop(a) + sums.pop(b)
        norms[new] = float(np.sqrt(sums[new] @ sums[new]))
        touched = [edge for edge in edges if a in edge or b in edge]
        for edge in touched:
            del edges[edge]
        for other in {region for edge in touched for region in edge} - {a, b}:
            edges[other, new] = float(sums[other] @ sums[new]) / (norms[other] * norms[new])
        new += 1
    return new


def measure(benchmark, name, function, *, features=None, rounds=15):
    result = benchmark.pedantic(function, rounds=rounds, warmup_rounds=int(rounds > 1))
    MEDIANS[name] = benchmark.stats.stats.median
    if features is not None:
        benchmark.extra_info["floor_ms"] = round(features.numel() * features.element_size() / 17e9 * 1e3, 2)
    return result


def add_ratio(benchmark, label, name, over):
    """extra_info[label] = how often `name` fits into `over`, where both ran."""
    if name in MEDIANS and over in MEDIANS:
        benchmark.extra_info[label] = round(MEDIANS[over] / MEDIANS[name], 2)


@pytest.fixture
def threads():
    """Sets the number of threads for one benchmark."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("side", SIDES[: 2 if IS_LARGE else 1])
def test_literal_loop(benchmark, side):
    benchmark.group = f"scene {side}"
    features = feature_map("scene", side)
    measure(benchmark, f"loop {side}", lambda: dictionary_loop(features), rounds=1)


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
    name, num_patches = f"{kind} {side}", side * side
    measure(
        benchmark, name, lambda: merge_regions(features, backend="cpp"), features=features, rounds=max(3, 900 // side)
    )
    scratch = find_binary().module.merge_regions_scratch([side, side], -1, CHANNELS, False, 1)
    benchmark.extra_info["memory"] = round(scratch / (4 * features.numel()), 2)
    if f"{kind} 28" in MEDIANS:
        expected = MEDIANS[f"{kind} 28"] * num_patches * log2(num_patches) / (28 * 28 * log2(28 * 28))
        benchmark.extra_info["per_nlogn"] = round(MEDIANS[name] / expected, 2)
    if kind == "scene":
        add_ratio(benchmark, "speedup_over_loop", name, f"loop {side}")
        add_ratio(benchmark, "speedup_over_heap", name, f"heap {side}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half(benchmark, dtype, threads):
    threads(1)
    benchmark.group = "scene 60"
    features = feature_map("scene", 60).to(dtype)
    measure(benchmark, str(dtype), lambda: merge_regions(features, backend="cpp"), features=features)
    scratch = find_binary().module.merge_regions_scratch([60, 60], -1, CHANNELS, True, 1)
    benchmark.extra_info["memory"] = round(scratch / (2 * features.numel()), 2)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_two_images(benchmark, num_threads, threads):
    threads(num_threads)
    benchmark.group = "two images"
    features = torch.stack([feature_map("scene", 60)] * 2)
    measure(benchmark, f"threads {num_threads}", lambda: merge_regions(features, backend="cpp"), features=features)
    add_ratio(benchmark, "speedup", f"threads {num_threads}", "threads 1")


def test_cuts_areas_and_boxes(benchmark, threads):
    """What 6 thresholds ask of a fresh tree."""
    threads(1)
    benchmark.group = "scene 60"
    features = feature_map("scene", 60)

    def fresh():
        return merge_regions(features, backend="cpp"), {}

    def read(tree):
        return tree.areas, tree.boxes, [tree.cut(threshold) for threshold in THRESHOLDS]

    benchmark.pedantic(read, setup=fresh, rounds=40)
    MEDIANS["cuts"] = benchmark.stats.stats.median
    add_ratio(benchmark, "share_of_merging", "scene 60", "cuts")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gpu_batch(benchmark, backend):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    reason = OPERATOR.explain(device, torch.float32)[backend]
    if reason is not None:
        pytest.skip(reason)
    benchmark.group = "batch of 64, 60"
    rows = feature_map("scene", 60).to(device).reshape(-1, CHANNELS).repeat(64, 1)

    def run():
        torch.ops.sohes.merge_regions(rows, None, None, [60, 60] * 64, -float("inf"), backend)
        torch.cuda.synchronize()

    measure(benchmark, backend, run, features=rows, rounds=5)
    benchmark.extra_info["ms_per_image"] = round(MEDIANS[backend] * 1e3 / 64, 3)
