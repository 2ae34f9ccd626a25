# SPDX-License-Identifier: Apache-2.0
"""The mask operators on a CUDA device against their references on the CPU: equal bit by bit.

Without a GPU these are skipped; tests/test_sanitizers.py runs the same kernels on a device in C++, without Python.
"""

import pytest
import torch
import torch.nn.functional as F
from mask_cases import SIZES, mixed, object_logits

from sohes.ops import mask_from_index, mask_pack, mask_pack_logits, mask_regions, mask_rle, mask_stats, mask_unpack
from sohes.ops._library import why_not_cuda
from sohes.ops.mask_select import mask_nms, mask_parents
from sohes.ops.reference import mask_pack as reference
from sohes.ops.reference import mask_rle as rle_reference
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, nms_masks

WHY_NOT = why_not_cuda(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.int64)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


def equal(got, expected):
    return all(a.is_cuda and torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_dense_both_ways(size):
    dense = mixed(0, *size)
    packed = reference.mask_pack(dense)
    assert equal(mask_pack(dense.cuda(), "cuda"), packed)
    assert equal(mask_stats(packed[0].cuda(), size, "cuda"), packed[1:])
    assert equal([mask_unpack(packed[0].cuda(), size, "cuda")], [dense])
    index = torch.randint(-1, 4, size, generator=torch.Generator().manual_seed(3))
    words = mask_from_index(index.cuda(), 5, "cuda")
    assert equal([words], [reference.mask_from_index(index, 5)])


def test_any_strides():
    dense = mixed(2, 30, 41)
    expected = reference.mask_pack(dense)
    layouts = [
        dense.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        dense.transpose(1, 2).contiguous().transpose(1, 2),
        F.pad(dense, (3, 5, 2, 1))[:, 2:-1, 3:-5],
        dense.to(torch.uint8) * 200,
    ]
    for layout in layouts:
        assert equal(mask_pack(layout.cuda(), "cuda"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.0, -0.3])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((4, 5), (16, 20)),
        ((9, 9), (9, 9)),
        ((20, 30), (7, 9)),
        ((1, 1), (5, 6)),
        ((70, 66), (300, 200)),
        ((3, 5), (0, 4)),
    ],
)
def test_logits(source, target, threshold, dtype):
    logits = torch.cat((torch.randn(4, *source), object_logits(4, *source))).to(dtype)
    logits[0, 0, 0], logits[1, -1, -1] = float("nan"), float("inf")
    got = mask_pack_logits(logits.cuda(), target, threshold, "cuda")
    assert equal(got, reference.mask_pack_logits(logits, *target, threshold))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("operator", [mask_nms, mask_parents])
def test_selection(operator, value, size):
    masks = PackedMasks.from_dense(mixed(0, *size, 6))
    masks = PackedMasks.cat([masks, masks[1::2]])  # with duplicates
    args = (masks.words, masks.areas, masks.boxes, masks.areas.argsort(stable=True))
    got = operator(*(t.cuda() for t in args), value, size[0], "cuda")
    assert equal([got], [operator(*args, value, size[0], "reference")])


@pytest.mark.parametrize("size", SIZES)
def test_nms_of_some(size):
    masks = PackedMasks.from_dense(mixed(0, *size, 6))
    args = (masks.words, masks.areas, masks.boxes, masks.areas.argsort(stable=True)[::3])
    got = mask_nms(*(t.cuda() for t in args), 0.5, size[0], "cuda")
    assert equal([got], [mask_nms(*args, 0.5, size[0], "reference")])


@pytest.mark.parametrize("size", SIZES)
def test_rle(size, monkeypatch):
    words = reference.mask_pack(mixed(1, *size))[0]
    expected = rle_reference.encode_rle(words, size[0] * size[1])
    assert mask_rle.encode_rle(words.cuda(), size[0] * size[1]) == expected
    monkeypatch.setattr(mask_rle, "CHUNK_CHARACTERS", 500)
    assert mask_rle.encode_rle(words.cuda(), size[0] * size[1]) == expected
    assert mask_rle.encode_rle(words[:0].cuda(), size[0] * size[1]) == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["mask_fill_holes", "mask_largest_component", "mask_boundary"])
def test_regions(name, size):
    words = reference.mask_pack(mixed(3, *size))[0]
    operator = getattr(mask_regions, name)
    assert equal([operator(words.cuda(), size, "cuda")], [operator(words, size, "reference")])
    assert equal([operator(words[:0].cuda(), size, "cuda")], [words[:0]])


@pytest.mark.parametrize("size", SIZES)
def test_components_and_resize(size):
    words = reference.mask_pack(mixed(4, *size))[0]
    assert equal(mask_regions.mask_components(words.cuda(), size), mask_regions.mask_components(words, size))
    for new_size in ((0, 3), (1, 1), (7, 5), (129, 70)):
        if 0 in size and 0 not in new_size:
            continue
        got = mask_regions.mask_resize(words.cuda(), size, new_size, "cuda")
        assert equal([got], [mask_regions.mask_resize(words, size, new_size, "reference")])


def chain(logits, size):
    masks = PackedMasks.from_logits(logits, size)
    masks = masks[nms_masks(masks, 0.9)]
    scores = torch.ones(len(masks), device=logits.device)
    return Forest(masks, scores, build_forest(masks, 0.9)).to_coco(image_id=1)


def test_the_whole_way_is_the_same_and_memory_follows_the_chunk():
    logits = object_logits(300, 60, 80)
    assert chain(logits.cuda(), (240, 320)) == chain(logits, (240, 320))

    def added_bytes(num_masks: int) -> int:
        many = object_logits(num_masks, 64, 64).cuda()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        masks = PackedMasks.from_logits(many, (1024, 1024))
        nms_masks(masks)
        return torch.cuda.max_memory_allocated() - before - masks.words.nbytes

    assert added_bytes(800) - added_bytes(400) < 16 << 20  # as dense masks the 400 more would be 420 MB
