# SPDX-License-Identifier: Apache-2.0
"""Time of operators on packed masks beside pycocotools, a matrix product, and the usual Python loops.

    python -m pytest benchmarks/bench_mask_ops.py --benchmark-group-by=group --benchmark-columns=min,median,rounds

1000 masks of 480 x 640 on one thread, in about a minute; with SOHES_BENCH_LARGE=1 also of 1500 x 2250 (four minutes,
5 GB). The input is a contiguous bool array [N, H, W]. Peers that take seconds run once. `floor_ms` is the time to move
each byte of the input, and of the packed words if there are any, once at 17 GB/s, the bandwidth of one thread of the
machine of the documented figures; `over_floor` is the ratio of the measured time to it; `peak_mb` is the memory that a
run adds. The chain from logits to labels runs at both sizes, and on a GPU if there is one.
"""

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mask_cases import object_logits
from peak_memory import peak_memory
from pycocotools import mask as coco

from sohes.ops.mask_overlap import mask_overlap
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, nms_masks

SIZES = [(480, 640)] + [(1500, 2250)] * (os.environ.get("SOHES_BENCH_LARGE") == "1")
CHAIN_SIZES = [(480, 640), (1500, 2250)]
CHAIN_LOGITS = (120, 160)
NUM_MASKS = 1000
SLOW_LOOP_MASKS = 100  # the loops over pairs are measured on this many


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def dense(request):
    """bool [N, H, W] in the memory layout of model outputs."""
    height, width = request.param
    logits = object_logits(NUM_MASKS, height // 4, width // 4)
    return PackedMasks.from_logits(logits, (height, width)).to_dense()


@pytest.fixture
def threads():
    """Sets the number of threads for one benchmark."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def measure(benchmark, function: Callable, *, seconds: float, num_bytes: int = 0):
    """One warm-up call, then as many as fit in about two seconds; a call longer than a second runs once."""
    rounds = max(1, min(20, int(2 / seconds)))
    result = benchmark.pedantic(function, rounds=rounds, warmup_rounds=int(seconds < 1))
    if num_bytes and benchmark.stats:
        floor = num_bytes / 17e9
        benchmark.extra_info["floor_ms"] = round(floor * 1e3, 1)
        benchmark.extra_info["over_floor"] = round(benchmark.stats.stats.median / floor, 2)
    return result


def once(dense: torch.Tensor) -> int:
    """Bytes of dense masks and of the same masks packed, each moved once."""
    return dense.numel() + dense.numel() // 8


def scale(dense: torch.Tensor) -> float:
    """Number of pixels relative to 480 x 640."""
    return dense[0].numel() / (480 * 640)


def by_columns(dense: torch.Tensor) -> np.ndarray:
    """uint8 [H, W, N] in Fortran order, as pycocotools needs it."""
    return np.asfortranarray(dense.permute(1, 2, 0).numpy().view(np.uint8))


# --- RLE ---


def encode_sohes(dense):
    return PackedMasks.from_dense(dense).to_rle()


def encode_pycocotools(dense):
    """A hundred masks at a time, to keep the copies small."""
    return [rle for part in dense.split(100) for rle in coco.encode(by_columns(part))]


def encode_loop(dense):
    """The usual loop: positions of changes of one mask at a time, as plain run lengths, compressed by pycocotools."""
    height, width = dense.shape[1:]
    rles = []
    for flat in dense.transpose(1, 2).flatten(1):
        changes = torch.nonzero(flat[1:] ^ flat[:-1]).flatten() + 1
        ends = torch.cat((flat.new_zeros(1, dtype=torch.int64), changes, changes.new_tensor([height * width])))
        runs = ([0] if flat[0] else []) + ends.diff().tolist()
        rles.append(coco.frPyObjects({"size": [height, width], "counts": runs}, height, width))
    return rles


@pytest.mark.parametrize(("encode", "seconds"), [(encode_sohes, 0.06), (encode_pycocotools, 0.5), (encode_loop, 3)])
def test_encode(benchmark, threads, dense, encode, seconds):
    threads(1)
    benchmark.group = f"encode {list(dense.shape)}"
    rles = measure(benchmark, lambda: encode(dense), seconds=seconds * scale(dense), num_bytes=once(dense))
    expected = coco.encode(by_columns(dense[:5]))
    assert [coco.decode(rle).sum() for rle in rles[:5]] == [coco.decode(rle).sum() for rle in expected]


def test_encode_pycocotools_from_columns(benchmark, threads, dense):
    """pycocotools without the transposition: the arrays are in its order already."""
    threads(1)
    benchmark.group = f"encode {list(dense.shape)}"
    columns = by_columns(dense)
    measure(benchmark, lambda: coco.encode(columns), seconds=0.2 * scale(dense), num_bytes=once(dense))


def decode_sohes(rles):
    return PackedMasks.from_rle(rles).to_dense()


def decode_pycocotools(rles):
    """Arrays in column order, which need no transposition."""
    return [coco.decode(rles[start : start + 100]) for start in range(0, len(rles), 100)]


@pytest.mark.parametrize(("decode", "seconds"), [(decode_sohes, 0.1), (decode_pycocotools, 0.7)])
def test_decode(benchmark, threads, dense, decode, seconds):
    threads(1)
    benchmark.group = f"decode {list(dense.shape)}"
    rles = encode_sohes(dense)
    measure(benchmark, lambda: decode(rles), seconds=seconds * scale(dense), num_bytes=once(dense))


# --- all pairs ---


def overlap_sohes(dense):
    masks = PackedMasks.from_dense(dense)
    return mask_overlap(masks, masks)


def overlap_pycocotools(dense):
    """IoU; pycocotools does not return the intersection."""
    rles = encode_pycocotools(dense)
    return coco.iou(rles, rles, np.zeros(len(rles), np.uint8))


def overlap_matmul(dense):
    flat = dense.flatten(1).float()
    return flat @ flat.T


@pytest.mark.parametrize(("overlap", "seconds"), [(overlap_sohes, 0.06), (overlap_pycocotools, 1), (overlap_matmul, 5)])
def test_overlap(benchmark, threads, dense, overlap, seconds):
    threads(1)
    benchmark.group = f"overlap of all pairs {list(dense.shape)}"
    if overlap is overlap_matmul and dense[0].numel() > 1 << 20:
        pytest.skip("a minute and 13 GB at this size")
    measure(benchmark, lambda: overlap(dense), seconds=seconds * scale(dense), num_bytes=once(dense))


def test_overlap_alone(benchmark, threads, dense):
    """All pairs of masks that are packed already."""
    threads(1)
    benchmark.group = f"overlap of all pairs {list(dense.shape)}"
    masks = PackedMasks.from_dense(dense)
    measure(benchmark, lambda: mask_overlap(masks, masks), seconds=0.02 * scale(dense))


def test_iou_pycocotools_alone(benchmark, threads, dense):
    """All pairs of masks that are encoded already."""
    threads(1)
    benchmark.group = f"overlap of all pairs {list(dense.shape)}"
    rles = encode_sohes(dense)
    measure(benchmark, lambda: coco.iou(rles, rles, np.zeros(len(rles), np.uint8)), seconds=0.5 * scale(dense) ** 0.5)


# --- duplicates ---


def nms_sohes(dense):
    return nms_masks(PackedMasks.from_dense(dense), 0.9)


def nms_of_neighbours(dense):
    """The usual loop over dense masks, largest first, which compares each only with the four that follow it in size."""
    areas = dense.flatten(1).sum(1)
    order = areas.argsort(descending=True, stable=True).tolist()
    alive = [True] * len(order)
    for place, index in enumerate(order):
        for other in range(place + 1, min(place + 5, len(order))) if alive[place] else ():
            shared = int((dense[index] & dense[order[other]]).sum())
            alive[other] &= shared <= 0.9 * int(areas[index] + areas[order[other]] - shared)
    return torch.tensor([index for index, kept in zip(order, alive, strict=True) if kept])


@pytest.mark.parametrize(("nms", "seconds"), [(nms_sohes, 0.06), (nms_of_neighbours, 0.4)])
def test_duplicates(benchmark, threads, dense, nms, seconds):
    threads(1)
    benchmark.group = f"duplicates {list(dense.shape)}"
    kept = measure(benchmark, lambda: nms(dense), seconds=seconds * scale(dense), num_bytes=once(dense))
    assert 0 < len(kept) <= len(dense)


# --- forest ---


def forest_sohes(dense):
    return build_forest(PackedMasks.from_dense(dense), 0.9)


def forest_loop(dense):
    """The usual loop over pairs of dense masks, smallest parent first."""
    areas = [int(mask.sum()) for mask in dense]
    parents = []
    for child, mask in enumerate(dense):
        parent = -1
        for other in range(len(dense)):
            if areas[other] <= areas[child] or (parent >= 0 and areas[other] >= areas[parent]):
                continue
            shared = int((mask & dense[other]).sum())
            if shared >= 0.9 * areas[child] and shared < 0.9 * areas[other]:
                parent = other
        parents.append(parent)
    return torch.tensor(parents)


@pytest.mark.parametrize(("forest", "seconds"), [(forest_sohes, 0.01), (forest_loop, 1)])
def test_forest_of_few(benchmark, threads, dense, forest, seconds):
    threads(1)
    few = dense[:SLOW_LOOP_MASKS]
    benchmark.group = f"forest {list(few.shape)}"
    parents = measure(benchmark, lambda: forest(few), seconds=seconds * scale(dense), num_bytes=once(few))
    assert torch.equal(parents, forest_sohes(few))


def test_forest(benchmark, threads, dense):
    threads(1)
    benchmark.group = f"forest {list(dense.shape)}"
    measure(benchmark, lambda: forest_sohes(dense), seconds=0.06 * scale(dense), num_bytes=once(dense))


# --- from logits to labels ---


def chain_sohes(logits, size):
    masks = PackedMasks.from_logits(logits, size)
    masks = masks[nms_masks(masks, 0.9)]
    scores = torch.ones(len(masks), device=logits.device)
    return Forest(masks, scores, build_forest(masks, 0.9)).to_coco(image_id=1)


def chain_usual(logits, size):
    """The same labels by upsampled logits and pycocotools."""
    upsampled = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    rles = coco.encode(by_columns(upsampled > 0))
    areas = np.concatenate([coco.area(rles[i : i + 200]) for i in range(0, len(rles), 200)])  # it overflows past 255
    areas = areas.astype(np.int64)
    order = np.argsort(-areas, kind="stable")
    rles, areas = [rles[i] for i in order], areas[order]
    iou = coco.iou(rles, rles, np.zeros(len(rles), np.uint8))
    alive = np.ones(len(rles), bool)
    for index in range(len(rles)):
        if alive[index]:
            alive[index + 1 :] &= iou[index, index + 1 :] <= 0.9
    kept = np.flatnonzero(alive)
    shared = iou * (areas[:, None] + areas) / (1 + iou)
    inside = (shared >= 0.9 * areas[:, None] - 1e-6) & (shared < 0.9 * areas - 1e-6)
    inside = inside[np.ix_(kept, kept)]
    last = len(kept) - 1 - inside[:, ::-1].argmax(1)
    parents = np.where(inside.any(1), last, -1)
    return [{"segmentation": rles[i], "parent": int(parent)} for i, parent in zip(kept, parents, strict=True)]


@pytest.mark.parametrize("size", CHAIN_SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("chain", "seconds"), [(chain_sohes, 0.06), (chain_usual, 3)])
def test_chain(benchmark, threads, chain, seconds, num_threads, size):
    threads(num_threads)
    if chain is chain_usual and size != CHAIN_SIZES[0]:
        pytest.skip("needs 13 GB for the upsampled logits")
    logits = object_logits(NUM_MASKS, *CHAIN_LOGITS)
    benchmark.group = f"logits {list(logits.shape)} to labels at {size[0]} x {size[1]}"
    num_bytes = 4 * logits.numel() + NUM_MASKS * size[0] * size[1] // 8
    labels = measure(
        benchmark, lambda: chain(logits, size), seconds=seconds * size[0] * size[1] / (480 * 640), num_bytes=num_bytes
    )
    peak = peak_memory(lambda: chain(logits, size), logits.device)
    benchmark.extra_info["peak_mb"] = None if peak is None else peak >> 20
    assert len(labels) == len(chain_sohes(logits, size))


@pytest.mark.gpu
@pytest.mark.parametrize("size", CHAIN_SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_chain_on_a_gpu(benchmark, size):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    logits = object_logits(NUM_MASKS, *CHAIN_LOGITS).cuda()
    benchmark.group = f"logits {list(logits.shape)} to labels at {size[0]} x {size[1]} on a GPU"
    chain_sohes(logits, size)
    labels = benchmark(lambda: chain_sohes(logits, size))  # returns text on the host: the GPU is done
    benchmark.extra_info["peak_mb"] = peak_memory(lambda: chain_sohes(logits, size), logits.device) >> 20
    assert labels == chain_sohes(logits.cpu(), size)
