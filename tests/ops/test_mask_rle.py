# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_cases import KINDS, SIZES, mixed

from sohes.ops import mask_rle
from sohes.ops._binary import find_binary
from sohes.ops.mask_overlap import mask_overlap
from sohes.ops.reference import mask_rle as reference
from sohes.structures.masks import PackedMasks, nms_masks

BACKENDS = [
    pytest.param(reference, id="reference"),
    pytest.param(
        mask_rle,
        id="cpp",
        marks=pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason),
    ),
]


@pytest.fixture(scope="module")
def coco():
    return pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")


def pycoco_encode(coco, dense):
    """RLE with counts as bytes, from bool [N, H, W]."""
    return coco.encode(np.asfortranarray(dense.transpose(1, 2, 0).astype(np.uint8)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [size for size in SIZES if 0 not in size])
def test_both_ways(backend, size, coco):
    dense = mixed(0, *size)
    words = PackedMasks.from_dense(dense).words
    expected = [rle["counts"].decode() for rle in pycoco_encode(coco, dense.numpy())]
    assert backend.encode_rle(words, size[0] * size[1]) == expected
    assert torch.equal(backend.decode_rle(expected, size[0] * size[1]), words)


@pytest.mark.parametrize("backend", BACKENDS)
def test_as_bytes_and_as_plain_runs(backend):
    dense = mixed(1, 12, 17)
    words = PackedMasks.from_dense(dense).words
    texts = backend.encode_rle(words, 12 * 17)
    assert torch.equal(backend.decode_rle([text.encode() for text in texts], 12 * 17), words)
    runs = [reference.decompress(text).tolist() for text in texts]
    assert torch.equal(backend.decode_rle(runs, 12 * 17), words)
    mixture = [texts[0], texts[1].encode(), *runs[2:]]
    assert torch.equal(backend.decode_rle(mixture, 12 * 17), words)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pinned(backend):
    masks = PackedMasks.from_dense(torch.tensor([[[0, 0], [1, 1]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]]).bool())
    assert [reference.decompress(text).tolist() for text in ("1110", "04", "4")] == [[1, 1, 1, 1], [0, 4], [4]]
    # A run's fourth number is the difference to its second: 1 - 1 = 0.
    assert backend.encode_rle(masks.words, 4) == ["1110", "04", "4"]
    assert backend.encode_rle(torch.zeros(2, 0, dtype=torch.int64), 0) == ["0", "0"]
    assert backend.encode_rle(torch.zeros(0, 1, dtype=torch.int64), 9) == []
    assert backend.decode_rle([], 9).shape == (0, 1)
    assert backend.decode_rle(["0", b"", []], 0).shape == (3, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_runs(backend, coco):
    """Numbers of one to six characters, growing and shrinking, so that differences have both signs."""
    side = 6000
    runs = np.array([5, 40, 3, 1000, 0, 70_000, 15, 16, 17, 2_000_000, 1, 31, 32, 33, 9_000_000, 511, 512, 513, 2])
    runs = [*runs.tolist(), side * side - int(runs.sum())]
    words = backend.decode_rle([runs], side * side)
    (text,) = backend.encode_rle(words, side * side)
    expected = coco.frPyObjects({"size": [side, side], "counts": runs}, side, side)["counts"].decode()
    # Runs of length 0 vanish: their neighbours join.
    joined = [*runs[:3], runs[3] + runs[5], *runs[6:]]
    assert reference.decompress(expected).tolist() == runs
    assert reference.decompress(text).tolist() == joined
    assert coco.area({"size": [side, side], "counts": text.encode()}) == sum(runs[1::2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("5", r"^RLE has 5 pixels, expected 6$"),
        ([3, 4], r"^RLE has 7 pixels, expected 6$"),
        ([7, -1], r"^RLE has a run of length -1$"),
        ([7], r"^RLE has a run of 7 pixels, expected 6 in all$"),
        ([2**62, 2**62, 2**62, 2**62, 6], r"^RLE has a run of 4611686018427387904 pixels, expected 6 in all$"),
        ([2**64], r"^counts is not a list of run lengths: "),
        ([2**63, 6], r"^counts is not a list of run lengths: "),
        ([1.5, 4.5], r"^counts is not a list of run lengths: \[1.5, 4.5\]$"),
        ([[6]], r"^counts is not a list of run lengths: "),
        (6, r"^counts is not a list of run lengths: 6$"),
        ("", r"^RLE has 0 pixels, expected 6$"),
        ("6P", r"^counts is not compressed RLE, or is truncated: b'6P'$"),
        ("6 ", r"^counts is not compressed RLE, or is truncated: b'6 '$"),
        ("6é", r"^counts is not compressed RLE, or is truncated: b'6\\xc3\\xa9'$"),
        ("PPPPPPPPPPPP0", r"^counts is not compressed RLE, a run has more than 60 bits: "),
    ],
)
def test_messages(backend, counts, message):
    with pytest.raises(ValueError, match=message):
        backend.decode_rle(["6", counts], 6)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=24),
        st.text("0123456789:;<=>?@ABCNOPQabcnopq", max_size=24),
        st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 90), max_size=8),
    ),
    st.integers(0, 90),
)
def test_hostile_counts_are_refused_or_decoded(counts, num_pixels):
    """Both backends agree for any text: an error, or the same masks."""
    results = []
    for backend in (reference, mask_rle):
        try:
            results.append(backend.decode_rle([counts], num_pixels).tolist())
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]
    if isinstance(results[0], list) and num_pixels % 64:
        assert results[0][0][-1] >> (num_pixels % 64) == 0  # nothing past the last pixel


def test_many_noisy_masks_are_encoded_in_parts(monkeypatch):
    words = PackedMasks.from_dense(mixed(2, 30, 31)).words
    expected = reference.encode_rle(words, 930)
    monkeypatch.setattr(mask_rle, "CHUNK_CHARACTERS", 500)
    assert mask_rle.encode_rle(words, 930) == expected


def test_ten_thousand_masks_are_equal_to_pycocotools(coco):
    rng = np.random.default_rng(0)
    for group in range(125):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        dense = np.concatenate([kind(rng, 10, height, width) for kind in KINDS])  # [80, H, W]
        rles = pycoco_encode(coco, dense)
        masks = PackedMasks.from_dense(dense)
        ours = masks.to_rle()
        assert [rle["counts"].encode() for rle in ours] == [rle["counts"] for rle in rles]
        assert all(rle["size"] == [height, width] for rle in ours)
        back = PackedMasks.from_rle(rles)
        assert torch.equal(back.words, masks.words)
        assert np.array_equal(coco.decode(ours).transpose(2, 0, 1).astype(bool), back.to_dense().numpy())
        assert masks.areas.tolist() == coco.area(rles).tolist()
        x0, y0, x1, y1 = masks.boxes.unbind(1)
        assert torch.stack((x0, y0, x1 - x0, y1 - y0), 1).tolist() == coco.toBbox(rles).astype(int).tolist()
        crowd = rng.random(40) < 0.3
        expected = coco.iou(rles[40:], rles[:40], crowd.astype(np.uint8))
        overlap = mask_overlap(masks[40:], masks[:40]).numpy()
        areas, others = masks.areas[40:, None].numpy(), masks.areas[:40].numpy()
        union = np.where(crowd, areas, areas + others - overlap)
        # A quotient of exact integers in float64, as pycocotools takes it: equal to the last bit.
        assert np.array_equal(overlap / np.maximum(union, 1), expected), group


@pytest.mark.skipif(find_binary().module is None, reason="the reference would take 4 GB and half a minute")
def test_offsets_are_64_bits_wide():
    side = 60_000  # 3.6e9 pixels, past what 32 bits count
    runs = [side * 50_000 + 7, 1000, side * 9_000, 20]
    runs.append(side * side - sum(runs))
    masks = PackedMasks.from_rle([{"size": [side, side], "counts": runs}])
    assert masks.areas.tolist() == [1020]
    assert masks.boxes.tolist() == [[50_000, 7, 59_001, 1027]]
    assert mask_overlap(masks, masks).tolist() == [[1020]]
    assert nms_masks(masks).tolist() == [0]
    assert reference.decompress(masks.to_rle()[0]["counts"]).tolist() == runs
