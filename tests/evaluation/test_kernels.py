# SPDX-License-Identifier: Apache-2.0
"""The kernels of the evaluation against the Python references, bitwise."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

from sohes.evaluation import Plan, annotations, coco_index, image, matching, metrics, runs, score
from sohes.evaluation.annotations import Annotations, PairWith, Want, read_annotations
from sohes.evaluation.coco_index import CocoIndex
from sohes.evaluation.matching import Pairs, match_greedy
from sohes.evaluation.ranking import row_type
from sohes.evaluation.reference import annotations as reference_annotations
from sohes.evaluation.reference import matching as reference_matching
from sohes.evaluation.reference import precision as reference_precision
from sohes.evaluation.reference.precision import PrecisionCounts
from sohes.evaluation.shapes import Boxes, RunMasks
from sohes.ops._binary import Binary, find_binary

SIZE = (6, 10)
RLE = {"size": [6, 10], "counts": "\\1`0"}  # 44 and 16; a backslash is a character of RLE, and written twice in JSON


@pytest.fixture
def binary():
    found = find_binary()
    if found.module is None:
        pytest.skip(found.reason)
    return found.module


@contextmanager
def without_binary(monkeypatch):
    with monkeypatch.context() as patch:
        for module in (annotations, coco_index, image, matching, metrics, runs):
            patch.setattr(module, "find_binary", lambda: Binary(None, None, "left out"))
        yield


def flat(value):
    """The arrays of a dataclass, or of a list of them, as one list."""
    if isinstance(value, RunMasks):
        used = [np.arange(*bounds) for bounds in value.bounds]  # the arrays may be longer
        index = np.concatenate([np.zeros(0, np.int64), *used])
        return [value.starts[index], value.stops[index], np.diff(value.bounds), value.areas, value.boxes]
    if isinstance(value, Boxes):
        return [value.xywh, value.areas]
    if isinstance(value, Annotations):
        return [array for field in vars(value).values() for array in flat(field)]
    if isinstance(value, list):
        return [array for one in value for array in flat(one)]
    return [np.asarray(value)]


def assert_equal(ours, theirs):
    ours, theirs = flat(ours), flat(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype.kind == b.dtype.kind


def test_files_are_scored_alike_with_and_without_the_compiled_module(binary, tools, tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    images = [tools.random_image(rng, max_gt=8, max_pred=30) for _ in range(20)]
    truth, results = tools.coco_files(images, with_boxes=True)
    for number, record in enumerate(truth["annotations"]):
        record["parent"] = None if number % 3 else record["id"]
        record.update({"parent": None} if record["parent"] == record["id"] else {})
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "pred.json").write_text(json.dumps(results, indent=2))
    for class_aware in (False, True):
        plan = Plan(iou_types=("mask", "box"), class_aware=class_aware)
        ours = score(tmp_path / "gt.json", tmp_path / "pred.json", plan)
        with without_binary(monkeypatch):
            theirs = score(tmp_path / "gt.json", tmp_path / "pred.json", plan)
        for iou_type in ours:
            np.testing.assert_equal(ours[iou_type].summary(), theirs[iou_type].summary())
            np.testing.assert_equal(ours[iou_type].per_image(), theirs[iou_type].per_image())
            np.testing.assert_equal(ours[iou_type].precision(1000), theirs[iou_type].precision(1000))


PLAIN = [
    {"id": 7, "image_id": 1, "segmentation": RLE, "score": 0.1 + 0.2, "category_id": 3, "bbox": [1, 2.5, 3, 1e-3]},
    {"score": 1, "iscrowd": 1, "area": 2.25, "segmentation": {"counts": "l1", "size": [6, 10]}, "parent": 7, "id": 9},
    {"score": -1.5e-300, "iscrowd": False, "segmentation": {"counts": "0l1", "size": [6, 10]}, "parent": None},
    {"score": 0.5, "segmentation": RLE, "parent": 12345, "more": [{"a": [1, '\n"]', {}]}, True, None, -0.0]},
]
# Annotations that the kernel leaves to Python, each with its whole image.
ODD = {
    "string id": {"id": "a", "score": 0.5, "segmentation": RLE},
    "repeated key": '{"id": 1, "id": 2, "score": 0.5, "segmentation": {"size": [6, 10], "counts": "l1"}}',
    "escaped key": '{"i\\u0064": 1, "score": 0.5, "segmentation": {"size": [6, 10], "counts": "l1"}}',
    "escaped counts": '{"score": 0.5, "segmentation": {"size": [6, 10], "counts": "\\u006c\\u0031"}}',
    "other than ASCII": '{"name": "grün", "score": 0.5, "segmentation": {"size": [6, 10], "counts": "l1"}}',
    "polygon": {"score": 0.5, "segmentation": [[0, 0, 3, 0, 3, 3]]},
    "run lengths": {"score": 0.5, "segmentation": {"size": [6, 10], "counts": [3, 4, 53]}},
    "huge id": {"id": 10**30, "score": 0.5, "segmentation": RLE},
    "truth value as crowd, as a number": {"score": 1, "iscrowd": 1.0, "segmentation": RLE},
    "huge category": {"score": 0.5, "category_id": 2**64 + 3, "segmentation": RLE},
    "no box": {"score": 0.5, "bbox": [], "segmentation": RLE},
    "null": {"id": None, "area": None, "bbox": None, "score": 0.5, "segmentation": RLE},
    "annotator by name": {"score": 0.5, "segmentation": RLE, "annotator": "ann"},
    "deep": '{"score": 0.5, "segmentation": {"size": [6, 10], "counts": "l1"}, "x": ' + "[" * 50 + "]" * 50 + "}",
}


def spelled(records, indent=None):
    return ",".join(one if isinstance(one, str) else json.dumps(one, indent=indent) for one in records).encode()


@pytest.mark.parametrize("indent", [None, 1])
def test_annotations_equal_the_reference(binary, indent):
    text = spelled(PLAIN, indent)
    want = Want(masks=True, boxes=True, scores=True)
    found = annotations._read_compiled(binary, text, len(PLAIN), SIZE, want)
    assert found is not None
    assert_equal(found, reference_annotations.read_annotations(text, SIZE, want))
    assert found.parents.tolist() == [-1, 0, -1, -2]
    assert found.scores[0] == 0.1 + 0.2


def test_predictions_compared_while_they_are_read_equal_the_reference(binary):
    text = spelled([PLAIN[0], PLAIN[2], PLAIN[1], PLAIN[0]])
    gt = runs.read_runs([[40, 10, 10], [0, 60], [45, 15]], SIZE)
    against = PairWith(gt, np.array([False, True, False]), 0.25)
    want = Want(scores=True, against=against)
    found = annotations._read_compiled(binary, text, 4, SIZE, want)
    expected = reference_annotations.read_annotations(text, SIZE, want)
    assert_equal([found.masks.areas, found.masks.boxes], [expected.masks.areas, expected.masks.boxes])
    for name, value in vars(found.pairs).items():
        np.testing.assert_array_equal(value, getattr(expected.pairs, name))
    assert found.pairs.pred.tolist() == [0, 0, 0, 1, 1, 3, 3, 3]
    assert found.pairs.iou[:3].tolist() == [6 / 20, 1, 15 / 16]
    broken = text.replace(b"0l1", b"0l2")
    assert annotations._read_compiled(binary, broken, 4, SIZE, want) is None
    with pytest.raises(ValueError, match="mask 1: counts hold a run of 92 pixels, expected 6 x 10 = 60 in all"):
        read_annotations(broken, 4, SIZE, want)


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_is_left_to_the_reference(binary, case):
    text = spelled([{"score": 1, "segmentation": RLE}, ODD[case]] if case != "annotator by name" else [ODD[case]])
    want = Want(scores=True)
    count = 1 if case == "annotator by name" else 2
    assert annotations._read_compiled(binary, text, count, SIZE, want) is None
    assert_equal(read_annotations(text, count, SIZE, want), reference_annotations.read_annotations(text, SIZE, want))


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_cut_or_spoiled_text_is_declined(binary, cut):
    text = spelled(PLAIN)
    columns, numbers = np.empty((len(PLAIN), 10), np.int64), np.empty((len(PLAIN), 6))
    assert binary.coco_records(text, columns, numbers)
    assert not binary.coco_records(text[: len(text) - 1 - cut], columns, numbers)
    assert not binary.coco_records(text + b"," * (cut % 2) + b"x", columns, numbers)
    spoiled = bytearray(text)
    spoiled[cut] = 0
    assert not binary.coco_records(bytes(spoiled), columns, numbers)


@pytest.mark.parametrize("chunk_bytes", [16, 100, 1 << 19])
def test_indices_agree(binary, tmp_path, monkeypatch, chunk_bytes):
    """Unsorted numbers and strings as ids, with unusual annotations, and windows of any size."""
    rng = np.random.default_rng(0)
    records, num_without = [], 0
    for number in range(60):
        image_id = [1, "1", "a b", 2**40][rng.integers(4)]
        one = dict(PLAIN[rng.integers(len(PLAIN))], image_id=image_id)
        if number == 40:
            one["annotator"] = 5
        if rng.random() < 0.3:
            num_without += 1
            one.update([("segmentation", [None, [], {}][rng.integers(3)])])
            if rng.random() < 0.3:
                del one["segmentation"]
        one["more"] = [{}, {"image_id": 77}, '"}, {"', {"a": []}]
        records.append(json.dumps(one).replace("more", "größer" if rng.random() < 0.3 else "more"))
    file = tmp_path / "a.json"
    file.write_text("[" + " ,\n".join(records) + "]", encoding="utf-8")
    monkeypatch.setattr("sohes.utils.json_stream.JsonReader.__init__.__defaults__", (chunk_bytes,))
    ours = CocoIndex(file)
    with without_binary(monkeypatch):
        theirs = CocoIndex(file)
    assert (ours._spans, ours.num_annotations, ours.has_annotators) == (theirs._spans, 60, True)
    assert ours.num_without_region == theirs.num_without_region == num_without > 5
    for image_id in ours.annotated:
        expected = [one for one in map(json.loads, records) if one["image_id"] == image_id]
        assert ours.annotations(image_id) == expected


@pytest.mark.parametrize("seed", range(40))
def test_matching_equals_the_reference(binary, seed):
    rng = np.random.default_rng(seed)
    num_pred, num_gt, num_ranges = rng.integers(1, 30), rng.integers(1, 12), rng.integers(1, 5)
    thresholds = np.sort(rng.choice(np.linspace(0.1, 1, 19), rng.integers(1, 13), replace=False))
    table = rng.choice([0, 0, 0.1, 0.3, 0.55, 0.55, 0.9, 1], (num_pred, num_gt)) * rng.choice([1, 0.999], num_gt)
    pred, gt = (np.ascontiguousarray(side) for side in np.nonzero(table))
    crowd = rng.random(num_gt) < 0.2
    ignored = (rng.random((num_ranges, num_gt)) < 0.3) | crowd
    given = (Pairs(pred, gt, table[pred, gt]), ignored, crowd, thresholds)
    ours, theirs = match_greedy(*given), reference_matching.match_greedy(*given)
    for name, value in vars(ours).items():
        np.testing.assert_array_equal(value, getattr(theirs, name))


@pytest.mark.parametrize("seed", range(20))
def test_counting_precision_equals_the_reference(binary, seed):
    """In blocks, some empty. Each hit uses a mask, so there are at most as many hits as masks."""
    rng = np.random.default_rng(seed)
    num_ranges, num_thresholds, num_rows = rng.integers(1, 9), rng.integers(1, 8), rng.integers(1, 80)
    num_lanes = num_ranges * num_thresholds
    hit, ignored = rng.random((2, num_rows, num_lanes)) < 0.3
    rows = np.zeros(num_rows, row_type(num_ranges, num_lanes))
    rows["rank"] = rng.integers(0, 9, num_rows)
    for name, bits in (
        ("hit", hit),
        ("ignored", ignored & ~hit),
        ("outside", rng.random((num_rows, num_ranges)) < 0.4),
    ):
        rows[name] = np.packbits(bits, axis=1, bitorder="little")
    num_gt = hit.reshape(num_rows, num_ranges, -1).sum(0).max(1) + rng.integers(0, 3, num_ranges)
    ours, theirs = (PrecisionCounts.start(num_gt, num_thresholds) for _ in range(2))
    for portion in np.split(rows, np.sort(rng.integers(0, num_rows, 3))):
        metrics.count_precision(portion, 6, ours)
        reference_precision.count_precision(portion, 6, theirs)
        for name, value in vars(ours).items():
            np.testing.assert_array_equal(value, getattr(theirs, name), err_msg=name)
    assert ours.hits.sum() == hit[rows["rank"] < 6].sum()


def test_more_lanes_than_a_word_has_bits_are_left_to_the_reference(tools):
    rng = np.random.default_rng(1)
    images = [tools.random_image(rng) for _ in range(6)]
    thresholds = tuple(np.linspace(0.3, 0.95, 40).tolist())  # 160 lanes
    evaluator = tools.run_evaluator(images, (1, 100), tools.TINY_AREAS, iou_thresholds=thresholds)
    _, recall = tools.run_literally(images, (1, 100), tools.TINY_AREAS, thresholds)
    np.testing.assert_array_equal(evaluator.recall(100), recall[..., 1])


def test_arrays_of_the_wrong_kind_are_refused(binary):
    text = b"[]"
    with pytest.raises(TypeError, match="incompatible function arguments"):
        binary.coco_groups(text, 0, np.empty((4, 5), np.int16))
    with pytest.raises(ValueError, match=r"sohes: coco_groups: expected contiguous tensors, groups \[K, 5\]"):
        binary.coco_groups(text, 0, np.empty((4, 10), np.int64)[:, ::2])
