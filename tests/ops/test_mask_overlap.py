# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from mask_cases import SIZES, mixed

from sohes.ops._library import BackendUnavailable
from sohes.ops.mask_overlap import _overlap, mask_overlap
from sohes.structures.masks import PackedMasks

BACKENDS = ["reference", "cpp", "cuda", "triton"]


def device_for(backend):
    """A device on which the backend runs; skips the test with the reason if there is none."""
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    reasons = [_overlap.explain(device, torch.int64)[backend] for device in devices]
    for device, reason in zip(devices, reasons, strict=True):
        if reason is None:
            return device
    pytest.skip(reasons[-1])


def brute_force(a, b):
    return (a[:, None] & b[None]).sum((2, 3))


# 1. Forward on every backend and case; there is one dtype.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_forward(backend, size):
    device = device_for(backend)
    a, b = mixed(0, *size, each=1), mixed(1, *size, each=2)
    packed_a, packed_b = PackedMasks.from_dense(a).to(device), PackedMasks.from_dense(b).to(device)
    assert torch.equal(mask_overlap(packed_a, packed_b, backend).cpu(), brute_force(a, b))
    assert torch.equal(mask_overlap(packed_b, packed_b, backend).cpu(), brute_force(b, b))


@pytest.mark.parametrize("backend", ["reference", "cpp", "cuda"])
def test_more_masks_than_a_tile_and_more_words_than_a_strip(backend):
    device = device_for(backend)
    dense = mixed(2, 600, 500, each=5)  # 40 masks of 4688 words
    masks = PackedMasks.from_dense(dense).to(device)
    flat = dense.flatten(1).double()
    assert torch.equal(mask_overlap(masks, masks, backend).cpu(), (flat @ flat.T).long())
    assert torch.equal(mask_overlap(masks[:33], masks[5:], backend).cpu(), (flat[:33] @ flat[5:].T).long())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_no_masks(backend, n, m):
    device = device_for(backend)
    masks = PackedMasks.from_dense(mixed(0, 8, 9)).to(device)
    overlap = mask_overlap(masks[:n], masks[:m], backend)
    assert overlap.shape == (n, m)
    assert overlap.dtype == torch.int64


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_words(backend):
    device = device_for(backend)
    dense = mixed(3, 20, 30)
    masks = PackedMasks.from_dense(dense).to(device)
    assert torch.equal(mask_overlap(masks[::2], masks[1::3], backend).cpu(), brute_force(dense[::2], dense[1::3]))
    wide = torch.cat((masks.words, masks.words), 1)
    half = PackedMasks(wide[:, : masks.words.shape[1]], masks.size)
    assert torch.equal(mask_overlap(half, masks, backend).cpu(), brute_force(dense, dense))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_masks_with_all(backend):
    """Both sides begin at the same memory, but are not one set."""
    dense = mixed(6, 40, 50)
    masks = PackedMasks.from_dense(dense).to(device_for(backend))
    words, boxes = masks.words, masks.boxes
    assert torch.equal(_overlap(words[:5], boxes[:5], words, boxes, 40, backend).cpu(), brute_force(dense[:5], dense))
    assert torch.equal(_overlap(words, boxes, words[:5], boxes[:5], 40, backend).cpu(), brute_force(dense, dense[:5]))


# 2. Pinned by hand.


@pytest.mark.parametrize("backend", BACKENDS)
def test_pinned(backend):
    device = device_for(backend)
    left, right = [[1, 1, 0], [1, 0, 0]], [[0, 1, 1], [0, 0, 1]]
    masks = PackedMasks.from_dense(torch.tensor([left, right], dtype=torch.bool)).to(device)
    assert masks.words.tolist() == [[0b000111], [0b110100]]  # columns (1, 1), (1, 0), (0, 0) and (0, 0), (1, 0), (1, 1)
    assert mask_overlap(masks, masks, backend).tolist() == [[3, 1], [1, 3]]


# 3. Properties.


def test_diagonal_is_the_area_and_transposed_is_swapped():
    a, b = (PackedMasks.from_dense(mixed(seed, 33, 47)) for seed in (4, 5))
    assert torch.equal(mask_overlap(a, a).diagonal(), a.areas)
    assert torch.equal(mask_overlap(a, b), mask_overlap(b, a).T)
    assert (mask_overlap(a, b) <= torch.minimum(a.areas[:, None], b.areas)).all()


# 4. and 5. Backward and gradcheck: there is nothing to differentiate.


def test_no_gradient():
    masks = PackedMasks.from_dense(mixed(6, 5, 5))
    assert not mask_overlap(masks, masks).requires_grad


# 6. opcheck.


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_opcheck(backend):
    device_for(backend)
    a, b = (PackedMasks.from_dense(mixed(seed, 9, 11, each=1)) for seed in (7, 8))
    args = (a.words, a.boxes, b.words, b.boxes, 9, backend)
    torch.library.opcheck(torch.ops.sohes.mask_overlap.default, args)


# 7. Compile and export, without a recompile on a second size.


def overlap_of(words_a, boxes_a, words_b, boxes_b):
    return torch.ops.sohes.mask_overlap(words_a, boxes_a, words_b, boxes_b, 16) * 2


def inputs(num_a, num_b):
    a, b = (PackedMasks.from_dense(mixed(n, 16, 24, each=1)[:n]) for n in (num_a, num_b))
    return a.words, a.boxes, b.words, b.boxes


def test_compile():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(overlap_of, fullgraph=True, dynamic=True, backend=counter)
    for sizes in ((3, 5), (7, 2)):
        assert torch.equal(compiled(*inputs(*sizes)), overlap_of(*inputs(*sizes)))
    assert counter.frame_count == 1


def test_export():
    class Module(torch.nn.Module):
        def forward(self, words_a, boxes_a, words_b, boxes_b):
            return overlap_of(words_a, boxes_a, words_b, boxes_b)

    masks = [{0: torch.export.Dim(name)} for name in ("N", "N", "M", "M")]
    program = torch.export.export(Module(), inputs(3, 4), dynamic_shapes=masks)
    assert torch.equal(program.module()(*inputs(5, 6)), overlap_of(*inputs(5, 6)))


# 8. Determinism.


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_same_for_any_number_of_threads(backend):
    device_for(backend)
    masks = PackedMasks.from_dense(mixed(9, 65, 70, each=20))
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(mask_overlap(masks, masks, backend))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# 9. Messages.


def test_messages():
    a, b = PackedMasks.empty((3, 4)), PackedMasks.empty((4, 3))
    with pytest.raises(ValueError, match=r"^mask_overlap: expected masks of one size, got \(3, 4\) and \(4, 3\)$"):
        mask_overlap(a, b)
    with pytest.raises(ValueError, match=r"^mask_overlap: expected one device, got cpu and meta$"):
        mask_overlap(a, a.to("meta"))
    message = "unknown backend 'gpu', expected one of: auto, cpp, cuda, triton, reference"
    with pytest.raises(ValueError, match=f"^mask_overlap: {message}$"):
        mask_overlap(a, a, backend="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match=r"^mask_overlap: backend 'cuda' cannot run on cpu torch\.int64: "):
            mask_overlap(a, a, backend="cuda")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="already under the interpreter")
def test_kernel_under_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton", __file__]
    env = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout
