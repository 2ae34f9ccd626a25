# SPDX-License-Identifier: Apache-2.0
"""Files of predictions against files of ground truth: the same metrics as in memory, or a clear error."""

import json
import logging

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from sohes.evaluation import BadInput, Plan, evaluate_files, protocol, score, score_files
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks


@pytest.fixture
def save(tmp_path):
    """Writes a JSON value, returns the path."""

    def write(name, value):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


@pytest.fixture
def small(tools):
    """A few random images as (images, ground truth, results)."""
    rng = np.random.default_rng(5)
    images = [tools.in_category_order(tools.random_image(rng)) for _ in range(12)]
    return images, *tools.coco_files(images)


def with_images(truth, results):
    """A bare list of results as a COCO file."""
    return {"images": truth["images"], "annotations": results, "categories": truth["categories"]}


def assert_same(ours, theirs):
    np.testing.assert_equal(ours, theirs)


def test_files_equal_memory(tools, save, small):
    images, truth, results = small
    evaluator = tools.run_evaluator(images, (1, 10, 1000), None)
    gt = save("gt.json", truth)
    for name, content in (("list.json", results), ("coco.json", with_images(truth, results))):
        scored = score_files(gt, save(name, content), max_dets=(1, 10, 1000))
        assert_same(scored.summary(), evaluator.summary())
        assert_same(scored.per_image(), evaluator.per_image())


def test_annotations_may_stand_in_any_order(save, small):
    _, truth, results = small
    expected = evaluate_files(save("gt.json", truth), save("pred.json", results))
    mixed = [result for start in range(3) for result in results[start::3]]
    mixed.sort(key=lambda result: len(result["segmentation"]["counts"]) % 3)
    by_image = {n: [r for r in results if r["image_id"] == n] for n in range(1, 13)}
    # Within an image the order decides ties, so it is kept.
    mixed = [by_image[result["image_id"]].pop(0) for result in mixed]
    truth["images"].reverse()
    assert_same(evaluate_files(save("gt.json", truth), save("pred.json", mixed)), expected)


@pytest.mark.parametrize("first_seed", range(0, 200, 50))
def test_masks_and_boxes_with_and_without_classes_equal_pycocotools(tools, save, monkeypatch, first_seed):
    """Unsorted categories: they decide ties even without classes, as in pycocotools. Every second set has no boxes in
    the predictions: both compute them from the masks."""
    monkeypatch.setattr(protocol, "COCO_AREAS", tools.TINY_AREAS)
    limits = (1, 3, 100)
    for seed in range(first_seed, first_seed + 50):
        rng = np.random.default_rng(1000 + seed)
        images = [tools.random_image(rng, max_gt=8, max_pred=15) for _ in range(rng.integers(1, 4))]
        truth, results = tools.coco_files(images, with_boxes=seed % 2 == 0)
        if not truth["annotations"] or not results:
            continue  # refused: see below
        gt, pred = save("gt.json", truth), save("pred.json", results)
        for class_aware in (False, True):
            scored = score(gt, pred, Plan(limits, ("mask", "box"), class_aware))
            for iou_type, name in (("mask", "segm"), ("box", "bbox")):
                oracle = tools.run_pycocotools(truth, results, limits, tools.TINY_AREAS, class_aware, name)
                tools.assert_equal_bits(scored[iou_type], *oracle, message=f"seed {seed} {iou_type} {class_aware}")
                if iou_type == "mask" and not class_aware:  # alone, each image is one call of the compiled module
                    alone = score_files(gt, pred, max_dets=limits)
                    tools.assert_equal_bits(alone, *oracle, message=f"seed {seed} alone")
                    np.testing.assert_equal(alone.per_image(), scored["mask"].per_image())


COCO_AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def test_scores_keep_all_their_digits(save):
    """Two scores that are equal in single precision; the better one is second."""
    size = [1, 40]
    images = [{"id": 1, "width": 40, "height": 1}]
    truth = {"images": images, "annotations": [annotation(1, 1, [0, 20, 20])]}
    results = [
        {"image_id": 1, "segmentation": {"size": size, "counts": [0, 11, 29]}, "score": 0.5},
        {"image_id": 1, "segmentation": {"size": size, "counts": [0, 20, 20]}, "score": 0.5 + 1e-12},
    ]
    assert evaluate_files(save("gt.json", truth), save("pred.json", results))["AR@1"] == 1


def annotation(number, image_id, counts, **more):
    return {"id": number, "image_id": image_id, "segmentation": {"size": [1, 40], "counts": counts}, **more}


def test_each_annotator_is_an_image_of_its_own(tools, save):
    """Equal to pycocotools on copies of the images, one per annotator, with repeated predictions."""
    rng = np.random.default_rng(2)
    images = [tools.random_image(rng) for _ in range(5)]
    truth, results = tools.coco_files(images)
    copies = {"images": [], "annotations": [], "categories": truth["categories"]}
    repeated, records = [], []
    for record in truth["annotations"]:
        records.append({**record, "annotator": int(rng.integers(3))})
    for image in truth["images"]:
        for annotator in sorted({r["annotator"] for r in records if r["image_id"] == image["id"]}):
            number = 10 * image["id"] + annotator
            copies["images"].append({**image, "id": number})
            repeated += [{**r, "image_id": number} for r in results if r["image_id"] == image["id"]]
            copies["annotations"] += [
                {**r, "image_id": number}
                for r in records
                if (r["image_id"], r["annotator"]) == (image["id"], annotator)
            ]
    scored = score_files(save("gt.json", {**truth, "annotations": records}), save("pred.json", results))
    tools.assert_equal_bits(scored, *tools.run_pycocotools(copies, repeated, (1, 10, 100, 1000), COCO_AREAS))
    assert scored.summary()["num_images"] == len(copies["images"])
    assert scored.per_image()[0]["image"] == f"{copies['images'][0]['id'] // 10}/{copies['images'][0]['id'] % 10}"


def test_parents_and_polygons(save):
    """A square with a part, the square drawn as a polygon; the prediction is the same forest."""
    dense = np.zeros((2, 12, 12), bool)
    dense[0, 2:10, 2:10] = dense[1, 2:6, 2:6] = True
    forest = Forest(PackedMasks.from_dense(dense), torch.tensor([0.5, 0.25]), torch.tensor([-1, 0]))
    images = [{"id": "a", "file_name": "x/a.png", "width": 12, "height": 12}]
    pred = {"images": [{**images[0], "file_name": "y/a.jpg"}], "annotations": forest.to_coco("a", first_id=50)}
    part = {**forest.to_coco("a", first_id=7)[1], "parent": 3}
    corners = [2, 2, 10, 2, 10, 10, 2, 10]
    assert coco_mask.decode(coco_mask.frPyObjects([corners], 12, 12))[..., 0].sum() == 64
    whole = {"id": 3, "image_id": "a", "segmentation": [corners], "area": 64, "iscrowd": 0}
    gt = save("gt.json", {"images": images, "annotations": [part, whole]})
    summary = evaluate_files(gt, save("pred.json", pred))
    assert (summary["AR@1000"], summary["parent_recall"], summary["ancestor_f1"]) == (1, 1, 1)
    pred["annotations"][1]["parent"] = 999  # gone: the part is a root
    assert evaluate_files(gt, save("pred.json", pred))["parent_recall"] == 0


def test_images_without_predictions_are_missed_and_mentioned(save, small, caplog):
    _, truth, results = small
    first = [result for result in results if result["image_id"] == 2]
    with caplog.at_level(logging.WARNING):
        summary = evaluate_files(save("gt.json", truth), save("pred.json", first))
    assert summary["num_images"] == 12
    assert "11 of 12 images have no predictions" in caplog.text
    nothing = {"images": truth["images"], "annotations": []}
    assert evaluate_files(save("gt.json", truth), save("pred.json", nothing))["AR@1000"] == 0


def change(record, **values):
    record.update(values)


BAD = {
    "missing": (lambda gt, pred: None, "pred.json: no such file"),
    "not json": (
        lambda gt, pred: '{"images": [',
        r"pred.json is not JSON: Expecting value at byte 12",
    ),
    "more": (lambda gt, pred: "[] []", r"pred.json is not JSON: there is more after its end, '\['"),
    "a number": (lambda gt, pred: 7, 'pred.json: expected COCO JSON, an object with lists "images" and .*, got 7'),
    "no annotations key": (lambda gt, pred: {"images": []}, 'expected COCO JSON, .*; there is no "annotations"'),
    "no list": (lambda gt, pred: {"images": {}, "annotations": []}, 'expected COCO JSON, .*; "images" is no list'),
    "empty list": (lambda gt, pred: [], "pred.json: there are no predictions in this list"),
    "no truth": (lambda gt, pred: gt["annotations"].clear(), "gt.json: there are no annotations to score against"),
    "no image id": (
        lambda gt, pred: pred[0].pop("image_id") and None,
        "expected annotations with an image_id, got {.*",
    ),
    "bad image": (lambda gt, pred: change(gt["images"][0], id=None), 'expected images with an id, got {"id": null,.*'),
    "repeated image": (lambda gt, pred: change(gt["images"][0], id=2), "gt.json: image id 2 occurs twice"),
    "stray truth": (
        lambda gt, pred: change(gt["annotations"][0], image_id=77),
        "gt.json: annotations of image 77, which is not among its images",
    ),
    "unknown image": (
        lambda gt, pred: change(pred[0], image_id=77),
        r"pred.json: 1 of \d+ images are not in .*gt.json, image 77 first",
    ),
    "other images": (
        lambda gt, pred: [{**result, "image_id": f"{result['image_id']}.jpg"} for result in pred],
        r"no image of .*pred.json is in .*gt.json \(image ids such as '\d+.jpg', .* against 1, 2, 3\)",
    ),
    "other width": (
        lambda gt, pred: with_images({**gt, "images": [{**gt["images"][0], "width": 5}]}, []),
        "image 1: width is 11 in .*gt.json but 5 in .*pred.json",
    ),
    "other name": (
        lambda gt, pred: with_images({**gt, "images": [{**gt["images"][0], "file_name": "b/99.png"}]}, []),
        "image 1 is 1.png in .*gt.json but b/99.png in .*pred.json",
    ),
    "no size": (
        lambda gt, pred: gt["images"][0].pop("width") and None,
        "gt.json: expected height and width of image 1, got 9 and None",
    ),
    "other mask size": (
        lambda gt, pred: change(pred[0]["segmentation"], size=[11, 9]),
        r"image \d+: annotation \(without id\): expected a mask of size \[9, 11\], got \[11, 9\]",
    ),
    "broken mask": (
        lambda gt, pred: change(gt["annotations"][0]["segmentation"], counts="4"),
        r"gt.json, image \d+: mask 0: run lengths add up to 4, expected 9 x 11 = 99",
    ),
    "no mask": (
        lambda gt, pred: pred[0].pop("segmentation") and None,
        "annotation .*: expected a segmentation, RLE or polygons of three corners or more",
    ),
    "no score": (
        lambda gt, pred: pred[0].pop("score") and None,
        r"annotation \(without id\): expected a number as score of every annotation, got none",
    ),
    "nan score": (
        lambda gt, pred: change(pred[0], score=float("nan")),
        r"pred.json, image \d+: annotation .*: expected a finite number as score, got NaN",
    ),
    "no area": (
        lambda gt, pred: change(gt["annotations"][0], area="7"),
        r'gt.json, image \d+: annotation 1: expected a number of pixels from 0 to 1e10 as area, got "7"',
    ),
    "odd run lengths": (
        lambda gt, pred: change(pred[0]["segmentation"], counts=[None]),
        r"pred.json, image \d+: annotation .*: expected whole run lengths from 0 to 99 pixels, got null",
    ),
    "no annotator": (
        lambda gt, pred: change(gt["annotations"][0], annotator=1),
        r"gt.json, image \d+: expected an annotator on every annotation, as on others of this file",
    ),
    "unknown parent": (
        lambda gt, pred: change(gt["annotations"][0], parent=999),
        r"gt.json, image \d+: parent 999 is not an annotation of this image",
    ),
    "own parent": (
        lambda gt, pred: change(gt["annotations"][0], parent=1),
        r"pred.json against .*gt.json, image \d+: parents hold a cycle above mask 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(save, small, case):
    spoil, message = BAD[case]
    _, truth, results = small
    for number, image in enumerate(truth["images"], start=1):
        image["file_name"] = f"{number}.png"
    replaced = spoil(truth, results)
    gt, pred = save("gt.json", truth), save("pred.json", results if replaced is None else replaced)
    if case == "missing":
        pred.unlink()
    with pytest.raises(BadInput, match=message):
        evaluate_files(gt, pred)
