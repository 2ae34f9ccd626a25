# SPDX-License-Identifier: Apache-2.0
"""An invalid value gives a DataError that names file, image and value; a valid one the right labels."""

import json
import logging

import numpy as np
import pytest
import torch

from sohes.data.coco import LabelSet, labelled_image
from sohes.data.errors import DataError

RLE = {"size": [4, 6], "counts": [4, 4, 16]}
IMAGE = {"id": 1, "file_name": "a.png", "width": 6, "height": 4}
BIG = 2**64 + 3
# JSON as text, and where it stands in the place of a value: the fields where that is as good as any other.
VALUES = {
    "NaN": set(),
    "-Infinity": set(),
    "1e999": set(),
    "-1": {"id", "image id", "category_id", "annotator", "score", "parent", "level"},
    "1e308": {"level"},
    str(2**31): {"id", "image id", "category_id", "annotator", "score", "area", "parent", "level"},
    str(2**63): {"id", "image id", "category_id", "annotator", "score", "parent", "level"},
    str(BIG): {"id", "image id", "category_id", "annotator", "score", "parent", "level"},
    "9" * 400: {"id", "image id", "category_id", "annotator", "parent", "level"},
    "1.5": {"score", "area", "level"},
    '"7"': {"id", "image id", "category_id", "annotator", "parent", "level"},
    "true": {"iscrowd", "level"},
    "null": {"id", "category_id", "annotator", "score", "area", "iscrowd", "bbox", "parent", "level", "segmentation"},
    "[1, [2]]": {"level"},
}
FIELDS = ("id", "category_id", "annotator", "score", "area", "iscrowd", "bbox", "parent", "level", "segmentation")
PLACES = (*FIELDS, "image id", "width", "height", "file_name", "run length", "corner", "box", "counts", "size")


def write(path, annotations, image=IMAGE, value="0"):
    text = json.dumps({"images": [image], "annotations": annotations})
    path.write_text(text.replace('"HERE"', value))
    return path


def changed(place):
    """(image, annotation) with "HERE" in this place."""
    one = {"id": 1, "image_id": 1, "segmentation": RLE}
    lists = {
        "run length": {"segmentation": {**RLE, "counts": [4, "HERE", 16]}},
        "corner": {"segmentation": [[0, 0, "HERE", 0, 3, 3]]},
        "box": {"bbox": [0, 0, "HERE", 2]},
        "counts": {"segmentation": {**RLE, "counts": "HERE"}},
        "size": {"segmentation": {**RLE, "size": [4, "HERE"]}},
    }
    if place == "image id":
        return {**IMAGE, "id": "HERE"}, {**one, "image_id": "HERE"}
    if place in IMAGE:
        return ({**IMAGE, place: "HERE"}, one) if place != "id" else (IMAGE, {**one, "id": "HERE"})
    return IMAGE, {**one, **lists.get(place, {place: "HERE"})}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", VALUES)
def test_every_value_in_every_place(tmp_path, place, value):
    image, annotation = changed(place)
    path = write(tmp_path / "x.json", [annotation], image, value)
    fine = VALUES[value] | ({"corner"} if value in ("-1", "1.5") else set())
    fine |= {"box"} if value in ("1.5", str(2**31)) else set()
    fine |= {"file_name"} if value == '"7"' else set()
    if place not in fine:
        with pytest.raises(DataError, match=str(path)) as raised:
            list(LabelSet(path))
        assert len(str(raised.value)) < 400 + len(str(path))
        return
    (item,) = LabelSet(path)
    if place != "corner":
        assert item.forest.masks.areas.tolist() == ([] if place == "segmentation" else [4])


def test_ids_of_any_size_and_text(tmp_path):
    ids = [2**127 + 1, "a", -5, BIG]
    images = [{**IMAGE, "id": image_id, "file_name": f"{n}.png"} for n, image_id in enumerate(ids)]
    annotations = [{"id": n, "image_id": image_id, "segmentation": RLE} for n, image_id in enumerate(ids)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    labels = LabelSet(path)
    assert labels.image_ids.tolist() == ids
    assert [item.image_id for item in labels] == ids
    assert all(len(item.forest) == 1 for item in labels)
    other = tmp_path / "y" / "shard-1.json"
    other.parent.mkdir()
    other.with_name("shard-0.json").write_text(path.read_text())
    other.write_text(json.dumps({"images": images[3:], "annotations": []}))
    with pytest.raises(DataError, match=f"image id {BIG} occurs twice, in .*shard-0.json and .*shard-1.json"):
        LabelSet(other.parent)


def test_annotators_by_name_are_numbered_within_the_image(tmp_path):
    names = ["ann", BIG, "ann", 3]
    records = [{"image_id": 1, "segmentation": RLE, "annotator": name} for name in names]
    (item,) = LabelSet(write(tmp_path / "x.json", records))
    assert item.annotator.tolist() == [0, 1, 0, 2]


def test_annotations_without_a_region_are_left_out_and_counted(tmp_path, caplog):
    """The part's parent has no region, so the whole becomes its parent."""
    whole = {"size": [4, 6], "counts": [0, 24]}
    records = [
        {"id": 1, "image_id": 1, "segmentation": whole, "iscrowd": 1},
        {"id": 2, "image_id": 1, "segmentation": [], "parent": 1, "bbox": [0, 0, 2, 2]},
        {"id": 3, "image_id": 1, "segmentation": RLE, "parent": 4},
        {"id": 4, "image_id": 1, "parent": 2},
    ]
    path = write(tmp_path / "x.json", records)
    with caplog.at_level(logging.WARNING):
        (item,) = LabelSet(path)
    assert caplog.text.count(f"{path}: 2 annotations have no segmentation and are left out") == 1
    assert item.forest.parents.tolist() == [-1, 0]
    assert item.forest.masks.areas.tolist() == [24, 4]
    assert item.crowd.tolist() == [True, False]
    with pytest.raises(ValueError, match="annotation 3: parents hold a cycle"):
        labelled_image(IMAGE, [{**record, "parent": 4} for record in records[2:]], path)


def test_sizes_that_no_memory_holds_are_refused(tmp_path):
    for side, message in ((10**9, "expected at most 1e10 pixels, got a size of"), (10**5, "take at most 16 GiB")):
        empty = {"size": [side, side], "counts": [side * side]}
        image = {**IMAGE, "width": side, "height": side}
        records = [{"image_id": 1, "segmentation": empty} for _ in range(20)]
        with pytest.raises(DataError, match=message):
            list(LabelSet(write(tmp_path / "x.json", records, image)))


def test_polygons_are_bounded(tmp_path):
    for corners in ([0, 0, 2.08e8, 3, 3, 3], [0, 0, 9e6, 3, 3, 3], [0, 0, 3, 3, 3]):
        with pytest.raises(DataError, match=r"image 1 .a.png.: expected (coordinates of )?polygons"):
            list(LabelSet(write(tmp_path / "x.json", [{"image_id": 1, "segmentation": [corners]}])))


def test_scores_are_float32_and_default_to_1(tmp_path):
    records = [{"image_id": 1, "segmentation": RLE, "score": score} for score in (3.4e38, None, 2**64, -0.5)]
    (item,) = LabelSet(write(tmp_path / "x.json", records))
    assert torch.equal(item.forest.scores, torch.tensor([3.4e38, 1, 2.0**64, -0.5]))
    assert np.isfinite(item.forest.scores.numpy()).all()
