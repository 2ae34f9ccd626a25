# SPDX-License-Identifier: Apache-2.0
"""What is written here can be opened elsewhere, pixel for pixel: pycocotools, SAM's records, supervision."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.data.coco import LabelSet, write_coco
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks

pytest.importorskip("pycocotools", reason="pycocotools is not installed")
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

SIZE = (37, 53)


@pytest.fixture(scope="module")
def forest():
    """Random blobs, a part within a whole, one pixel, everything, and a mask that touches two sides."""
    generator = torch.Generator().manual_seed(4)
    dense = torch.rand(8, *SIZE, generator=generator) > 0.6
    dense[0] = True
    dense[1] = False
    dense[1, 3:30, 5:40] = True
    dense[2] = dense[1]
    dense[2, 10:] = False
    dense[3] = False
    dense[3, -1, -1] = True
    masks = PackedMasks.from_dense(dense)
    return Forest(masks, torch.linspace(0.9, 0.1, 8), build_forest(masks))


@pytest.fixture
def coco_file(forest, tmp_path):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.png")
    images = [{"id": 7, "file_name": "a.png", "width": SIZE[1], "height": SIZE[0]}]
    write_coco(tmp_path / "labels.json", images, forest.to_coco(7, first_id=20))
    return tmp_path / "labels.json"


def same(a, b):
    assert torch.equal(a.masks.words, b.masks.words)
    assert torch.equal(a.scores, b.scores)
    assert torch.equal(a.parents, b.parents)


def test_coco_and_back(forest, coco_file):
    (labelled,) = LabelSet(coco_file)
    same(labelled.forest, forest)


def test_pycocotools_opens_our_files(forest, coco_file, capsys):
    opened = COCO(str(coco_file))
    annotations = opened.loadAnns(opened.getAnnIds(imgIds=[7]))
    assert len(annotations) == len(forest)
    for annotation, mask, area, level in zip(
        annotations, forest.masks.to_dense(), forest.masks.areas.tolist(), forest.levels.tolist(), strict=True
    ):
        assert np.array_equal(opened.annToMask(annotation), mask.numpy())
        assert annotation["area"] == area == coco_mask.area(annotation["segmentation"])
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        assert annotation["level"] == level
    results = [{k: a[k] for k in ("image_id", "category_id", "segmentation", "score")} for a in annotations]
    assert len(opened.loadRes(results).getAnnIds()) == len(forest)


def test_sam_records_and_back(forest):
    records = json.loads(json.dumps(forest.to_sam()))
    same(Forest.from_sam(records, SIZE), forest)
    for record, mask in zip(records, forest.masks.to_dense(), strict=True):
        assert np.array_equal(coco_mask.decode(record["segmentation"]), mask.numpy())
        record["segmentation"] = mask.numpy()  # SAM's own default form
    same(Forest.from_sam(records, SIZE), forest)
    del records[2]["parent"]
    assert Forest.from_sam(records, SIZE).parents[2] == -1
    assert Forest.from_sam([], SIZE).masks.size == SIZE


def test_supervision_opens_both(forest, coco_file):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    dense = forest.masks.to_dense().numpy()
    opened = supervision.Detections.from_sam(forest.to_sam())
    order = [int((opened.mask == mask).all((1, 2)).argmax()) for mask in dense]  # it sorts by area
    assert sorted(order) == list(range(len(dense)))
    assert np.array_equal(opened.mask[order], dense)
    assert np.array_equal(opened.xyxy[order], forest.masks.boxes.numpy())
    folder = str(coco_file.parent)
    data_set = supervision.DetectionDataset.from_coco(folder, str(coco_file), force_masks=True)
    ((_, _, detections),) = data_set
    assert np.array_equal(detections.mask, dense)
    assert data_set.classes == ["entity"]
