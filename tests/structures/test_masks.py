# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
import torch
from mask_cases import SIZES, mixed

from sohes.ops import merge_regions
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks, mask_coverage, mask_iou, nms_masks


def packed(seed, height, width, each=3):
    return PackedMasks.from_dense(mixed(seed, height, width, each))


def same(a, b):
    """Whether masks are equal and their areas and boxes correct."""
    fresh = PackedMasks(a.words, a.size)
    stats = torch.equal(a.areas, fresh.areas) and torch.equal(a.boxes, fresh.boxes)
    return stats and a.size == b.size and torch.equal(a.words, b.words)


@pytest.mark.parametrize("size", SIZES)
def test_every_way_in_and_out(size):
    dense = mixed(0, *size)
    masks = PackedMasks.from_dense(dense)
    assert same(masks, PackedMasks.from_dense(dense.numpy()))
    assert same(masks, PackedMasks.from_dense(dense.to(torch.uint8) * 255))
    assert torch.equal(masks.to_dense(), dense)
    assert same(PackedMasks.from_rle(masks.to_rle()), masks)
    assert same(PackedMasks.from_rle(masks.to_rle(), size), masks)
    assert same(PackedMasks.from_logits(dense.float() - 0.5, size), masks)
    assert same(PackedMasks.cat([masks[:5], masks[5:]]), masks)
    assert same(PackedMasks.cat([masks[:0], PackedMasks(masks.words, size), masks[:0]]), masks)  # areas not known yet
    assert same(PackedMasks.cat([masks[::2], masks[1::2]]), masks[[*range(0, 24, 2), *range(1, 24, 2)]])


@pytest.mark.parametrize("change", ["reversed", "read-only", "columns first"])
def test_arrays_of_any_layout(change):
    dense = mixed(1, 6, 7).numpy()
    array = dense[:, ::-1] if change == "reversed" else np.asfortranarray(dense) if change != "read-only" else dense
    array.flags.writeable = change != "read-only"
    assert torch.equal(PackedMasks.from_dense(array).to_dense(), torch.from_numpy(np.array(array)))


def test_no_masks():
    masks = PackedMasks.empty((5, 7))
    assert len(masks) == 0
    assert masks.to_rle() == []
    assert masks.to_dense().shape == (0, 5, 7)
    assert same(PackedMasks.from_rle([], (5, 7)), masks)
    assert same(PackedMasks.from_logits(torch.zeros(0, 3, 3), (5, 7)), masks)
    assert same(PackedMasks.from_label_map(torch.zeros(5, 7, dtype=torch.int32), torch.zeros(0).int()), masks)
    assert masks.areas.shape == (0,)
    assert masks.boxes.shape == (0, 4)
    assert mask_iou(masks, packed(0, 5, 7)).shape == (0, 24)
    assert nms_masks(masks).shape == (0,)
    for change in (masks.fill_holes(), masks.boundary(), masks.largest_component(), masks.components()[0]):
        assert same(change, masks)
    assert same(masks.resize((2, 3)), PackedMasks.empty((2, 3)))


@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(2, 9, 3),
        slice(5, 5),
        torch.tensor([3, 3, 0, -1]),
        torch.tensor([], dtype=torch.int64),
        torch.arange(24) % 5 == 1,
    ],
)
def test_indexing(index):
    masks = packed(2, 20, 21)
    part = masks[index]
    assert torch.equal(part.to_dense(), masks.to_dense()[index])
    assert same(part, part)


def test_indexing_with_an_int():
    masks = packed(2, 20, 21)
    assert same(masks[3], masks[3:4])
    assert same(masks[-1], masks[23:])
    assert len(list(masks)) == 24
    with pytest.raises(IndexError, match=r"^index 24 is out of range for 24$"):
        masks[24]


def test_label_map():
    labels = torch.tensor([[7, 7, -1], [2, 7, 2]])
    masks = PackedMasks.from_label_map(labels, torch.tensor([2, 9, 7, 2, -1]))
    assert torch.equal(masks.to_dense(), labels == torch.tensor([2, 9, 7, 2, -1])[:, None, None])
    assert same(masks, masks)
    with pytest.raises(ValueError, match=r"^from_label_map: expected integer \[H, W\], got torch.float32 \[2, 3\]$"):
        PackedMasks.from_label_map(labels.float(), torch.tensor([2]))


def test_iou_and_coverage():
    a, b = packed(3, 30, 31), packed(4, 30, 31)
    dense_a, dense_b = a.to_dense().double().flatten(1), b.to_dense().double().flatten(1)
    overlap = dense_a @ dense_b.T
    union = dense_a.sum(1)[:, None] + dense_b.sum(1) - overlap
    iou, coverage = mask_iou(a, b), mask_coverage(a, b)
    assert iou.dtype == coverage.dtype == torch.float32
    assert torch.equal(iou, torch.where(union > 0, overlap / union.clamp(min=1), 0).float())
    assert torch.equal(coverage, (overlap / dense_a.sum(1)[:, None].clamp(min=1)).float())


def nms_by_definition(masks, threshold, rank):
    """Each mask, best first, against all kept masks."""
    iou = mask_iou(masks, masks)
    kept = []
    for index in sorted(range(len(masks)), key=lambda i: (-float(rank[i]), i)):
        if all(iou[index, other] <= threshold for other in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 0.75, 1.0])
def test_nms(threshold, backend):
    masks = packed(5, 12, 13, each=8)
    masks = PackedMasks.cat([masks, masks[::3]])
    scores = torch.rand(len(masks), generator=torch.Generator().manual_seed(0)).mul(10).round()  # with ties
    assert nms_masks(masks, threshold, backend=backend).tolist() == nms_by_definition(masks, threshold, masks.areas)
    assert nms_masks(masks, threshold, scores, backend).tolist() == nms_by_definition(masks, threshold, scores)


def test_nms_of_duplicates():
    dense = torch.zeros(5, 4, 4, dtype=torch.bool)
    dense[1:4, :2] = True
    dense[3, 3, 3] = True
    masks = PackedMasks.from_dense(dense)  # nothing, half, the same half, half and a pixel, nothing
    assert nms_masks(masks, 0.9).tolist() == [3, 1, 0, 4]  # 8 / 9 < 0.9
    assert nms_masks(masks, 0.8).tolist() == [3, 0, 4]
    assert nms_masks(masks, 0.8, torch.tensor([0.0, 0.2, 0.9, 0.3, 0.5])).tolist() == [2, 4, 0]
    among = torch.tensor([True, True, True, False, False])
    assert nms_masks(masks, 0.8, among=among).tolist() == [1, 0]  # the one dropped by 3 before
    assert nms_masks(masks, 0.8, among=~among).tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"^nms_masks: expected among bool \[5\], got torch.int64 \[5\]$"):
        nms_masks(masks, 0.9, among=among.long())
    with pytest.raises(ValueError, match=r"^nms_masks: expected scores \[5\], got \[4\]$"):
        nms_masks(masks, 0.9, torch.ones(4))


def test_corners():
    dense = torch.zeros(3, 9, 8, dtype=torch.bool)
    dense[1, 0, 0] = dense[1, 8, 7] = dense[1, 4, 0] = True
    dense[2] = True
    assert PackedMasks.from_dense(dense).num_corners().tolist() == [0, 2, 4]
    assert packed(6, 1, 1).num_corners().unique().tolist() == [0, 4]
    assert packed(6, 0, 5, each=1).num_corners().tolist() == [0] * 8


def test_methods_keep_the_masks_apart():
    masks = packed(7, 24, 25)
    for name in ("fill_holes", "largest_component", "boundary"):
        together = getattr(masks, name)()
        alone = PackedMasks.cat([getattr(mask, name)() for mask in masks])
        assert same(together, alone)
    assert torch.equal(masks.fill_holes().boundary().words & ~masks.fill_holes().words, torch.zeros_like(masks.words))
    assert torch.equal(masks.resize((48, 50)).resize((24, 25)).words, masks.words)
    assert torch.equal(masks.resize((48, 50)).areas, 4 * masks.areas)
    assert masks.resize((24, 25)) is masks


def test_memory_follows_the_chunk():
    """After the first chunk only packed bits use memory: 300 masks of 1024 x 1024 are 39 MB, as float32 1.2 GB."""
    resource = pytest.importorskip("resource")

    def peak_megabytes(num_masks: int) -> float:
        assert len(PackedMasks.from_logits(torch.rand(num_masks, 8, 8) - 0.5, (1024, 1024))) == num_masks
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    few = peak_megabytes(100)
    assert peak_megabytes(400) - few < 300


def test_messages():
    with pytest.raises(
        ValueError, match=r"^PackedMasks: expected int64 words \[N, 2\] for \(8, 9\), got torch.int64 \[3, 1\]$"
    ):
        PackedMasks(torch.zeros(3, 1, dtype=torch.int64), (8, 9))
    with pytest.raises(ValueError, match=r"^PackedMasks.from_rle: expected a size with an empty list$"):
        PackedMasks.from_rle([])
    rles = [{"size": [1, 2], "counts": "2"}, {"size": [2, 1], "counts": "2"}]
    with pytest.raises(ValueError, match=r"^PackedMasks.from_rle: expected size \(1, 2\), got \(2, 1\) at 1$"):
        PackedMasks.from_rle(rles)
    with pytest.raises(ValueError, match=r"^PackedMasks.cat: expected sets of one size, got \[\(1, 2\), \(2, 1\)\]$"):
        PackedMasks.cat([PackedMasks.empty((1, 2)), PackedMasks.empty((2, 1))])


@pytest.mark.parametrize("size", SIZES)
def test_some_of_the_masks(size):
    """Only words inside the boxes are copied and encoded; these must be all set bits."""
    masks = packed(7, *size)
    indices = torch.tensor([3, -1, 3, 0, len(masks) - 2])
    for index in (indices, indices[:0], torch.arange(len(masks)) % 3 == 0):
        some = masks[index]
        assert same(some, PackedMasks(masks.words[index], size))
        assert some.to_rle() == PackedMasks(masks.words[index], size).to_rle()
    for wrong in (torch.tensor([len(masks)]), torch.ones(len(masks) + 1, dtype=torch.bool)):
        with pytest.raises(IndexError):
            masks[wrong]


def whole(count=5):
    return PackedMasks.from_dense(mixed(3, 9, 11, 1)[:count])


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (np.int16(2), [2]),
        (np.uint64(4), [4]),
        (np.array(3), [3]),
        (torch.tensor(-1), [4]),
        (torch.tensor(1, dtype=torch.uint8), [1]),
        (-5, [0]),
        (slice(np.int64(1), torch.tensor(4)), [1, 2, 3]),
        (slice(None, None, -1), [4, 3, 2, 1, 0]),
        (slice(3, 99), [3, 4]),
        (slice(4, 1), []),
        ([np.int32(1), -1, 1], [1, 4, 1]),
        (range(1, 4, 2), [1, 3]),
        ((0, 2), [0, 2]),
        (np.array([4, -5], np.int8), [4, 0]),
        (np.array([True, False, False, True, True]), [0, 3, 4]),
        ([False, True, False, False, False], [1]),
        (torch.tensor([1, 0, 0, 0, 1], dtype=torch.bool), [0, 4]),
        (torch.tensor([1, 3], dtype=torch.uint8), [1, 3]),
        ([], []),
        (np.zeros(0, np.int64), []),
        (torch.zeros(0, dtype=torch.int64), []),
    ],
)
def test_indices_of_any_kind(index, expected):
    masks = whole()
    got = masks[index]
    assert torch.equal(got.words, masks.words[expected])
    assert got.areas.tolist() == masks.areas[expected].tolist()
    assert got.boxes.tolist() == masks.boxes[expected].tolist()
    forest = Forest(masks, torch.linspace(1, 0, 5), torch.full((5,), -1))
    if len(set(expected)) == len(expected):
        assert torch.equal(forest.select(index).masks.words, got.words)
        assert forest.select(index).scores.tolist() == forest.scores[expected].tolist()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (5, "index 5 is out of range for 5"),
        (np.int64(-6), "index -6 is out of range for 5"),
        (torch.tensor(7), "index 7 is out of range for 5"),
        ([0, 1, 9], "index 9 is out of range for 5"),
        (torch.tensor([0, -7]), "index -7 is out of range for 5"),
        (np.array([True, False]), "expected 5 bools, one for each, got 2"),
        (torch.ones(6, dtype=torch.bool), "expected 5 bools, one for each, got 6"),
    ],
)
def test_indices_out_of_range(index, message):
    masks = whole()
    with pytest.raises(IndexError, match=f"^{re.escape(message)}$"):
        masks[index]
    with pytest.raises(IndexError, match=f"^{re.escape(message)}$"):
        Forest(masks, torch.ones(5), torch.full((5,), -1)).select(index)


@pytest.mark.parametrize(
    "index",
    [1.0, "1", None, True, np.array([0.5]), torch.tensor([1.0]), [[0, 1]], torch.zeros(2, 2).long(), (0, slice(2))],
)
def test_what_is_no_index(index):
    with pytest.raises(TypeError, match=r"^expected an integer, a slice, or a vector of integers or bools, got"):
        whole()[index]


def test_no_masks_have_no_index():
    nothing = PackedMasks.empty((4, 4))
    assert len(nothing[:]) == len(nothing[[]]) == len(nothing[np.zeros(0, bool)]) == 0
    with pytest.raises(IndexError, match=r"^index 0 is out of range for 0$"):
        nothing[0]


def test_sizes_of_any_kind():
    words = whole().words
    for size in ([9, 11], np.array([9, 11]), (torch.tensor(9), np.int32(11)), torch.Size([9, 11])):
        masks = PackedMasks(words, size)
        assert masks.size == (9, 11)
        assert type(masks.size[0]) is int
    assert PackedMasks.empty([2, 3]).size == (2, 3)
    with pytest.raises(TypeError, match=r"^PackedMasks: expected int64 words \[N, V\], got ndarray; use PackedMasks"):
        PackedMasks(np.zeros((2, 9, 11), bool), (9, 11))


def test_short_representations():
    masks = whole()
    forest = Forest(masks, torch.ones(5), torch.tensor([-1, 0, 0, -1, 3]))
    assert repr(masks) == "PackedMasks(5 masks of 9 x 11)"
    assert repr(forest) == "Forest(5 masks of 9 x 11, 2 without a parent)"
    assert repr(PackedMasks(torch.zeros(2, 2, dtype=torch.int64, device="meta"), (9, 11))).endswith("9 x 11, meta)")
    (tree,) = merge_regions(torch.randn(3, 4, 2))
    assert repr(tree) == "MergeTree(12 leaves of a grid 3 x 4, 11 merges)"


@pytest.mark.parametrize("size", [(3.7, 4), (3, -1), 5, "ab", None, (1, 2, 3), (np.float32(3), 3)])
def test_what_is_no_size(size):
    masks = whole()
    for work in (lambda: masks.resize(size), lambda: PackedMasks.empty(size), lambda: PackedMasks(masks.words, size)):
        with pytest.raises(ValueError, match=r"^expected a size \(H, W\) of (integers|at least 0 x 0), got "):
            work()
    with pytest.raises(ValueError, match=r"^expected a size"):
        PackedMasks.from_logits(torch.zeros(1, 2, 2), size)


def test_arrays_are_as_good_as_tensors():
    masks, scores = whole(), torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3])
    for given in (scores.numpy(), scores.tolist(), scores.double()):
        assert torch.equal(nms_masks(masks, 0.5, given), nms_masks(masks, 0.5, scores))
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    from_array = PackedMasks.from_logits(logits, (6, 8))
    assert torch.equal(from_array.words, PackedMasks.from_logits(torch.from_numpy(logits), (6, 8)).words)
    labels = np.random.default_rng(0).integers(0, 4, (5, 7))
    expected = PackedMasks.from_label_map(torch.from_numpy(labels), torch.tensor([2, 0]))
    for kind in (np.int64, np.int32, np.uint8):
        for ids in ([2, 0], np.array([2, 0], kind), torch.tensor([2, 0], dtype=torch.int32)):
            assert torch.equal(PackedMasks.from_label_map(labels.astype(kind), ids).words, expected.words)
    forest = Forest(masks, scores, torch.full((5,), -1))
    (first, *_) = forest.to_coco(np.int64(3), np.int32(7))
    assert (type(first["id"]), type(first["image_id"])) == (int, int)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: PackedMasks.from_dense([[[1]]]), "from_dense: expected bool or uint8 [N, H, W], a tensor or an array"),
        (lambda: PackedMasks.from_logits([[[1.0]]], (2, 2)), "from_logits: expected [N, h, w], a tensor or an array"),
        (lambda: PackedMasks.from_label_map("x", [1]), "from_label_map: expected integer [H, W], a tensor or an array"),
        (lambda: Forest(whole(), [1.0] * 5, torch.zeros(5)), "Forest: expected scores torch.float32 [5], got list"),
        (lambda: Forest(whole(), torch.ones(5), None), "Forest: expected parents torch.int64 [5], got NoneType"),
    ],
)
def test_other_kinds_are_named(work, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        work()
