# SPDX-License-Identifier: Apache-2.0
"""Time of ms_deform_attn beside the pure PyTorch form, and on a GPU beside Deformable DETR's algorithm.

    OMP_NUM_THREADS=2 pytest benchmarks/bench_ms_deform_attn.py
    OMP_NUM_THREADS=1 pytest benchmarks/bench_ms_deform_attn.py     # a process of its own for each number of threads

`large`: levels 128, 64, 32, all positions as queries, 8 heads of 32 channels, 4 points. `training`: the small levels of
a smoke-test training. On a GPU `large` runs at B=8. `locations`: the operator on sampling locations and weights.
`offsets`: on the offsets and logits of a layer; both sides also compute the softmax and the locations.

extra_info holds the ratio to each peer, the rate of gathered bytes (4 corners of D channels per point; on a GPU also
relative to the bandwidth of a copy), and the peak memory of a call beyond its inputs, beside the size of its outputs
and gradients.
"""

import statistics
import time
from dataclasses import replace

import pytest
import torch
from deformable_detr_form import deformable_detr_form, why_not
from ms_deform_attn_cases import LARGE, TRAINING, make_inputs, make_raw_inputs, pure_pytorch
from peak_memory import peak_memory

from sohes.ops.ms_deform_attn import FORWARD, ms_deform_attn
from sohes.ops.ms_deform_attn_fused import ms_deform_attn_fused
from sohes.ops.reference.ms_deform_attn import place_points

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CASES = {"large": LARGE, "training": TRAINING}
FLOAT = torch.float32
PEER_RESULTS = {}


def pure_from_offsets(value, spatial_shapes, reference_points, offsets, logits):
    flat = [side for shape in spatial_shapes for side in shape]
    return pure_pytorch(value, spatial_shapes, *place_points(flat, reference_points, offsets, logits))


FUNCTIONS = {"locations": (ms_deform_attn, pure_pytorch), "offsets": (ms_deform_attn_fused, pure_from_offsets)}


def step(function, form, direction, dtype, case, device):
    """(closure that runs one forward, or forward and backward, and waits for it; bytes of its results)"""
    make = make_inputs if form == "locations" else make_raw_inputs
    value, shapes, *points, grad_output = make(case, dtype, FLOAT, device=device)
    leaves = [t.requires_grad_(direction == "train") for t in (value, *points[-2:])]

    def run():
        output = function(value, shapes, *points)
        if direction == "train":
            torch.autograd.grad(output, leaves, grad_output.to(output.dtype))
        if device.type == "cuda":
            torch.cuda.synchronize()

    results = [grad_output, *(leaves if direction == "train" else [])]
    return run, sum(t.nbytes for t in results)


def median_and_peak(run, device, rounds=5):
    """Median seconds, and bytes of memory, of a peer."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), peak_memory(run, device)


def peer(form, direction, name, case, device):
    """The pure form in float32, measured once per run, just before the first other form."""
    key = (form, direction, name, device.type)
    if key not in PEER_RESULTS:
        run, _ = step(FUNCTIONS[form][1], form, direction, FLOAT, case, device)
        PEER_RESULTS[key] = median_and_peak(run, device)
    return PEER_RESULTS[key]


def measure(benchmark, form, direction, name, case, dtype, device):
    where = f"{device.type} x{torch.get_num_threads()}" if device.type == "cpu" else device.type
    benchmark.group = f"{direction} {name} {form} {where}"
    seconds, peak = peer(form, direction, name, case, device)
    run, result_bytes = step(FUNCTIONS[form][0], form, direction, dtype, case, device)
    benchmark.pedantic(run, rounds=20, warmup_rounds=3)
    ours = benchmark.stats.stats.median
    gathered = case.batch * case.positions * case.heads * len(case.shapes) * case.points * 4
    # Training also reads each corner again and adds to its gradient.
    gathered *= case.channels * dtype.itemsize * (1 if direction == "forward" else 4)
    extra = peak_memory(run, device)
    benchmark.extra_info.update(
        backend=FORWARD.choose("auto", device, dtype).name,
        peer_milliseconds=round(1e3 * seconds, 2),
        times_faster=round(seconds / ours, 1),
        gathered_gigabytes_per_second=round(gathered / ours / 1e9, 1),
        results_megabytes=round(result_bytes / 1e6, 1),
        extra_megabytes=None if extra is None else round(extra / 1e6, 1),
        peer_extra_megabytes=None if peak is None else round(peak / 1e6, 1),
    )
    return ours, gathered


def report(benchmark, dtype):
    print(f"\n{benchmark.group} {dtype}: {1e3 * benchmark.stats.stats.median:.2f} ms, {benchmark.extra_info}")


@pytest.mark.parametrize("dtype", [FLOAT, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("direction", ["forward", "train"])
@pytest.mark.parametrize("form", FUNCTIONS)
def test_ms_deform_attn(benchmark, form, direction, name, dtype):
    measure(benchmark, form, direction, name, CASES[name], dtype, CPU)
    report(benchmark, dtype)


def copy_bytes_per_second():
    """Bandwidth of a copy of 1 GB on the GPU, reads and writes counted."""
    source = torch.empty(1 << 28, device=CUDA)
    target = torch.empty_like(source)
    seconds, _ = median_and_peak(lambda: (target.copy_(source), torch.cuda.synchronize()), CUDA)
    return 2 * source.nbytes / seconds


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FLOAT, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("direction", ["forward", "train"])
def test_beside_deformable_detr_on_a_gpu(benchmark, direction, dtype):
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    case = replace(LARGE, batch=8)
    theirs_run, _ = step(deformable_detr_form, "locations", direction, FLOAT, case, CUDA)
    expected = deformable_detr_form(*make_inputs(LARGE, device=CUDA)[:4])
    torch.testing.assert_close(ms_deform_attn(*make_inputs(LARGE, device=CUDA)[:4]), expected, rtol=1e-4, atol=1e-4)
    theirs, theirs_peak = median_and_peak(theirs_run, CUDA, rounds=20)
    ours, gathered = measure(benchmark, "locations", direction, "large", case, dtype, CUDA)
    benchmark.extra_info.update(
        deformable_detr_milliseconds=round(1e3 * theirs, 2),
        times_faster_than_deformable_detr=round(theirs / ours, 1),
        deformable_detr_extra_megabytes=round(theirs_peak / 1e6, 1),
        share_of_a_copy=round(gathered / ours / copy_bytes_per_second(), 2),
    )
    report(benchmark, dtype)
