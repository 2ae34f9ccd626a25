# SPDX-License-Identifier: Apache-2.0
"""Conversion of a data set to COCO JSON, and the command that converts and evaluates."""

import json
import os

import pytest
from PIL import Image

from sohes.evaluate import main
from sohes.evaluation import BadInput
from sohes.evaluation.datasets.convert import choose_evenly, convert_dataset
from sohes.evaluation.datasets.registry import open_dataset


@pytest.fixture
def coco(tmp_path):
    """Five COCO photos with one object each; object k has k of 20 pixels."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    images, annotations = [], []
    for k in range(1, 6):
        name = f"{k:012}.jpg"
        Image.new("RGB", (20, 1)).save(root / "val2017" / name)
        images.append({"id": 100 * k, "file_name": name, "width": 20, "height": 1})
        mask = {"size": [1, 20], "counts": [0, k, 20 - k]}
        annotations.append({"id": k + 50, "image_id": 100 * k, "category_id": 3, "segmentation": mask, "area": k})
    content = {"images": images, "annotations": annotations, "categories": []}
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return root


def test_ids_and_parents_are_renewed(tmp_path, coco):
    file = coco / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][1] |= {"image_id": 100, "parent": 51}
    file.write_text(json.dumps(content))
    path = convert_dataset(open_dataset("coco", coco), tmp_path / "out" / "gt.json")
    written = json.loads(path.read_text())
    assert [image["id"] for image in written["images"]] == [100, 200, 300, 400, 500]
    records = [(one["id"], one["image_id"], one.get("parent"), one["category_id"]) for one in written["annotations"]]
    assert records == [(1, 100, None, 3), (2, 100, 1, 3), (3, 300, None, 3), (4, 400, None, 3), (5, 500, None, 3)]


def test_parents_elsewhere_are_refused(tmp_path, coco):
    file = coco / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["parent"] = 51
    file.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="image 200: parent 51 is not an annotation of it"):
        convert_dataset(open_dataset("coco", coco), tmp_path / "gt.json")
    assert list(tmp_path.glob("*gt*")) == []


def test_conversion_is_kept_until_the_files_change(tmp_path, coco):
    def convert(**options):
        calls = []
        path = tmp_path / "gt.json"
        convert_dataset(open_dataset("coco", coco), path, on_image=lambda *done: calls.append(done), **options)
        return calls, len(json.loads(path.read_text())["images"])

    assert convert() == ([(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)], 5)
    assert convert() == ([], 5)
    assert convert(num_images=2) == ([(1, 2), (2, 2)], 2)
    os.utime(coco / "annotations/instances_val2017.json", ns=(1, 1))
    assert convert(num_images=2)[0] == [(1, 2), (2, 2)]


def test_a_set_without_images_leaves_the_file_of_an_earlier_call(tmp_path, coco):
    path = convert_dataset(open_dataset("coco", coco), tmp_path / "gt.json")
    before = path.read_bytes()
    (coco / "annotations/instances_val2017.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(BadInput, match="no image left to evaluate"):
        convert_dataset(open_dataset("coco", coco), path)
    assert path.read_bytes() == before
    with pytest.raises(BadInput, match="no image left to evaluate"):
        convert_dataset(open_dataset("coco", coco), tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


def test_a_file_of_another_kind_is_not_replaced(tmp_path, coco):
    (tmp_path / "gt.json").write_text("{}")
    with pytest.raises(BadInput, match="remove it"):
        convert_dataset(open_dataset("coco", coco), tmp_path / "gt.json")


def test_images_are_chosen_at_equal_distances():
    assert choose_evenly(range(10), 4) == [0, 3, 6, 9]
    assert choose_evenly(range(3), 7) == range(3)
    assert choose_evenly(range(3), None) == range(3)


def test_command_scores_predictions_by_file_name(tmp_path, coco):
    """Predictions as written by sohes.segment: other ids, another order, and more photos."""
    images = [{"id": k, "file_name": f"{coco}/val2017/{6 - k:012}.jpg", "width": 20, "height": 1} for k in range(1, 6)]
    records = [
        {"image_id": k, "score": 0.5, "segmentation": {"size": [1, 20], "counts": [0, 6 - k, 14 + k]}}
        for k in range(1, 6)
    ]
    (tmp_path / "segments.json").write_text(json.dumps({"images": images, "annotations": records}))
    options = ["--dataset", "coco", "--root", str(coco), "--pred", str(tmp_path / "segments.json")]
    out = ["--out", str(tmp_path / "scores.json")]
    before = sorted(coco.rglob("*"))
    assert main([*options, *out]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["AR@1000"] == 1
    assert main([*options, *out, "--num-images", "2"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["AR@1000"], scores["num_images"]) == (1, 2)
    assert sorted(coco.rglob("*")) == before  # nothing is written beside the data


def test_command_names_a_wrong_layout(tmp_path, coco, capsys):
    (tmp_path / "pred.json").write_text("[]")
    with pytest.raises(SystemExit) as stop:
        main(["--dataset", "lvis", "--root", str(coco), "--pred", str(tmp_path / "pred.json")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sohes.evaluate: error: {coco}/annotations/lvis_v1_val.json is missing (expected ROOT/")
    assert error.count("\n") == 1
