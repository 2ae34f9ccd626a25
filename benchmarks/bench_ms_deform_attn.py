# SPDX-License-Identifier: Apache-2.0
"""ms_deform_attn beside the pure PyTorch form, in one run.

    OMP_NUM_THREADS=2 pytest benchmarks/bench_ms_deform_attn.py
    OMP_NUM_THREADS=1 pytest benchmarks/bench_ms_deform_attn.py     # a process of its own for each number of threads

`large`: levels 128, 64, 32, all positions as queries, 8 heads of 32 channels, 4 points. `training`: the small levels of
a smoke-test training. extra_info holds the ratio to the pure form, the rate of gathered bytes (4 corners of D channels
a point) and the peak memory of a call beyond its inputs. On a GPU the same cases run there at B=8.
"""

import ctypes
import os
import statistics
import threading
import time
from dataclasses import replace

import pytest
import torch
from ms_deform_attn_cases import LARGE, TRAINING, make_inputs, pure_pytorch

from sohes.ops.ms_deform_attn import FORWARD, ms_deform_attn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = {"large": LARGE, "training": TRAINING}
if DEVICE.type == "cuda":
    CASES["large"] = replace(LARGE, batch=8)
FLOAT, BFLOAT16 = torch.float32, torch.bfloat16
PEER_MEDIANS = {}


def step(function, direction, dtype, case):
    """A closure that runs one forward, or one forward and backward, to its end."""
    value, shapes, locations, weights, grad_output = make_inputs(case, dtype, FLOAT, device=DEVICE)
    leaves = [t.requires_grad_(direction == "train") for t in (value, locations, weights)]

    def run():
        output = function(value, shapes, locations, weights)
        if direction == "train":
            torch.autograd.grad(output, leaves, grad_output)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return run


def peak_memory(run):
    """Bytes of one call beyond what was there before: allocator's peak on a GPU, resident memory on a CPU."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    peak, done = 0, threading.Event()

    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.0005)

    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not hide what this one takes
    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max(peak - before, 0)


def peer_median(direction, name):
    """Median seconds of the pure form in float32, measured once per run just before its first rival."""
    if (direction, name) not in PEER_MEDIANS:
        run = step(pure_pytorch, direction, FLOAT, CASES[name])
        run()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        PEER_MEDIANS[direction, name] = statistics.median(times), peak_memory(run)
    return PEER_MEDIANS[direction, name]


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("direction", ["forward", "train"])
def test_ms_deform_attn(benchmark, direction, name, dtype):
    case = CASES[name]
    benchmark.group = f"{direction} {name} {DEVICE.type} x{torch.get_num_threads()}"
    peer, peer_bytes = peer_median(direction, name)
    run = step(ms_deform_attn, direction, dtype, case)
    benchmark.pedantic(run, rounds=20, warmup_rounds=3)
    gathered = case.batch * case.positions * case.heads * len(case.shapes) * case.points * 4
    gathered *= (
        case.channels * dtype.itemsize * (1 if direction == "forward" else 4)
    )  # train: + read value, add to grad
    ours = benchmark.stats.stats.median
    benchmark.extra_info.update(
        backend=FORWARD.choose("auto", DEVICE, dtype).name,
        peer_milliseconds=round(1e3 * peer, 2),
        times_faster=round(peer / ours, 1),
        gathered_gigabytes_per_second=round(gathered / ours / 1e9, 1),
        extra_megabytes=round(peak_memory(run) / 1e6, 1),
        peer_extra_megabytes=round(peer_bytes / 1e6, 1),
    )
    print(f"\n{benchmark.group} {dtype}: {1e3 * ours:.2f} ms, {benchmark.extra_info}")
