# SPDX-License-Identifier: Apache-2.0
"""Average recall and precision: bitwise against pycocotools, against plain loops, and by hand."""

import numpy as np
import pytest
import torch

from sohes.evaluation import Evaluator
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks

MAX_DETS = (1, 3, 100)
SEEDS_A_TEST = 30


def bars(*lengths, width=40):
    """One-row masks, from the left."""
    return np.arange(width)[None, None] < np.array(lengths)[:, None, None]


def forest(dense, scores):
    masks = PackedMasks.from_dense(dense)
    return Forest(masks, torch.tensor(scores, dtype=torch.float32), torch.full((len(masks),), -1))


@pytest.mark.parametrize(
    ("first_seed", "class_aware"), [(seed, False) for seed in range(0, 240, SEEDS_A_TEST)] + [(300, True)]
)
def test_equals_pycocotools_to_the_last_bit(tools, first_seed, class_aware):
    for seed in range(first_seed, first_seed + SEEDS_A_TEST):
        rng = np.random.default_rng(seed)
        images = [tools.random_image(rng) for _ in range(rng.integers(1, 5))]
        if not class_aware:
            images = [tools.in_category_order(image) for image in images]
        evaluator = tools.run_evaluator(images, MAX_DETS, tools.TINY_AREAS, class_aware=class_aware)
        oracle = tools.run_pycocotools(*tools.coco_files(images), MAX_DETS, tools.TINY_AREAS, class_aware)
        tools.assert_equal_bits(evaluator, *oracle, message=f"seed {seed}")


def test_default_protocol_equals_pycocotools_with_1000_predictions(tools):
    rng = np.random.default_rng(7)
    images = [tools.random_image(rng, max_gt=12, max_pred=60, size=(130, 110)) for _ in range(4)]
    crowded = tools.random_image(rng, max_gt=8, max_pred=1100, size=(24, 20))
    while len(crowded.pred) < 1000:
        crowded = tools.random_image(rng, max_gt=8, max_pred=1100, size=(24, 20))
    images = [tools.in_category_order(image) for image in [*images, crowded]]
    limits = (1, 10, 100, 1000)
    areas = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
    evaluator = tools.run_evaluator(images, limits, None)
    tools.assert_equal_bits(evaluator, *tools.run_pycocotools(*tools.coco_files(images), limits, areas))
    assert evaluator.summary()["masks_per_image"] == sum(len(image.pred) for image in images) / 5


@pytest.mark.parametrize("iou_type", ["mask", "box"])
@pytest.mark.parametrize("class_aware", [False, True])
def test_plain_loops_agree_on_more_than_255_masks_and_1000_predictions(tools, iou_type, class_aware):
    """Beyond the limits of pycocotools, with crowds, annotated areas and empty images."""
    rng = np.random.default_rng(11)
    gt = rectangles(rng, 300)
    pred = gt[rng.integers(300, size=1200)] & (rng.random((1200, 14, 15)) > 0.15)
    scores = rng.random(1200).astype(np.float32)
    categories = [rng.choice(tools.CATEGORIES, len(masks)) for masks in (gt, pred)]
    boxes = [tools.boxes_around(masks) for masks in (gt, pred)]
    areas = gt.sum((1, 2)) * rng.choice([1.0, 0.7], 300)
    dense = tools.Image(gt, rng.random(300) < 0.05, areas, pred, scores, *categories, *boxes)
    images = [
        tools.in_category_order(image) for image in [dense, *(tools.random_image(rng, size=(14, 15)) for _ in "123")]
    ]
    thresholds, limits, options = (0.5, 0.75), (10, 1000), {"iou_type": iou_type, "class_aware": class_aware}
    evaluator = tools.run_evaluator(images, limits, tools.TINY_AREAS, iou_thresholds=thresholds, **options)
    precision, recall = tools.run_literally(images, limits, tools.TINY_AREAS, thresholds, **options)
    assert recall.shape == (2, 3 if class_aware else 1, 4, 2)
    for m, k in enumerate(limits):
        np.testing.assert_allclose(evaluator.precision(k), precision[..., m], rtol=1e-15)  # no eps in the loops
        np.testing.assert_array_equal(evaluator.recall(k), recall[..., m])
    summary = evaluator.summary()
    for a, suffix in enumerate(("@1000", "-small", "-medium", "-large")):
        assert summary[f"AR{suffix}"] == pytest.approx(np.nanmean(recall[:, :, a, -1]), rel=1e-14)
        assert summary[f"AP{suffix if a else ''}"] == pytest.approx(np.nanmean(precision[:, :, :, a, -1]), rel=1e-14)


@pytest.mark.parametrize("iou_type", ["mask", "box"])
@pytest.mark.parametrize("class_aware", [False, True])
def test_plain_loops_agree_on_small_sets(tools, iou_type, class_aware):
    """Ties of scores and of overlaps, images without masks or predictions, categories of some images."""
    options = {"iou_type": iou_type, "class_aware": class_aware}
    for seed in range(500, 512):
        rng = np.random.default_rng(seed)
        images = [tools.in_category_order(tools.random_image(rng)) for _ in range(rng.integers(1, 5))]
        evaluator = tools.run_evaluator(images, (2, 100), tools.TINY_AREAS, iou_thresholds=(0.5, 0.8), **options)
        precision, recall = tools.run_literally(images, (2, 100), tools.TINY_AREAS, (0.5, 0.8), **options)
        for m, k in enumerate((2, 100)):
            if recall.shape[1]:
                np.testing.assert_allclose(evaluator.precision(k), precision[..., m], rtol=1e-15, err_msg=f"{seed}")
                np.testing.assert_array_equal(evaluator.recall(k), recall[..., m], err_msg=f"{seed}")


def rectangles(rng, count):
    masks = np.zeros((count, 14, 15), bool)
    for mask in masks:
        y, x = rng.integers(0, 12), rng.integers(0, 12)
        mask[y : y + rng.integers(2, 9), x : x + rng.integers(2, 9)] = True
    return masks


def test_by_hand():
    """Truth of 10 and 20 pixels. Predictions: 20 (IoU 1), 8 (IoU 0.8 with the first), 30 (IoU 2/3, its mask taken)."""
    evaluator = Evaluator((1, 2, 3))
    gt = PackedMasks.from_dense(bars(10, 20))
    evaluator.add("a", gt, forest(bars(20, 8, 30), [0.9, 0.5, 0.7]))
    summary = evaluator.summary()
    assert summary["AR@1"] == 0.5  # the perfect one, at all ten thresholds
    assert summary["AR@2"] == 0.5  # then the one of 30, too late
    assert summary["AR@3"] == pytest.approx((7 * 1 + 3 * 0.5) / 10)  # 0.8 passes .50 to .80
    assert summary["AR-small"] == summary["AR@3"]
    assert np.isnan(summary["AR-medium"])
    assert np.isnan(summary["AP-large"])
    assert summary["AP50"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)  # recall 0.5 at precision 1, 1 at 2/3
    assert summary["AP75"] == summary["AP50"]
    assert summary["AP"] == pytest.approx((7 * summary["AP50"] + 3 * 51 / 101) / 10)
    assert summary["num_images"] == 1
    assert summary["masks_per_image"] == 3
    assert np.isnan(summary["parent_recall"])


def test_keys_of_the_default_summary():
    assert list(Evaluator().summary()) == [
        *("AR@1000", "AR@100", "AR@10", "AR@1", "AR-small", "AR-medium", "AR-large"),
        *("AP", "AP50", "AP75", "AP-small", "AP-medium", "AP-large"),
        *("parent_recall", "ancestor_f1", "level_accuracy", "edit_similarity", "num_images", "masks_per_image"),
    ]


def test_nothing_at_all_is_nan_and_no_prediction_is_zero():
    evaluator = Evaluator()
    assert np.isnan(evaluator.summary()["AR@1000"])
    empty = PackedMasks.empty((1, 40))
    evaluator.add(1, empty, forest(bars(3), [0.5]))
    assert np.isnan(evaluator.summary()["AR@1000"])
    evaluator.add(2, PackedMasks.from_dense(bars(10)), forest(bars()[:0], []))
    summary = evaluator.summary()
    assert (summary["AR@1000"], summary["AP"]) == (0, 0)


def test_a_crowd_is_neither_missed_nor_used_up():
    evaluator = Evaluator()
    crowd_and_one = PackedMasks.from_dense(bars(30, 10))
    evaluator.add(1, crowd_and_one, forest(bars(9, 20, 25), [0.3, 0.9, 0.8]), crowd=[True, False])
    assert evaluator.recall(1000)[0, 0, 0] == 1
    assert evaluator.summary()["AP50"] == pytest.approx(
        1, rel=1e-15
    )  # the two inside the crowd are not false positives


def test_merge_equals_adding_all(tools):
    rng = np.random.default_rng(3)
    images = [tools.random_image(rng) for _ in range(6)]
    whole, parts = Evaluator(MAX_DETS), [Evaluator(MAX_DETS), Evaluator(MAX_DETS)]
    for number, image in enumerate(images):
        for evaluator in (whole, parts[number % 2]):
            evaluator.add(number, tools.packed(image.gt), tools.forest_of(image), crowd=image.crowd)
    parts[0].merge(parts[1])
    np.testing.assert_equal(parts[0].summary(), whole.summary())
    np.testing.assert_equal(parts[0].per_image(), whole.per_image())
    with pytest.raises(ValueError, match="image 1 was added before"):
        whole.merge(parts[1])
    with pytest.raises(ValueError, match="expected an evaluator with"):
        whole.merge(Evaluator())


def test_per_image_rows():
    evaluator = Evaluator((1, 1000))
    evaluator.add(2, PackedMasks.from_dense(bars(10, 20)), forest(bars(20), [0.9]))
    evaluator.add(1, PackedMasks.from_dense(bars(10)), forest(bars()[:0], []))
    rows = evaluator.per_image()
    assert [row["image"] for row in rows] == ["1", "2"]
    assert [row["AR@1000"] for row in rows] == [0, 0.5]
    assert [(row["true_masks"], row["predicted_masks"]) for row in rows] == [(1, 0), (2, 1)]


def test_granularity_is_recall_of_the_first_masks(tools):
    rng = np.random.default_rng(12)
    images = [tools.random_image(rng, max_pred=40) for _ in range(5)]
    evaluator = tools.run_evaluator(images, (3, 25), None)
    curve = evaluator.granularity()
    assert [row["max_dets"] for row in curve] == [1, 2, 5, 10, 20, 25]
    for row in curve:
        k = row["max_dets"]
        assert row["AR"] == tools.run_evaluator(images, (k,), None).summary()[f"AR@{k}"]
        assert row["masks_per_image"] == np.mean([min(k, len(image.pred)) for image in images])
        assert row["AR50"] == evaluator.recall(k)[0, 0, 0]
    aware = tools.run_evaluator(images, (3, 25), None, class_aware=True).granularity()
    assert aware[0]["masks_per_image"] == np.mean([len(set(image.pred_categories.tolist())) for image in images])
    assert [row["max_dets"] for row in Evaluator().granularity()] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


def test_boxes_in_memory_are_those_around_the_masks(tools):
    rng = np.random.default_rng(13)
    images = [tools.in_category_order(tools.random_image(rng)) for _ in range(6)]
    truth, results = tools.coco_files(images)
    for record, box in zip(truth["annotations"], [b for i in images for b in tools.boxes_around(i.gt)], strict=True):
        record["bbox"] = box.tolist()
    evaluator = tools.run_evaluator(images, MAX_DETS, tools.TINY_AREAS, iou_type="box")
    oracle = tools.run_pycocotools(truth, results, MAX_DETS, tools.TINY_AREAS, iou_type="bbox")
    tools.assert_equal_bits(evaluator, *oracle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_type": "segm"}, "iou_type: expected 'mask' or 'box', got 'segm'"),
        ({"max_dets": (0, 5)}, r"max_dets: expected rising numbers above 0, got \[0, 5\]"),
        ({"max_dets": ()}, r"max_dets: expected rising numbers above 0, got \[\]"),
        ({"iou_thresholds": (0.7, 0.5)}, r"iou_thresholds: expected rising numbers above 0, got \[0.7, 0.5\]"),
        ({"iou_thresholds": (0.7, 1.5)}, r"iou_thresholds: expected at most 1, got \[0.7, 1.5\]"),
        ({"area_ranges": {"big": (0, 9)}}, r"area_ranges: expected a range named 'all', got \['big'\]"),
    ],
)
def test_a_wrong_protocol_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Evaluator(**options)


@pytest.mark.parametrize(
    ("pred", "options", "message"),
    [
        (forest(bars(3, width=41), [0.5]), {}, r"image 5: expected predictions of size \(1, 40\), got \(1, 41\)"),
        (forest(bars(3), [float("nan")]), {}, "image 5: expected finite scores, got nan"),
        (
            forest(bars(3), [0.5]),
            {"crowd": [True]},
            r"image 5: crowd: expected one value for each of 2 masks, got shape \[1\]",
        ),
        (forest(bars(3), [0.5]), {"gt_parents": [1, 0]}, "image 5: parents hold a cycle above mask 0"),
        (forest(bars(3), [0.5]), {"gt_parents": [2, -1]}, r"image 5: expected parents from -1 to 1, got \[2, -1\]"),
    ],
)
def test_a_wrong_image_is_refused_and_named(pred, options, message):
    evaluator = Evaluator()
    with pytest.raises(ValueError, match=f"^{message}$"):
        evaluator.add(5, PackedMasks.from_dense(bars(10, 20)), pred, **options)
    assert len(evaluator) == 0
