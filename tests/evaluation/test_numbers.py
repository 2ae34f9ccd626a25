# SPDX-License-Identifier: Apache-2.0
"""Invalid numbers in every field of both files: one clear error, or the same metrics as without them, for the compiled
reader and the Python reader."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sohes.evaluate import main
from sohes.evaluation import (
    BadInput,
    Plan,
    annotations,
    coco_index,
    evaluate_files,
    image,
    matching,
    metrics,
    protocol,
    runs,
    score,
)
from sohes.ops._binary import Binary, find_binary

SIZE = (20, 30)
SQUARE = {"size": [20, 30], "counts": [100, 10, 10, 10, 470]}
RAW = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf"), "1e999": float("inf")}
VALUES = {
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e999": "1e999",
    "-1": "-1",
    "1e308": "1e308",
    "2**31": str(2**31),
    "2**63": str(2**63),
    "2**64+3": str(2**64 + 3),
    "10**400": "1" + "0" * 400,
    "1.5": "1.5",
    "7 as text": '"7"',
    "true": "true",
    "null": "null",
    "list": "[[1, 2], [3]]",
    "object": "{}",
}
HUGE = {"2**31", "2**63", "2**64+3"}
IDS = {"-1", *HUGE, "10**400", "7 as text"}  # integers and text can be ids
# Per field: the values that are valid, or ignored.
FINE = {
    "id": {*IDS, "null"},
    "category_id": {*IDS, "null"},
    "annotator": set(),  # only where all have one
    "score": {"-1", "1e308", *HUGE, "1.5"},
    "area": {"2**31", "1.5", "null"},
    "iscrowd": {"null", "true"},
    "bbox": {"null"},
    "parent": {"null"},
    "level": set(VALUES) - {"NaN", "Infinity", "-Infinity", "1e999"},
}


@pytest.fixture(params=["compiled", "python"])
def reader(request, monkeypatch):
    """Both readers of files."""
    if request.param == "compiled" and find_binary().module is None:
        pytest.skip(find_binary().reason)
    if request.param == "python":
        for module in (annotations, coco_index, image, matching, metrics, runs):
            monkeypatch.setattr(module, "find_binary", lambda: Binary(None, None, "left out"))
    return request.param


def compressed(one):
    from sohes.ops.reference.mask_rle import compress

    return {"size": one["size"], "counts": compress(np.array(one["counts"], np.int64))}


@pytest.fixture
def write(tmp_path):
    """Writes both files, with ``value`` as JSON text in the place of "HERE"."""

    def write(truth=None, found=None, image=None, value="0", more=()):
        one = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": compressed(SQUARE), "area": 20, "iscrowd": 0}
        record = {"id": 1, "width": 30, "height": 20, "file_name": "a.png"} | (image or {})
        gt = {"images": [record], "annotations": [one | (truth or {}), *more]}
        pred = [{"image_id": 1, "category_id": 3, "segmentation": one["segmentation"], "score": 0.5} | (found or {})]
        for name, content in (("gt.json", gt), ("pred.json", pred)):
            (tmp_path / name).write_text(json.dumps(content).replace('"HERE"', value))
        return tmp_path / "gt.json", tmp_path / "pred.json"

    return write


def outcome(files, **plan):
    """The metrics, or the error as text."""
    try:
        return {name: found.summary() for name, found in score(*files, Plan(**plan)).items()}
    except BadInput as error:
        return str(error)


@pytest.mark.parametrize("side", ["truth", "found"])
@pytest.mark.parametrize("field", FINE)
@pytest.mark.parametrize("value", VALUES)
def test_values_of_an_annotation(reader, write, side, field, value):
    files = write(**{side: {field: "HERE"}}, value=VALUES[value])
    for iou_types in (("mask",), ("mask", "box")):
        result = outcome(files, iou_types=iou_types)
        is_fine = value in FINE[field]
        if side == "found" and field == "parent":
            is_fine = is_fine or value in IDS  # an unknown parent makes a root
        if (field, value, side) in {("annotator", one, "truth") for one in IDS} | {("score", "null", "truth")}:
            is_fine = True
        if side == "found" and field == "annotator":
            is_fine = value in IDS
        if isinstance(result, str):
            assert not is_fine, result
            assert field in result
            assert ("gt.json" if side == "truth" else "pred.json") in result
        else:
            assert is_fine
            is_crowd = side == "truth" and field == "iscrowd" and value == "true"
            assert np.isnan(result["mask"]["AR@1000"]) if is_crowd else result["mask"]["AR@1000"] == 1


@pytest.mark.parametrize(
    "place", ["corner", "run length", "side of the RLE", "counts", "box", "segmentation", "polygon"]
)
@pytest.mark.parametrize("side", ["truth", "found"])
@pytest.mark.parametrize("value", VALUES)
def test_values_within_lists(reader, write, place, side, value):
    changed = {
        "corner": {"segmentation": [[5, 0, "HERE", 0, 15, 9, 5, 9]]},
        "run length": {"segmentation": {"size": [20, 30], "counts": [100, "HERE", 500]}},
        "side of the RLE": {"segmentation": {"size": [20, "HERE"], "counts": SQUARE["counts"]}},
        "counts": {"segmentation": {"size": [20, 30], "counts": "HERE"}},
        "box": {"bbox": [1, 2, "HERE", 4]},
        "segmentation": {"segmentation": "HERE"},
        "polygon": {"segmentation": ["HERE"]},
    }[place]
    result = outcome(write(**{side: changed}, value=VALUES[value]), iou_types=("mask", "box"))
    fine = {
        "corner": {"-1", "1.5"},
        "box": {"2**31", "1.5"},
        "segmentation": set(),
    }.get(place, set())
    if isinstance(result, str):
        assert value not in fine, result
        assert ("gt.json" if side == "truth" else "pred.json") in result
    else:
        assert value in fine


@pytest.mark.parametrize("key", ["width", "height", "id", "file_name"])
@pytest.mark.parametrize("value", VALUES)
def test_values_of_an_image(reader, write, key, value):
    truth = {"image_id": "HERE"} if key == "id" else {}
    result = outcome(write(truth=truth, found=truth, image={key: "HERE"}, value=VALUES[value]))
    if value in {"id": IDS, "file_name": {"7 as text", "null"}}.get(key, ()):
        assert result["mask"]["AR@1000"] == 1
    else:
        assert "gt.json" in result
        assert key in result or "10000000000" in result or "1e10" in result or "expected a mask of size" in result


def test_a_huge_image_takes_no_memory(reader, write):
    """Sizes within the limits and beyond, in a process with little memory."""
    code = (
        "import resource, sys; from sohes.evaluation import evaluate_files, BadInput;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: print(evaluate_files(*sys.argv[1:])['AR@1000'])\n"
        "except BadInput as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    for side, expected in ((10**9, "expected at most 1e10 pixels, got a size of"), (10**5, "0.0")):
        empty = {"segmentation": {"size": [side, side], "counts": [side * side]}}
        files = write(truth=empty, found=empty, image={"width": side, "height": side})
        done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False)
        result, grown = done.stdout.splitlines()
        assert expected in result, done.stderr
        assert int(grown) < 50_000  # KiB


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        (
            [-164.1, -221.8, 3.1e8, 2.2e8, 226, 236.5],
            "coordinates of polygons from -16777216 to 16777216, got 310000000.0",
        ),
        ([-164.1, -221.8, 1e7, 3, 226, 236.5], "outline of at most 4194304 pixels, got 2"),
        ([0, 0, 9, 0, 9, 9, 4], "an even number of coordinates, got 7"),
    ],
)
def test_polygons_that_cannot_be_drawn(reader, write, corners, message):
    for side in ("truth", "found"):
        assert message in outcome(write(**{side: {"segmentation": [corners]}}))


def test_polygons_far_outside_are_drawn_as_pycocotools_does(reader, write):
    from pycocotools import mask as coco_mask

    corners = [-4e5, 4.5, 20, -3e5, 21, 4e5]
    rle = coco_mask.merge(coco_mask.frPyObjects([corners], *SIZE))
    assert 0 < coco_mask.area(rle) < 600
    files = write(truth={"segmentation": [corners]}, found={"segmentation": {**rle, "counts": rle["counts"].decode()}})
    assert evaluate_files(*files)["AR@1000"] == 1


def test_huge_categories_are_told_apart(reader, write):
    """With classes, the mean is over the true classes in sorted order; without, they only decide ties."""
    categories = [2**64 + 3, 2**64 + 4, -(2**90)]
    other = {"size": [20, 30], "counts": [580, 20]}
    more = [
        {"id": 2, "image_id": 1, "category_id": categories[1], "segmentation": compressed(SQUARE)},
        {"id": 3, "image_id": 1, "category_id": categories[2], "segmentation": compressed(other)},
    ]
    files = write(truth={"category_id": categories[0]}, found={"category_id": categories[1]}, more=more)
    scored = score(*files, Plan(class_aware=True))["mask"]
    assert scored.categories == sorted(categories)
    assert scored.recall(1000)[0, :, 0].tolist() == [0, 0, 1]
    assert score(*files, Plan())["mask"].summary()["AR@1000"] == pytest.approx(1 / 3)


def test_huge_ids_name_parents(reader, write):
    part = {"id": 2**127, "image_id": 1, "segmentation": compressed(SQUARE), "parent": 2**127 + 1}
    files = write(truth={"id": 2**127 + 1}, more=[part])
    assert outcome(files)["mask"]["parent_recall"] == 0  # there is one pair, of which one is found
    files = write(truth={"id": 2**127 + 1}, more=[{**part, "parent": 2**127 + 2}])
    assert f"parent {2**127 + 2} is not an annotation of this image" in outcome(files)


def test_deep_nesting_is_no_crash(reader, write, tmp_path):
    gt, pred = write(found={"more": "HERE"}, value="[" * 200_000 + "]" * 200_000)
    with pytest.raises(BadInput, match=r"pred.json is not JSON: values are nested too deep at byte \d+"):
        evaluate_files(gt, pred)
    pred.write_text('{"images": [], [1]: 2}')
    with pytest.raises(BadInput, match=r"pred\.json is not JSON: expected a name in quotes at byte 15"):
        evaluate_files(gt, pred)


@pytest.mark.parametrize("first_seed", range(0, 40, 20))
def test_annotations_with_a_box_alone_equal_pycocotools(reader, tools, tmp_path, monkeypatch, first_seed):
    """As in pycocotools, such annotations do not count as masks, but count as boxes."""
    monkeypatch.setattr(protocol, "COCO_AREAS", tools.TINY_AREAS)
    limits = (1, 3, 100)
    for seed in range(first_seed, first_seed + 20):
        rng = np.random.default_rng(3000 + seed)
        truth, results = tools.coco_files([tools.random_image(rng, max_gt=8) for _ in range(3)], with_boxes=True)
        gone = rng.random(len(truth["annotations"])) < 0.3
        drawn = [one for one, is_gone in zip(truth["annotations"], gone, strict=True) if not is_gone]
        if not drawn or not results:
            continue
        bare = [one | {"segmentation": []} if gone[n] else one for n, one in enumerate(truth["annotations"])]
        (tmp_path / "gt.json").write_text(json.dumps(truth | {"annotations": bare}))
        (tmp_path / "pred.json").write_text(json.dumps(results))
        scored = score(tmp_path / "gt.json", tmp_path / "pred.json", Plan(limits, ("mask", "box")))
        of_masks = tools.run_pycocotools(truth | {"annotations": drawn}, results, limits, tools.TINY_AREAS)
        of_boxes = tools.run_pycocotools(truth, results, limits, tools.TINY_AREAS, iou_type="bbox")
        tools.assert_equal_bits(scored["mask"], *of_masks, message=f"seed {seed}")
        tools.assert_equal_bits(scored["box"], *of_boxes, message=f"seed {seed}")


def test_the_two_readers_agree_on_files_without_regions(tools, tmp_path, monkeypatch):
    """With annotators, parents and classes."""
    rng = np.random.default_rng(12)
    truth, results = tools.coco_files([tools.random_image(rng, max_gt=8) for _ in range(12)], with_boxes=True)
    last = {}
    for record in truth["annotations"]:
        record["annotator"] = int(rng.integers(2))
        record["parent"] = last.get((record["image_id"], record["annotator"]))
        last[record["image_id"], record["annotator"]] = record["id"]
        if rng.random() < 0.3:
            record["segmentation"] = [None, []][rng.integers(2)]
            if rng.random() < 0.5:
                del record["bbox"]
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "pred.json").write_text(json.dumps(results))
    plan = Plan(iou_types=("mask", "box"), class_aware=True)
    ours = score(tmp_path / "gt.json", tmp_path / "pred.json", plan)
    for module in (annotations, coco_index, image, matching, metrics, runs):
        monkeypatch.setattr(module, "find_binary", lambda: Binary(None, None, "left out"))
    theirs = score(tmp_path / "gt.json", tmp_path / "pred.json", plan)
    for iou_type in ours:
        np.testing.assert_equal(ours[iou_type].summary(), theirs[iou_type].summary())
        np.testing.assert_equal(ours[iou_type].per_image(), theirs[iou_type].per_image())
    assert ours["mask"].summary()["parent_recall"] >= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"area": float("nan")}, "expected a number of pixels from 0 to 1e10 as area, got NaN"),
        ({"level": float("inf")}, "expected a finite number as level, got Infinity"),
        ({"id": 1.5}, "expected an integer or a string as id, got 1.5"),
        ({"segmentation": [[0, 0, float("nan"), 0, 3, 3]]}, "expected finite numbers as segmentation, got "),
        ({"segmentation": {"size": [20, 30], "counts": [0, 10**400]}}, "from 0 to 600 pixels, got 1000"),
    ],
)
@pytest.mark.parametrize("baseline", [None, "tree-oracle"])
def test_data_sets_are_checked_as_files_are(write, tmp_path, capsys, change, message, baseline):
    """In the conversion, and in the oracle."""
    gt, pred = write(truth=change)
    gt.rename(tmp_path / "annotations.json")
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    options = (
        ["--pred", str(pred)] if baseline is None else ["--pred", str(tmp_path / "b.json"), "--baseline", baseline]
    )
    with pytest.raises(SystemExit) as stop:
        main(["--dataset", "plain", "--root", str(tmp_path), *options])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert message in error
    assert any(name in error for name in ("annotations.json", "plain.json", "a.png: "))
