# SPDX-License-Identifier: Apache-2.0
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from sohes.data.coco import LabelSet, write_coco
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks

SHARED = Path(__file__).parents[2].parent / "shared/data/eval"


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def image(image_id=1, name="a.png", height=4, width=6):
    return {"id": image_id, "file_name": name, "width": width, "height": height}


def annotation(mask=None, **fields):
    mask = np.ones((4, 6), bool) if mask is None else mask
    return {"id": 1, "image_id": 1, "category_id": 9, "segmentation": rle(mask)} | fields


def write(path, images, annotations):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


class TestLabelSet:
    def test_plain_coco(self, tmp_path):
        half = np.zeros((4, 6), bool)
        half[:, :3] = True
        path = write(
            tmp_path / "x.json",
            [image(5), image(2, "sub/ü b.jpg")],
            [annotation(half, id=7, image_id=2, iscrowd=1), annotation(id=8, image_id=2)],
        )
        labels = LabelSet(path)
        assert len(labels) == 2
        assert labels.image_ids.tolist() == [5, 2]
        empty, item = labels
        assert (empty.image_id, len(empty.forest), empty.size, empty.annotator) == (5, 0, (4, 6), None)
        assert empty.crowd.shape == (0,)
        assert item.path == tmp_path / "sub/ü b.jpg"
        assert item.crowd.tolist() == [True, False]
        assert item.annotator is None
        assert item.forest.scores.tolist() == [1, 1]
        assert item.forest.parents.tolist() == [-1, -1]
        assert item.forest.masks.to_dense()[0].numpy().tolist() == half.tolist()

    def test_our_own_fields(self, tmp_path):
        path = write(
            tmp_path / "x.json",
            [image()],
            [
                annotation(id=30, parent=40, score=0.25, annotator=3, level=1),
                annotation(id=40, parent=None, score=0.5, annotator=0, level="whole"),
            ],
        )
        (item,) = LabelSet(path)
        assert item.forest.parents.tolist() == [1, -1]
        assert item.forest.scores.tolist() == [0.25, 0.5]
        assert item.annotator.tolist() == [3, 0]

    def test_polygons_and_uncompressed_rle(self, tmp_path):
        square = [1, 1, 4, 1, 4, 3, 1, 3]
        corner = [5, 0, 6, 0, 6, 1, 5, 1]
        uncompressed = {"size": [4, 6], "counts": [4, 4, 16]}
        path = write(
            tmp_path / "x.json",
            [image()],
            [annotation(segmentation=s) for s in ([square], [square, corner], uncompressed)],
        )
        dense = LabelSet(path)[0].forest.masks.to_dense()
        assert dense[0].nonzero().tolist() == [[y, x] for y in (1, 2) for x in (1, 2, 3)]
        assert torch.equal(dense[1] & ~dense[0], torch.tensor(np.eye(6)[None, 5].repeat(4, 0) * np.eye(4)[:, :1]) > 0)
        assert dense[2].nonzero().tolist() == [[y, 1] for y in range(4)]

    def test_folder_of_shards(self, tmp_path):
        for index in (1, 0, 2):
            write(
                tmp_path / f"shard-{index:05d}.json",
                [image(index * 10, f"{index}.png")],
                [annotation(image_id=index * 10)],
            )
        write(tmp_path / "annotations.json", [image(99)], [])
        labels = LabelSet(tmp_path, image_root="/photos")
        assert labels.image_ids.tolist() == [0, 10, 20]
        assert [item.path for item in labels] == [Path(f"/photos/{i}.png") for i in range(3)]
        assert all(len(item.forest) == 1 for item in labels)

    def test_folder_with_one_file_and_images_beside_it(self, tmp_path):
        write(tmp_path / "annotations.json", [image()], [])
        (tmp_path / "images").mkdir()
        assert LabelSet(tmp_path)[0].path == tmp_path / "images/a.png"

    def test_pickles_to_a_few_arrays(self, tmp_path):
        path = write(tmp_path / "x.json", [image(i) for i in range(50)], [annotation(image_id=i) for i in range(50)])
        labels = pickle.loads(pickle.dumps(LabelSet(path)))
        assert labels[49].image_id == 49
        assert max(len(value) for value in vars(labels).values() if isinstance(value, list)) == 1

    def test_indices(self, tmp_path):
        labels = LabelSet(write(tmp_path / "x.json", [image()], []))
        with pytest.raises(IndexError, match="image 1 of a label set of 1"):
            labels[1]


class TestErrors:
    def message(self, source):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            list(LabelSet(source))
        return str(error.value)

    def test_missing(self, tmp_path):
        path = tmp_path / "x.json"
        assert self.message(path) == f"no such file or folder: {path} (expected COCO JSON)"
        assert self.message(tmp_path) == f"no labels in {tmp_path} (expected annotations.json or shard-*.json)"

    @pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"\x89PNG"])
    def test_not_json(self, tmp_path, content):
        path = tmp_path / "x.json"
        path.write_bytes(content)
        assert self.message(path).startswith(f"{path} is not JSON: ")

    @pytest.mark.parametrize(
        ("content", "key"),
        [([], "images"), ({"annotations": []}, "images"), ({"images": []}, "annotations"), ({"images": 3}, "images")],
    )
    def test_not_coco(self, tmp_path, content, key):
        path = tmp_path / "x.json"
        path.write_text(json.dumps(content))
        assert self.message(path) == f'{path}: expected COCO JSON, an object with a list "{key}"'

    def test_bad_records(self, tmp_path):
        path = write(tmp_path / "x.json", [{"id": 1, "file_name": "a"}], [])
        assert self.message(path) == (
            f'{path}: expected images with id, file_name, width and height, got {{"id": 1, "file_name": "a"}}'
        )
        write(path, [image()], [{"id": 1, "segmentation": []}])
        assert self.message(path) == (
            f'{path}: expected annotations with image_id, got {{"id": 1, "segmentation": []}}'
        )
        write(path, [image()], [{"image_id": 1, "bbox": [1]}])
        assert self.message(path) == (
            f"{path}, image 1: annotation (without id): expected four numbers as bbox, got [1]"
        )
        write(path, [image()], [{"image_id": 2, "segmentation": []}])
        assert self.message(path) == (
            f'{path}: {{"image_id": 2, "segmentation": []}} has an image_id that is not among the images'
        )

    def test_bad_masks_name_file_and_image(self, tmp_path):
        path = write(tmp_path / "x.json", [image(3)], [annotation(np.ones((5, 5), bool), image_id=3)])
        assert self.message(path).startswith(f"{path}, image 3 (a.png): ")
        write(path, [image()], [annotation(segmentation=[[1, 2, 3]])])
        assert self.message(path) == (
            f"{path}, image 1 (a.png): expected polygons of three corners or more, got [[1, 2, 3]]"
        )
        write(path, [image()], [annotation(segmentation={"size": [4, 6], "counts": [5, 5]})])
        assert self.message(path).startswith(f"{path}, image 1 (a.png): ")
        write(path, [image()], [annotation(segmentation={"size": [4, 6]})])
        assert (
            self.message(path)
            == f'{path}, image 1 (a.png): expected an RLE with size and counts, got {{"size": [4, 6]}}'
        )

    def test_cycles(self, tmp_path):
        path = write(tmp_path / "x.json", [image()], [annotation(id=1, parent=2), annotation(id=2, parent=1)])
        assert self.message(path) == f"{path}, image 1 (a.png): Forest: parents hold a cycle"

    def test_repeated_image_ids(self, tmp_path):
        path = write(tmp_path / "shard-0.json", [image(4), image(4)], [])
        assert self.message(tmp_path) == f"{path}: image id 4 occurs twice; expected every image once"
        write(path, [image(4)], [])
        other = write(tmp_path / "shard-1.json", [image(4)], [])
        assert self.message(tmp_path) == f"image id 4 occurs twice, in {path} and {other}; expected every image once"


class TestWriteCoco:
    def forest(self):
        masks = np.zeros((2, 4, 6), bool)
        masks[0], masks[1, 1:3, 2:4] = True, True
        return Forest(PackedMasks.from_dense(masks), torch.tensor([0.5, 0.25]), torch.tensor([-1, 0]))

    def test_round_trip(self, tmp_path):
        path = tmp_path / "new/folder/labels.json"
        write_coco(path, [image(name="ü\udcff.png")], self.forest().to_coco(image_id=1))
        (item,) = LabelSet(path)
        assert torch.equal(item.forest.masks.words, self.forest().masks.words)
        assert item.forest.parents.tolist() == [-1, 0]
        assert item.forest.scores.tolist() == [0.5, 0.25]
        assert item.path.name == "ü\udcff.png"
        assert [p.name for p in path.parent.iterdir()] == ["labels.json"]

    def test_equal_content_gives_equal_bytes(self, tmp_path):
        write_coco(tmp_path / "a.json", [image()], self.forest().to_coco(1), info={"b": 1, "a": 2})
        backwards = [dict(reversed(a.items())) for a in self.forest().to_coco(1)]
        write_coco(tmp_path / "b.json", iter([dict(reversed(image().items()))]), iter(backwards), info={"a": 2, "b": 1})
        assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()

    def test_nothing_at_all_is_valid(self, tmp_path):
        write_coco(tmp_path / "a.json", [], [])
        assert len(LabelSet(tmp_path / "a.json")) == 0

    def test_failure_keeps_the_old_file(self, tmp_path):
        path = tmp_path / "a.json"
        write_coco(path, [image()], [])
        before = path.read_bytes()
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_coco(path, [image()], [{"score": float("nan")}])
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["bsds_val", "coco128_seg", "carparts50", "ade20k_parts3"])
def test_real_annotations(name):
    if not (SHARED / name).is_dir():
        pytest.skip("the shared evaluation photos are not on this machine")
    labels = LabelSet(SHARED / name)
    content = json.loads((SHARED / name / "annotations.json").read_text())
    item = labels[0]
    expected = [a for a in content["annotations"] if a["image_id"] == item.image_id]
    assert len(labels) == len(content["images"])
    assert item.path.is_file()
    assert item.forest.masks.areas.tolist() == [a["area"] for a in expected]
    assert (item.annotator is not None) == (name == "bsds_val")
    assert bool((item.forest.parents >= 0).any()) == any(a.get("parent") for a in expected)
