# SPDX-License-Identifier: Apache-2.0
"""merge_regions as an operator: opcheck, compile, export, determinism, memory and errors."""

import re
from math import inf

import numpy as np
import pytest
import torch
from merge_cases import scene_map
from torch.library import opcheck

from sohes.ops._binary import find_binary
from sohes.ops._library import BackendUnavailable
from sohes.ops.merge_regions import merge_regions, merge_regions_graph, run_cpp
from sohes.ops.reference.merge_regions import grid_edges, merge_regions_loop

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NEEDS_BINARY = pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason or "")


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
            rows = features[image].reshape(-1, 8).numpy()
            expected = merge_regions_loop(rows, grid_edges(height, width))
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
@pytest.mark.parametrize("in_rounds", [False, True])
def test_extra_memory_is_within_two_and_a_half_times_the_features(in_rounds):
    scratch = find_binary().module.merge_regions_scratch
    for side in (28, 60, 100, 200):
        features = side * side * 768
        assert scratch([side, side], -1, 768, False, 1, in_rounds) <= 1.0 * features * 4
        assert scratch([side, side], -1, 768, True, 1, in_rounds) <= 2.5 * features * 2
        assert scratch([side, side] * 2, -1, 768, False, 2, in_rounds) <= 1.0 * 2 * features * 4


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
