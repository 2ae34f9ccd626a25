# SPDX-License-Identifier: Apache-2.0
"""Masks as runs: decoded, measured and intersected as dense masks; invalid RLE raises."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sohes.evaluation.matching import find_pairs
from sohes.evaluation.reference import runs
from sohes.evaluation.reference.matching import mask_pairs
from sohes.evaluation.reference.runs import intersect
from sohes.evaluation.runs import read_runs
from sohes.evaluation.shapes import take
from sohes.structures.masks import PackedMasks


def random_masks(rng, count, size):
    """Noise, rectangles, empty, full and single-pixel masks, bool [count, H, W]."""
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        kind = rng.integers(6)
        y, x = rng.integers(size[0]), rng.integers(size[1])
        if kind <= 1:
            mask[:] = rng.random(size) < rng.choice([0.02, 0.5])
        elif kind <= 3:
            mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = True
        elif kind == 4:
            mask[y, x] = True
        else:
            mask[:] = rng.random() < 0.5
    return masks


def encode(masks):
    return [coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in masks]


def box_of(mask):
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (13, 11), (40, 53)])
def test_everything_equals_the_dense_masks(size, monkeypatch):
    for name in ("RUNS_AT_A_TIME", "CHARACTERS_AT_A_TIME"):
        monkeypatch.setattr(runs, name, 50)  # many chunks
    rng = np.random.default_rng(size[0])
    a, b = random_masks(rng, 40, size), random_masks(rng, 30, size)
    read_a, read_b = read_runs(encode(a), size), read_runs([counts.decode() for counts in encode(b)], size)
    assert len(read_a) == 40
    np.testing.assert_array_equal(read_a.areas, a.sum((1, 2)))
    np.testing.assert_array_equal(read_a.boxes, [box_of(mask) for mask in a])
    rows, columns = (grid.ravel() for grid in np.meshgrid(range(40), range(30), indexing="ij"))
    expected = (a[rows] & b[columns]).sum((1, 2))
    np.testing.assert_array_equal(intersect(read_a, read_b, rows, columns), expected)


def test_no_masks_and_no_pairs():
    none, one = read_runs([], (4, 5)), read_runs([[3, 4, 13]], (4, 5))
    assert (len(none), none.boxes.shape) == (0, (0, 4))
    empty = np.zeros(0, np.int64)
    assert intersect(one, none, empty, empty).tolist() == []
    assert intersect(one, read_runs([[20]], (4, 5)), np.array([0]), np.array([0])).tolist() == [0]


def test_plain_run_lengths_and_empty_runs():
    masks = read_runs([[0, 20], [20], [2, 0, 3, 4, 0, 1, 10]], (4, 5))
    assert masks.areas.tolist() == [20, 0, 5]
    assert masks.boxes.tolist() == [[0, 0, 5, 4], [0, 0, 0, 0], [1, 0, 3, 4]]
    assert np.diff(masks.bounds).ravel().tolist() == [1, 0, 2]


def test_large_images_need_64_bits():
    size = (60_000, 50_000)
    masks = read_runs([[5, 2_000_000_000, 999_999_995], [0, 3_000_000_000], [2_999_999_999, 1]], size)
    assert masks.areas.tolist() == [2_000_000_000, 3_000_000_000, 1]
    assert intersect(masks, masks, np.array([0, 1, 2, 2]), np.array([1, 1, 0, 1])).tolist() == [
        *(2_000_000_000, 3_000_000_000, 0, 1)
    ]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("4", "mask 1: run lengths add up to 4, expected 4 x 5 = 20"),
        ("", "mask 1: run lengths add up to 0, expected 4 x 5 = 20"),
        ("d0T", "mask 1: counts is cut short"),
        ("T", "mask 1: counts is cut short"),
        ("d0 0", "mask 1: counts is not a compressed RLE string"),
        ("dé0", "mask 1: counts is not a compressed RLE string"),
        ([15, -5, 10], "mask 1: counts hold a negative run length, -5"),
        ([25, 0], "mask 1: counts hold a run of 25 pixels, expected 4 x 5 = 20 in all"),
        ([2**62, 2**62, 2**62, 2**62 + 20], "mask 1: counts hold a run of more than 60 bits"),
        ("o" * 12 + "0" + "d0", "mask 1: counts hold a run of more than 60 bits"),
    ],
)
def test_broken_rle_is_refused(counts, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        read_runs([[20], counts, [20]], (4, 5))


@pytest.mark.parametrize("seed", range(5))
def test_pairs_of_runs_equal_pairs_of_packed_masks(seed):
    rng = np.random.default_rng(seed)
    pred, gt = random_masks(rng, 30, (13, 11)), random_masks(rng, 12, (13, 11))
    pred[:8] = gt[rng.integers(12, size=8)] & (rng.random((8, 13, 11)) > 0.1)
    crowd, order = rng.random(12) < 0.3, rng.permutation(30)[:20]
    as_packed, as_runs = PackedMasks.from_dense(pred), read_runs(encode(pred), (13, 11))
    gt_packed, gt_runs = PackedMasks.from_dense(gt), read_runs(encode(gt), (13, 11))
    found = [
        find_pairs(take(as_packed, order), gt_packed, crowd, 0.3),
        find_pairs(take(as_runs, order), gt_runs, crowd, 0.3),
        mask_pairs(take(as_runs, order), gt_runs, crowd, 0.3),
    ]
    for values in zip(*(vars(pairs).values() for pairs in found), strict=True):
        for value in values[1:]:
            np.testing.assert_array_equal(value, values[0])
    rles = [[{"size": [13, 11], "counts": counts} for counts in encode(masks)] for masks in (pred[order], gt)]
    iou = coco_mask.iou(*rles, crowd.astype(np.uint8))
    np.testing.assert_array_equal(found[0].iou, iou[iou >= 0.3])
