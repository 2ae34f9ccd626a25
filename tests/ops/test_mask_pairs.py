# SPDX-License-Identifier: Apache-2.0
"""mask_pairs: the kernel against the reference, pairs by hand, properties, opcheck, compile, error messages."""

import re
from fractions import Fraction

import pytest
import torch
from mask_cases import SIZES, mixed

from sohes.ops import mask_overlap, mask_pairs
from sohes.ops._binary import find_binary
from sohes.ops._library import OPERATORS
from sohes.ops.reference import mask_pack
from sohes.structures.masks import PackedMasks, mask_iou

needs_binary = pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason)
BACKENDS = ["reference", pytest.param("cpp", marks=needs_binary)]


def some_masks(size, each=8):
    masks = PackedMasks.from_dense(mixed(0, *size, each))
    return PackedMasks.cat([masks, masks[1::2]])  # with duplicates


def nested_boxes(num, size=(150, 200), seed=0):
    """Boxes of any size and place: many pairs of every IoU."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.zeros((num, *size), dtype=torch.bool)
    for mask in dense:
        (y0, y1), (x0, x1) = (torch.randint(0, side + 1, (2,), generator=generator).sort().values for side in size)
        mask[y0:y1, x0:x1] = True
    return PackedMasks.from_dense(dense)


def same(got, expected):
    return all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@needs_binary
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("min_iou", [0.01, 0.5, 0.9, 1.0])
def test_forward(size, min_iou):
    masks = some_masks(size)
    assert same(mask_pairs(masks, min_iou, "cpp"), mask_pairs(masks, min_iou, "reference"))


@needs_binary
@pytest.mark.parametrize("min_iou", [0.05, 0.5])
def test_more_pairs_than_expected_at_first(min_iou):
    """The kernel first makes room for 64 pairs per mask, and starts again if there are more."""
    masks = PackedMasks.cat([nested_boxes(60), nested_boxes(1)[[0] * 300]])
    pairs, iou = mask_pairs(masks, min_iou, "cpp")
    assert len(pairs) > 300 * 299 // 2 > 64 * len(masks)
    assert same((pairs, iou), mask_pairs(masks, min_iou, "reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pairs_by_hand(backend):
    dense = torch.zeros((5, 4, 5), dtype=torch.bool)
    dense[0, :2, :2] = True  # 4 pixels
    dense[1, :2, :4] = True  # 8, twice the first
    dense[2, 3, 4] = True  # 1, apart
    dense[3, :2, 1:4] = True  # 6 of the second
    masks = PackedMasks.from_dense(dense)  # the last is empty
    pairs, iou = mask_pairs(masks, 0.25, backend)
    assert pairs.tolist() == [[0, 1], [0, 3], [1, 3]]
    torch.testing.assert_close(iou, torch.tensor([4 / 8, 2 / 8, 6 / 8]))
    assert mask_pairs(masks, 0.5, backend)[0].tolist() == [[0, 1], [1, 3]]  # exactly 0.5 counts
    assert mask_pairs(masks, 0.76, backend)[0].tolist() == []
    assert mask_pairs(masks[[1, 4, 1, 4]], 1.0, backend)[0].tolist() == [[0, 2]]  # empty masks are no pair


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(3, 4), (0, 7)])
def test_no_masks_or_pixels(size, backend):
    for masks in (PackedMasks.empty(size), PackedMasks.from_dense(torch.zeros((3, *size), dtype=torch.bool))):
        pairs, iou = mask_pairs(masks, 0.5, backend)
        assert (pairs.shape, pairs.dtype, iou.shape, iou.dtype) == ((0, 2), torch.int64, (0,), torch.float32)


def test_agrees_with_mask_iou():
    masks = nested_boxes(50)
    iou = mask_iou(masks, masks).triu(1)
    pairs, values = mask_pairs(masks, 0.3)
    assert torch.equal(pairs, (iou >= 0.3).nonzero())
    torch.testing.assert_close(values.double(), iou[tuple(pairs.T)].double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_iou_of_exactly_the_least_counts(backend):
    """The least is the float64 nearest to the IoU of some pair."""
    masks = some_masks((11, 13), each=5)
    shared = mask_overlap(masks, masks)
    union = masks.areas[:, None] + masks.areas - shared
    values = sorted({Fraction(int(s), int(u)) for s, u in zip(shared.flatten(), union.flatten(), strict=True) if s})
    for value in map(float, values[:: len(values) // 20 + 1]):
        expected = (shared > 0) & (shared >= value * union.double())
        assert torch.equal(mask_pairs(masks, value, backend)[0], expected.triu(1).nonzero())


@pytest.mark.parametrize("backend", BACKENDS)
def test_sorted_pairs_in_any_order_of_the_masks(backend):
    masks = PackedMasks.cat([some_masks((150, 200), each=3), nested_boxes(40)])
    pairs, iou = mask_pairs(masks, 0.3, backend)
    key = pairs[:, 0] * len(masks) + pairs[:, 1]
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert (key.diff() > 0).all()
    back, back_iou = mask_pairs(masks[torch.arange(len(masks)).flip(0)], 0.3, backend)
    turned = len(masks) - 1 - back.flip(1)
    order = (turned[:, 0] * len(masks) + turned[:, 1]).argsort()
    assert same((turned[order], back_iou[order]), (pairs, iou))


def test_chunks_of_the_reference(monkeypatch):
    masks = nested_boxes(40)
    expected = mask_pairs(masks, 0.2, "reference")
    monkeypatch.setattr(mask_pack, "CHUNK_ELEMENTS", 300)
    assert same(mask_pairs(masks, 0.2, "reference"), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_words(backend):
    masks = some_masks((20, 30))
    wide = torch.cat((masks.words, masks.words), 1)
    half = PackedMasks(wide[:, : masks.words.shape[1]], masks.size)
    assert same(mask_pairs(half, 0.4, backend), mask_pairs(masks, 0.4, "reference"))


@needs_binary
def test_same_for_any_number_of_threads():
    masks, threads, results = nested_boxes(300), torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(mask_pairs(masks, 0.4, "cpp"))
    torch.set_num_threads(threads)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    masks = some_masks((9, 8), each=1)
    args = (masks.words, masks.areas, masks.boxes, 0.5, 9, backend)
    torch.library.opcheck(torch.ops.sohes.mask_pairs.default, args, test_utils=("test_schema", "test_faketensor"))


class Twice(torch.nn.Module):
    def forward(self, words, areas, boxes):
        pairs, iou = OPERATORS["mask_pairs"](words, areas, boxes, 0.5, 9, "auto")
        return pairs * 2, iou * 2


def test_compile_and_export():
    masks = some_masks((9, 8), each=2)
    inputs = (masks.words, masks.areas, masks.boxes)
    expected = Twice()(*inputs)
    assert len(expected[0]) > 0
    assert same(torch.compile(Twice(), fullgraph=True, backend="aot_eager")(*inputs), expected)
    assert same(torch.export.export(Twice(), inputs).module()(*inputs), expected)


@pytest.mark.parametrize("min_iou", [0.0, -0.5, 1.01, float("nan")])
def test_messages(min_iou):
    with pytest.raises(ValueError, match=re.escape(f"mask_pairs: expected min_iou in (0, 1], got {min_iou}")):
        mask_pairs(some_masks((3, 3)), min_iou)
    with pytest.raises(TypeError, match="mask_pairs: expected PackedMasks, got Tensor"):
        mask_pairs(torch.zeros(2, 3, 3), 0.5)
    with pytest.raises(ValueError, match=r"^mask_pairs: unknown backend 'gpu', expected one of: auto, cpp, reference$"):
        mask_pairs(some_masks((3, 3)), 0.5, backend="gpu")
