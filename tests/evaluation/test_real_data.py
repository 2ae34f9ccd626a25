# SPDX-License-Identifier: Apache-2.0
"""Ground truth that people drew: the same figures as pycocotools, on predictions made by spoiling it, and on those of
baselines.

    SOHES_WHOLE_SETS=1 pytest tests/evaluation/test_real_data.py -k baseline      # every image; minutes
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sohes.evaluate import main
from sohes.evaluation import Plan, score, score_files

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "eval"
COCO_AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
MAX_DETS = (1, 10, 100, 1000)


def read(name, num_images):
    file = DATA / name / "annotations.json"
    if not file.is_file():
        pytest.skip(f"no such data: {file}")
    truth = json.loads(file.read_text())
    truth["images"] = truth["images"][:: max(1, len(truth["images"]) // num_images)][:num_images]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [record for record in truth["annotations"] if record["image_id"] in kept]
    for record in truth["annotations"]:  # the class that the data set had, for the class-aware figures
        record["category_id"] = record.get("source_category", 1)
    truth["categories"] = [{"id": n, "name": str(n)} for n in {r["category_id"] for r in truth["annotations"]}]
    return truth


def spoil(truth, rng):
    """For each true mask its bounding box, and the mask moved by some pixels, sometimes with another class."""
    results = []
    for record in truth["annotations"]:
        mask = coco_mask.decode(record["segmentation"])
        x, y, width, height = (int(side) for side in record["bbox"])
        box = np.zeros_like(mask)
        box[y : y + height, x : x + width] = 1
        moved = np.roll(mask, rng.integers(-6, 7, size=2), axis=(0, 1))
        for guess in (box, moved):
            rle = coco_mask.encode(np.asfortranarray(guess))
            bbox = coco_mask.toBbox(rle).tolist()
            rle["counts"] = rle["counts"].decode()
            category = truth["categories"][0]["id"] if rng.random() < 0.1 else record["category_id"]
            result = {"image_id": record["image_id"], "category_id": category, "segmentation": rle, "bbox": bbox}
            results.append({**result, "score": round(rng.random(), 2)})
    return results


def split_by_annotator(truth, results):
    """As in sohes: each annotator's masks are a separate image with the same predictions."""
    split = {**truth, "images": [], "annotations": []}
    repeated = []
    for image in truth["images"]:
        mine = [record for record in truth["annotations"] if record["image_id"] == image["id"]]
        for annotator in sorted({record["annotator"] for record in mine}):
            number = 100 * image["id"] + annotator
            split["images"].append({**image, "id": number})
            split["annotations"] += [{**r, "image_id": number} for r in mine if r["annotator"] == annotator]
            repeated += [{**r, "image_id": number} for r in results if r["image_id"] == image["id"]]
    return split, repeated


SETS = ["ade20k_parts3", "bsds_val", "carparts50", "coco128_seg", "coco_tiny100"]


@pytest.mark.parametrize("baseline", ["box-grid", "felzenszwalb"])
@pytest.mark.parametrize("name", SETS)
def test_predictions_of_a_baseline_score_as_in_pycocotools(tools, tmp_path, capsys, name, baseline):
    """From the command; two images of the sets of small photos with the quicker baseline, unless SOHES_WHOLE_SETS is
    set."""
    is_whole = bool(os.environ.get("SOHES_WHOLE_SETS"))
    if not is_whole and (baseline != "box-grid" or not name.startswith("coco")):
        pytest.skip("SOHES_WHOLE_SETS is not set")
    if not (DATA / name).is_dir():
        pytest.skip(f"no such data: {DATA / name}")
    if baseline == "felzenszwalb":
        pytest.importorskip("skimage", reason="scikit-image is not installed")
    pred, out = tmp_path / "pred.json", tmp_path / "out.json"
    given = ["--dataset", "plain", "--root", str(DATA / name), "--baseline", baseline, "--pred", str(pred)]
    if not is_whole:
        given += ["--num-images", "2"]
    assert main([*given, "--out", str(out)]) == 0
    with capsys.disabled():
        print(f"\n{name}, {baseline}: " + " ".join(capsys.readouterr().out.split()[:14]))
    truth = json.loads((tmp_path / "pred.plain.json").read_text())
    truth["categories"] = [{"id": n, "name": str(n)} for n in {r["category_id"] for r in truth["annotations"]}]
    results = [{"category_id": 1, **result} for result in json.loads(pred.read_text())["annotations"]]
    if name == "bsds_val":
        truth, results = split_by_annotator(truth, results)
    scored = score_files(tmp_path / "pred.plain.json", pred)
    tools.assert_equal_bits(scored, *tools.run_pycocotools(truth, results, MAX_DETS, COCO_AREAS))
    assert json.loads(out.read_text())["AR@1000"] == scored.summary()["AR@1000"] > 0.01


@pytest.mark.parametrize(
    ("name", "num_images"),
    [("ade20k_parts3", 3), ("bsds_val", 3), ("carparts50", 8), ("coco128_seg", 30), ("coco_tiny100", 30)],
)
def test_equals_pycocotools(tools, tmp_path, name, num_images):
    truth = read(name, num_images)
    results = spoil(truth, np.random.default_rng(4))
    for file, content in (("gt.json", truth), ("pred.json", results)):
        (tmp_path / file).write_text(json.dumps(content))
    if name == "bsds_val":
        truth, results = split_by_annotator(truth, results)
    for class_aware in (False, True):
        categories = sorted(category["id"] for category in truth["categories"])
        plan = Plan(MAX_DETS, ("mask", "box"), class_aware)
        scored = score(tmp_path / "gt.json", tmp_path / "pred.json", plan)
        for iou_type, coco_name in (("mask", "segm"), ("box", "bbox")):
            options = (MAX_DETS, COCO_AREAS, class_aware, coco_name)
            tools.assert_equal_bits(scored[iou_type], *tools.run_pycocotools(truth, results, *options), categories)
        assert 0.2 < scored["mask"].summary()["AR@1000"] < 1
