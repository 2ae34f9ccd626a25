# SPDX-License-Identifier: Apache-2.0
"""Data sets of COCO JSON: which annotations count, paths of photos, and errors for a wrong layout."""

import json

import numpy as np
import pytest
from PIL import Image

from sohes.evaluation.datasets.base import LayoutError
from sohes.evaluation.datasets.registry import DATA_SETS, open_dataset
from sohes.structures.masks import PackedMasks

BOX = [[0, 0, 4, 0, 4, 2, 0, 2]]  # a polygon of 8 pixels
RLE = {"size": [6, 8], "counts": [6, 6, 36]}  # the second column


def write(root, path, images, annotations, photos=()):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    file.write_text(json.dumps(content))
    for photo in photos:
        (root / photo).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (10, 20, 30)).save(root / photo, "png")
    return root


def image(number, **keys):
    return {"id": number, "height": 6, "width": 8, "license": 1, **keys}


def record(number, image_id, segmentation=BOX, **keys):
    return {"id": number, "image_id": image_id, "category_id": 1, "segmentation": segmentation, "bbox": [], **keys}


def only(dataset):
    (key,) = dataset.keys()
    sample = dataset.read(key)
    assert dataset.read_image(sample.image["file_name"]).shape == (3, 6, 8)
    return sample


def test_coco_keeps_crowds_and_the_annotated_area(tmp_path):
    annotations = [record(1, 139, area=7.5, iscrowd=0), record(2, 139, RLE, area=6, iscrowd=1)]
    write(
        tmp_path, "annotations/instances_val2017.json", [image(139, file_name="1.jpg")], annotations, ["val2017/1.jpg"]
    )
    sample = only(open_dataset("coco", tmp_path))
    assert sample.image == {"id": 139, "file_name": "1.jpg", "height": 6, "width": 8}
    assert [(one["area"], one["iscrowd"]) for one in sample.annotations] == [(7.5, 0), (6, 1)]


@pytest.mark.parametrize("place", ["annotations/lvis_v1_val.json", "lvis_v1_val.json"])
def test_lvis_photos_come_from_the_folder_of_their_url(tmp_path, place):
    url = "http://images.cocodataset.org/train2017/000000000030.jpg"
    images = [image(30, coco_url=url, not_exhaustive_category_ids=[1], neg_category_ids=[2])]
    write(tmp_path, place, images, [record(5, 30, area=8.0)], ["train2017/000000000030.jpg"])
    sample = only(open_dataset("lvis", tmp_path))
    assert sample.image["file_name"] == "train2017/000000000030.jpg"
    assert len(sample.annotations) == 1  # federated annotation removes nothing


def test_entityseg_in_both_resolutions(tmp_path):
    name = "entity_01_11580/a.jpg"
    for file, folder in (("entityseg_val_lr.json", "images_lr"), ("entityseg_val.json", "images")):
        write(tmp_path, file, [image(3, file_name=name)], [record(1, 3, RLE)], [f"{folder}/{name}"])
    low, full = open_dataset("entityseg", tmp_path), open_dataset("entityseg-full", tmp_path)
    assert low.image_root == tmp_path / "images_lr"
    assert full.image_root == tmp_path / "images"
    assert only(low).annotations == only(full).annotations
    deep = tmp_path / "deep"
    place = "annotations/entity_segmentation/entityv2_010203_entity_val_lr.json"
    write(deep, place, [image(3, file_name=name)], [record(1, 3, RLE)], [f"images_lr/{name}"])
    assert len(only(open_dataset("entityseg", deep)).annotations) == 1


@pytest.mark.parametrize(
    ("place", "photo"),
    [
        ("annotations/val/val.json", "images/val/n02100735_211.JPEG"),
        ("val.json", "val/n02100735/n02100735_211.JPEG"),
    ],
)
def test_partimagenet_makes_the_object_of_its_parts(tmp_path, place, photo):
    images = [image(4, file_name="n02100735_211.JPEG")]
    write(tmp_path, place, images, [record(1, 4, BOX, area=8), record(2, 4, RLE, area=6)], [photo])
    sample = only(open_dataset("partimagenet", tmp_path))
    whole, first, second = sample.annotations
    mask = PackedMasks.from_rle([whole["segmentation"]]).to_dense()[0].numpy()
    expected = np.zeros((6, 8), bool)
    expected[:2, :4] = expected[:, 1] = True
    np.testing.assert_array_equal(mask, expected)
    assert (whole["level"], first["level"], second["level"]) == (0, 1, 1)
    assert first["parent"] == second["parent"] == whole["id"]
    parts = only(open_dataset("partimagenet-parts", tmp_path))
    assert [(one["id"], "parent" in one) for one in parts.annotations] == [(1, False), (2, False)]


@pytest.mark.parametrize("others", [[], [record(2, 4, [])], [record(2, 4, None), record(3, 4, {})]])
def test_partimagenet_makes_no_object_of_one_part(tmp_path, others):
    images = [image(4, file_name="n1_2.JPEG")]
    write(tmp_path, "val.json", images, [record(1, 4), *others], ["val/n1_2.JPEG"])
    parts = only(open_dataset("partimagenet", tmp_path)).annotations
    assert len(parts) == 1 + len(others)
    assert not any("parent" in part for part in parts)


def test_paco_parts_belong_to_their_object(tmp_path):
    annotations = [
        record(10, 8, BOX, obj_ann_id=10),
        record(11, 8, RLE, obj_ann_id=10),
        record(12, 8, [], obj_ann_id=10),  # as two of PACO's: no mask, which the evaluation leaves out
        record(13, 8, RLE, obj_ann_id=99),  # of a missing object
    ]
    images = [image(8, file_name="000000000008.jpg", coco_url="http://images.cocodataset.org/val2017/000000000008.jpg")]
    write(tmp_path, "paco/paco_lvis_v1_val.json", images, annotations, ["val2017/000000000008.jpg"])
    sample = only(open_dataset("paco", tmp_path))
    assert [(one["id"], one["parent"], one["level"]) for one in sample.annotations] == [
        (10, None, 0),
        (11, 10, 1),
        (12, 10, 1),
        (13, None, 1),
    ]
    parts = only(open_dataset("paco-parts", tmp_path))
    assert [(one["id"], "parent" in one) for one in parts.annotations] == [(11, False), (12, False), (13, False)]


def test_plain_takes_a_folder_or_a_file(tmp_path):
    images = [image(1, file_name="a.png")]
    write(tmp_path / "x", "annotations.json", images, [record(1, 1, annotator=3, parent=None)], ["images/a.png"])
    write(tmp_path / "y", "mine.json", images, [record(1, 1)], ["a.png"])
    assert only(open_dataset("plain", tmp_path / "x")).annotations[0]["annotator"] == 3
    assert len(only(open_dataset("plain", tmp_path / "y/mine.json")).annotations) == 1


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_wrong_layout_is_one_line_that_names_the_path(name, tmp_path):
    with pytest.raises(LayoutError) as missing:
        open_dataset(name, tmp_path / "nowhere")
    assert str(missing.value).startswith(f"{tmp_path / 'nowhere'}: no such folder (expected ROOT/")
    with pytest.raises(LayoutError) as wrong:
        open_dataset(name, tmp_path)
    text = str(wrong.value)
    assert "\n" not in text
    assert text.startswith(f"{tmp_path}/")
    assert "is missing (expected ROOT/" in text
    assert DATA_SETS[name].layout in text
