# SPDX-License-Identifier: Apache-2.0
"""Metrics do not depend on torch's default device and dtype; errors for unknown names suggest the nearest name;
pycocotools is imported only to draw polygons."""

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from micro import default_dtype

from sohes.baselines.classical import box_grid_forest, felzenszwalb_forest, slic_tree_forest
from sohes.baselines.run import BaselineError, make_baseline
from sohes.configs.evaluate import BaselineConfig
from sohes.configs.run import ExploreConfig
from sohes.data.coco import LabelSet
from sohes.evaluation import Evaluator, Plan, score
from sohes.evaluation.bootstrap import Bootstrap, collect_sums
from sohes.evaluation.protocol import Protocol
from sohes.evaluation.tables import granularity, per_image, summarize

OTHERS = {
    "meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
}


@pytest.fixture
def files(tools, tmp_path):
    rng = np.random.default_rng(4)
    truth, results = tools.coco_files([tools.random_image(rng) for _ in range(9)], with_boxes=True)
    for record in truth["annotations"]:
        record["parent"] = None
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "pred.json").write_text(json.dumps({"images": truth["images"], "annotations": results}))
    return tmp_path / "gt.json", tmp_path / "pred.json"


def figures(evaluations):
    return summarize(evaluations), granularity(evaluations), per_image(evaluations)


@pytest.mark.parametrize("other", OTHERS)
def test_files_are_scored_alike(files, other):
    plan = Plan(iou_types=("mask", "box"), threads=2)
    expected = score(*files, plan)
    intervals = []
    with OTHERS[other]():
        found = score(*files, plan)
        np.testing.assert_equal(figures(found), figures(expected))
    for context in (contextlib.nullcontext, OTHERS[other]):
        with context():
            sums = collect_sums(expected["mask"])
            intervals.append(Bootstrap(9, 50, 0.9, seed=1).interval(sums, "AR@1000"))
    assert intervals[0] == intervals[1]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("iou_type", ["mask", "box"])
def test_masks_in_memory_are_scored_alike(tools, other, iou_type):
    rng = np.random.default_rng(6)
    images = [tools.random_image(rng) for _ in range(6)]
    forests = [(tools.packed(image.gt), tools.forest_of(image)) for image in images]

    def summary() -> dict[str, float]:
        evaluator = Evaluator(iou_type=iou_type)
        for number, (gt, pred) in enumerate(forests):
            evaluator.add(number, gt, pred, crowd=images[number].crowd, gt_parents=np.full(len(gt), -1))
        return evaluator.summary()

    expected = summary()
    with OTHERS[other]():
        np.testing.assert_equal(summary(), expected)


@pytest.mark.parametrize("other", OTHERS)
def test_label_sets_are_read_alike(files, other):
    expected = list(LabelSet(files[1], image_root="."))
    with OTHERS[other]():
        found = list(LabelSet(files[1], image_root="."))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.forest.masks.words, theirs.forest.masks.words)
        for name in ("scores", "parents", "levels"):
            assert torch.equal(getattr(ours.forest, name), getattr(theirs.forest, name))
        assert torch.equal(ours.crowd, theirs.crowd)


@pytest.mark.parametrize("other", ["float64", "meta"])
@pytest.mark.parametrize("segment", [box_grid_forest, felzenszwalb_forest, slic_tree_forest])
def test_baselines_draw_alike(other, segment):
    if segment is not box_grid_forest:
        pytest.importorskip("skimage")
    photo = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 40, 50), dtype=np.uint8))
    photo[:, 8:30, 10:30] //= 4
    config = BaselineConfig(slic_segments=30, felzenszwalb_scales=(50, 400), box_grid_sides=(1, 3))
    expected = segment(photo, config)
    with OTHERS[other]():
        found = segment(photo, config)
    assert len(found) > 0
    for name in ("scores", "parents"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert torch.equal(found.masks.words, expected.masks.words)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gt_areas": [1.0, float("nan")]}, "gt_areas: expected finite numbers from 0 up, got .1.0, nan."),
        ({"gt_areas": [1.0, -1.0]}, "gt_areas: expected finite numbers from 0 up"),
        ({"gt_areas": ["7", "8"]}, "gt_areas: expected finite numbers from 0 up"),
        ({"gt_parents": [-1, 0.5]}, "gt_parents: expected whole numbers, got .-1.0, 0.5."),
        ({"gt_categories": [1, 1e30]}, "gt_categories: expected whole numbers"),
        ({"gt_categories": [1, None]}, "gt_categories: expected whole numbers"),
        ({"gt_categories": [1, [2]]}, "inhomogeneous"),
    ],
)
def test_numbers_beside_masks_in_memory_are_checked(tools, values, message):
    image = tools.random_image(np.random.default_rng(1))
    masks = tools.packed(np.ones((2, 9, 11), bool))
    with pytest.raises(ValueError, match=message):
        Evaluator().add(1, masks, tools.forest_of(image), **values)


def test_huge_categories_in_memory_are_told_apart(tools):
    image = tools.random_image(np.random.default_rng(1))
    image.pred, image.scores = np.ones((2, 9, 11), bool), np.array([0.5, 0.25], np.float32)
    evaluator = Evaluator(class_aware=True)
    categories = {"gt_categories": [2**64 + 3], "pred_categories": [2**64 + 4, 2**64 + 3]}
    evaluator.add(1, tools.packed(np.ones((1, 9, 11), bool)), tools.forest_of(image), **categories)
    assert evaluator.categories == [2**64 + 3, 2**64 + 4]
    assert evaluator.summary()["AR@1"] == 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: Protocol(iou_type="maks"), "iou_type: did you mean mask. expected 'mask' or 'box', got 'maks'"),
        (lambda: Protocol(max_dets=(1, 2**31)), "max_dets: expected at most 2147483647, got 2147483648"),
        (lambda: Protocol(iou_thresholds=(0.5, float("nan"))), "iou_thresholds: expected"),
        (
            lambda: make_baseline("box-gird", BaselineConfig(), ExploreConfig()),
            "baseline box-gird: did you mean box-grid. expected one of felzenszwalb, slic-tree, box-grid, tree-oracle",
        ),
    ],
)
def test_choices_that_there_are_not_are_named_with_the_nearest(ask, message):
    with pytest.raises((ValueError, BaselineError), match=message):
        ask()


def test_a_metric_that_there_is_not_is_named_with_the_nearest(files):
    sums = collect_sums(score(*files, Plan())["mask"])
    for ask in (sums.value, sums.of_photo, lambda name: Bootstrap(9, 5, 0.9, 0).interval(sums, name)):
        with pytest.raises(
            ValueError, match=r"metric parent_recal: did you mean parent_recall\? expected one of AR@1,"
        ):
            ask("parent_recal")


NO_POLYGONS = """
import sys
for name in ("pycocotools", "pycocotools.mask", "tyro"):
    sys.modules[name] = None
import sohes.evaluation, sohes.data.coco, sohes.utils.json_stream, sohes.baselines.run, sohes.evaluation.bootstrap
from sohes.evaluation import evaluate_files
from sohes.data.coco import LabelSet
from sohes.utils.errors import SohesError
print(evaluate_files(*sys.argv[1:3])["num_images"], len(list(LabelSet(sys.argv[2]))))
for read in (evaluate_files, lambda gt, pred: list(LabelSet(gt))):
    try:
        read(*sys.argv[3:])
    except SohesError as error:
        print(error)
"""


def test_only_polygons_need_pycocotools(files, tmp_path):
    content = json.loads(files[0].read_text())
    content["annotations"][0]["segmentation"] = [[0, 0, 5, 0, 5, 5]]
    (tmp_path / "polygons.json").write_text(json.dumps(content))
    command = [sys.executable, "-c", NO_POLYGONS, *files, tmp_path / "polygons.json", files[1]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "9.0 9",
        *["polygons need pycocotools, which is not installed: pip install pycocotools"] * 2,
    ]
