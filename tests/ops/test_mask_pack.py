# SPDX-License-Identifier: Apache-2.0
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mask_cases import SIZES, mixed, object_logits

from sohes.ops import _words
from sohes.ops._binary import find_binary
from sohes.ops.mask_pack import mask_from_index, mask_pack, mask_pack_logits, mask_stats, mask_unpack
from sohes.ops.reference import mask_pack as reference
from sohes.ops.reference.mask_pack import bilinear_table, num_words

BACKENDS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason)),
]
needs_binary = pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason)


def bits_of(dense):
    """int64 words of bool [N, H, W], by Python integers: an independent implementation of the layout."""
    words = num_words(tuple(dense.shape[1:]))
    rows = []
    for mask in dense.numpy():
        number = sum(1 << int(i) for i in np.flatnonzero(mask.T))
        values = [(number >> (64 * k)) & (2**64 - 1) for k in range(words)]
        rows.append([value - 2**64 if value >= 2**63 else value for value in values])
    return torch.tensor(rows, dtype=torch.int64).reshape(len(dense), words)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_pack_and_unpack(backend, size):
    dense = mixed(0, *size)
    words, areas, boxes = mask_pack(dense, backend)
    assert torch.equal(words, bits_of(dense))
    assert torch.equal(areas, dense.sum((1, 2)))
    for mask, box in zip(dense, boxes.tolist(), strict=True):
        y, x = mask.nonzero().unbind(1)
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
        assert box == [int(side) for side in expected]
    assert torch.equal(mask_unpack(words, size, backend), dense)
    again = mask_stats(words, size, backend)
    assert torch.equal(again[0], areas)
    assert torch.equal(again[1], boxes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_images_take_several_strips(backend):
    dense = mixed(1, 70, 2100, each=1)
    words, areas, _ = mask_pack(dense, backend)
    assert torch.equal(areas, dense.sum((1, 2)))
    assert torch.equal(mask_unpack(words, (70, 2100), backend), dense)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_and_values(backend):
    dense = mixed(2, 30, 41)
    expected = mask_pack(dense)[0]
    layouts = {
        "masks last": dense.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "columns first": dense.transpose(1, 2).contiguous().transpose(1, 2),
        "columns first, cut": F.pad(dense, (0, 0, 2, 3)).transpose(1, 2).contiguous().transpose(1, 2)[:, 2:-3],
        "a window": F.pad(dense, (3, 5, 2, 1))[:, 2:-1, 3:-5],
        "every second": dense.repeat_interleave(2, 2)[:, :, ::2],
        "values": dense.to(torch.uint8) * 200,
    }
    for name, layout in layouts.items():
        assert torch.equal(mask_pack(layout, backend)[0], expected), name
    one = dense[:1].expand(5, -1, -1)
    assert torch.equal(mask_pack(one, backend)[0], expected[:1].expand(5, -1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pinned(backend):
    mask = torch.zeros(1, 3, 40, dtype=torch.bool)
    mask[0, 2, 0] = mask[0, 1, 21] = mask[0, 0, 39] = True
    words, areas, boxes = mask_pack(mask, backend)
    assert words.tolist() == [[1 << 2, (1 << (21 * 3 + 1 - 64)) + (1 << (39 * 3 - 64))]]
    assert areas.tolist() == [3]
    assert boxes.tolist() == [[0, 0, 40, 3]]


# --- logits ---

SCALES = [((4, 5), (16, 20)), ((7, 3), (50, 31)), ((9, 9), (9, 9)), ((20, 30), (7, 9)), ((1, 1), (5, 6)),
          ((70, 66), (64, 200)), ((3, 5), (0, 4)), ((1, 8), (3, 8))]  # fmt: skip


def rough_logits(n, h, w, seed=0):
    logits = torch.randn(n, h, w, generator=torch.Generator().manual_seed(seed))
    return torch.cat((logits, F.avg_pool2d(logits, 3, 1, 1), object_logits(n, h, w, seed), logits.round()))


@needs_binary
@pytest.mark.parametrize("threshold", [0.0, -0.3, 1.0])
@pytest.mark.parametrize(("source", "target"), SCALES)
def test_logits_agree_to_the_bit(source, target, threshold):
    logits = rough_logits(4, *source)
    expected = mask_pack_logits(logits, target, threshold, "reference")
    for got, want in zip(mask_pack_logits(logits, target, threshold, "cpp"), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("source", "target"), SCALES)
def test_logits_are_torchs_bilinear_upsampling(backend, source, target):
    if 0 in target:
        return
    logits = rough_logits(3, *source)
    upsampled = F.interpolate(logits[:, None], size=target, mode="bilinear", align_corners=False)[:, 0]
    dense = mask_unpack(mask_pack_logits(logits, target, 0.25, backend)[0], target)
    # Torch rounds its weights and products in an order of its own, which can tip only values next to the threshold.
    clear = (upsampled - 0.25).abs() > 1e-5
    assert torch.equal(dense[clear], (upsampled > 0.25)[clear])
    assert clear.float().mean() > 0.8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_other_types(backend, dtype):
    logits = rough_logits(2, 6, 7).to(dtype)
    words = mask_pack_logits(logits, (12, 21), 0.0, backend)[0]
    assert torch.equal(words, mask_pack_logits(logits.float(), (12, 21), 0.0, "reference")[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_that_are_not_numbers(backend):
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[[nan, 1.0]], [[-inf, inf]], [[inf, inf]], [[1e-40, 1e-40]], [[0.0, 1.0]], [[nan, nan]]])
    dense = mask_unpack(mask_pack_logits(logits, (1, 4), 0.0, backend)[0], (1, 4))
    # Outputs 1 and 2 weigh both pixels 3 : 1 and 1 : 3.
    expected = [[0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert dense[:, 0].int().tolist() == expected


def test_bilinear_table():
    index, weight = bilinear_table(2, 4)
    assert index.tolist() == [0, 0, 0, 1]
    assert weight.tolist() == [0.0, 0.25, 0.75, 0.25]


# --- label maps ---


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_from_index(backend, size):
    index = torch.randint(-1, 4, size, generator=torch.Generator().manual_seed(3))
    dense = mask_unpack(mask_from_index(index, 5, backend), size)
    assert torch.equal(dense, index == torch.arange(5)[:, None, None])


# --- as operators ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    dense = mixed(4, 9, 8, each=1)
    words = mask_pack(dense)[0]
    index = torch.randint(-1, 3, (9, 8))
    calls = {
        "mask_pack": (dense,),
        "mask_unpack": (words, 9, 8),
        "mask_stats": (words, 9, 8),
        "mask_pack_logits": (torch.randn(3, 4, 5), 9, 8, 0.5),
        "mask_from_index": (index, 3),
    }
    # Autograd has nothing to do here, and aot tracing is covered by the schema and fake tensor tests.
    tests = ("test_schema", "test_faketensor")
    for name, args in calls.items():
        torch.library.opcheck(getattr(torch.ops.sohes, name).default, (*args, backend), test_utils=tests)


def test_compiles():
    compiled = torch.compile(
        lambda dense: mask_unpack(mask_pack(dense)[0], (9, 8)), fullgraph=True, backend="aot_eager"
    )
    dense = mixed(5, 9, 8, each=1)
    assert torch.equal(compiled(dense), dense)


@needs_binary
def test_same_for_any_number_of_threads():
    dense, logits = mixed(6, 65, 70, each=4), rough_logits(5, 9, 11)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append((*mask_pack(dense, "cpp"), *mask_pack_logits(logits, (64, 80), 0.0, "cpp")))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_messages():
    with pytest.raises(ValueError, match=r"^mask_pack: expected bool or uint8 \[N, H, W\], got torch.bool \[3, 4\]$"):
        mask_pack(torch.zeros(3, 4, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"^mask_pack: expected bool or uint8 \[N, H, W\], got torch.int32 \[1, 3, 4\]$"
    ):
        mask_pack(torch.zeros(1, 3, 4, dtype=torch.int32))
    with pytest.raises(
        ValueError, match=r"^mask_pack_logits: expected floating-point \[N, h, w\], got torch.int64 \[1, 2"
    ):
        mask_pack_logits(torch.zeros(1, 2, 2, dtype=torch.int64), (4, 4), 0.0)
    with pytest.raises(ValueError, match=r"^mask_pack_logits: cannot upsample \[1, 0, 2\] to \[4, 4\]$"):
        mask_pack_logits(torch.zeros(1, 0, 2), (4, 4), 0.0)


@needs_binary
def test_memory_that_another_set_of_masks_had(monkeypatch):
    """Memory of a deleted set is reused with any content; memory of a live set is not."""
    monkeypatch.setattr(_words, "KEPT_BYTES", (1, 1 << 20))
    monkeypatch.setattr(_words, "_kept", deque(maxlen=1))
    dense = [mixed(seed, 65, 70) for seed in range(4)]
    expected = [reference.mask_pack(one) for one in dense]
    words = mask_pack(dense[0], "cpp")[0]
    view = words[3:5]  # keeps the memory
    del words
    assert len(_words._kept) == 0
    second = mask_pack(dense[1], "cpp")
    assert torch.equal(view, expected[0][0][3:5])
    address = second[0].data_ptr()
    del second
    third = mask_pack(dense[2], "cpp")
    assert third[0].data_ptr() == address
    fewer = mask_pack(dense[3][:20], "cpp")
    for got, wanted in ((third, expected[2]), (fewer, [part[:20] for part in expected[3]])):
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
