# SPDX-License-Identifier: Apache-2.0
"""The human line: predictions and scores by hand, files, options and errors."""

import json

import numpy as np
import pytest
import torch
from scipy.io import savemat

from sohes.baselines.other_annotators import others_of
from sohes.configs.evaluate import BaselineConfig
from sohes.evaluate import main
from sohes.structures.masks import PackedMasks

WIDTH = 30
# Of a photo of 1 x 30 pixels that three annotators cut into two segments each: first and last pixel + 1.
SEGMENTS = [("ann", 0, 16), ("ann", 16, 30), ("bob", 0, 13), ("bob", 13, 30), ("cy", 0, 7), ("cy", 7, 30)]


def record(number, image_id, annotator, start, end, **more):
    runs = {"size": [1, WIDTH], "counts": [start, end - start, WIDTH - end]}
    return {"id": number, "image_id": image_id, "annotator": annotator, "segmentation": runs, **more}


def photo(image_id):
    return {"id": image_id, "file_name": f"{image_id}.jpg", "width": WIDTH, "height": 1}


@pytest.fixture
def truth(tmp_path):
    """The photo above; one that a single annotator drew on; one without annotations. There are no photos on disk."""
    records = [record(10 + k, 7, *segment) for k, segment in enumerate(SEGMENTS)] + [record(99, 8, "ann", 0, 9)]
    content = {"images": [photo(7), photo(8), photo(9)], "annotations": records}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content["annotations"])
    path.write_text(json.dumps(content))


def score(truth, *options):
    out = truth.with_name("scores.json")
    assert main(["--gt", str(truth), "--baseline", "other-annotators", "--out", str(out), *options]) == 0
    return json.loads(out.read_text())


def predicted(path):
    """(first pixel, last pixel + 1) and score of the predictions for each annotator, in their order."""
    content = json.loads(path.read_text())
    found = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        left, _, width, _ = one["bbox"]
        found[one["image_id"]].append((left, left + width, pytest.approx(one["score"], abs=1e-6)))
    return found


def test_predictions_by_hand(truth, tmp_path):
    """A score is (votes + share of the photo) / 2; for ann and cy all segments have the vote of the other of two.

    For bob, ann's right one and cy's right one agree (IoU 14 / 23), ann's left one and cy's left one do not (7 / 16).
    """
    score(truth, "--pred", str(tmp_path / "p.json"))
    both = {k: (1 + k / 30) / 2 for k in (7, 13, 14, 16, 17, 23)}
    assert predicted(tmp_path / "p.json") == {
        "7/ann": [(7, 30, both[23]), (13, 30, both[17]), (0, 13, both[13]), (0, 7, both[7])],
        "7/bob": [(7, 30, both[23]), (16, 30, both[14]), (0, 16, 16 / 60), (0, 7, 7 / 60)],
        "7/cy": [(13, 30, both[17]), (0, 16, both[16]), (16, 30, both[14]), (0, 13, both[13])],
    }


def test_scores_by_hand(truth, capsys, caplog):
    """Hits at the ten thresholds, of 60: ann's 0.8125 and 0.824 reach seven each, bob's the same, cy's 0.538 one and
    0.739 five. With one mask: 23 pixels on 14 (0.609, three), 23 on 17 (0.739, five), 17 on 23 (five)."""
    scores = score(truth, "--max-dets", "1", "2", "1000")
    assert scores["AR@1000"] == pytest.approx((7 + 7 + 7 + 7 + 1 + 5) / 60)
    assert scores["AR@2"] == pytest.approx((7 + 7 + 5) / 60)
    assert scores["AR@1"] == pytest.approx((3 + 5 + 5) / 60)
    assert (scores["AR-small"], scores["AR-large"]) == (scores["AR@1000"], None)
    assert (scores["num_images"], scores["masks_per_image"]) == (3, 4)
    assert 0 < scores["seconds_per_photo"] < 60
    assert "seconds_per_photo" in capsys.readouterr().out
    assert "1 of 2 photos have one annotator alone and are left out" in caplog.text
    assert {path.name for path in truth.parent.iterdir()} == {"annotations.json", "scores.json"}


def test_order_and_masks_use_nothing_of_the_scored_annotator(truth, tmp_path):
    pred = tmp_path / "p.json"
    score(truth, "--pred", str(pred))
    before = predicted(pred)

    def redraw(annotations):
        annotations[0] |= record(10, 7, "ann", 3, 5)
        annotations[1] |= record(11, 7, "ann", 20, 21)

    change(truth, redraw)
    score(truth, "--pred", str(pred))  # replaces a baseline's predictions
    after = predicted(pred)
    assert after["7/ann"] == before["7/ann"]
    assert after["7/bob"] != before["7/bob"]


def test_near_duplicates_and_empty_masks_are_dropped_and_the_limit_is_kept():
    dense = torch.zeros(5, 1, 40, dtype=torch.bool)
    for mask, (start, end) in zip(dense, [(0, 40), (0, 40), (0, 37), (0, 36), (5, 5)], strict=True):
        mask[:, start:end] = True
    masks, owners = PackedMasks.from_dense(dense), torch.tensor([0, 1, 2, 2, 1])
    kept = [indices.tolist() for _, indices in others_of(masks, owners, 3, BaselineConfig())]
    assert kept == [[1, 3], [0, 3], [0]]  # 37 / 40 is above 0.9, 36 / 40 is not
    forest, indices = next(iter(others_of(masks, owners, 3, BaselineConfig(max_masks=1))))
    assert (indices.tolist(), forest.scores.tolist(), forest.parents.tolist()) == ([1], [1.0], [-1])


def test_crowds_are_not_predicted_and_parents_and_categories_are_kept(truth, tmp_path):
    def edit(annotations):
        annotations[0] |= {"parent": None, "category_id": 3}
        annotations[1] |= {"parent": 10, "category_id": 4}
        annotations[3] |= {"iscrowd": 1}

    change(truth, edit)
    pred = tmp_path / "p.json"
    scores = score(truth, "--pred", str(pred))
    assert [box[:2] for box in predicted(pred)["7/cy"]] == [(0, 16), (0, 13), (16, 30)]
    assert scores["parent_recall"] is not None
    written = json.loads((tmp_path / "p.annotators.json").read_text())["annotations"]
    assert [one.get("parent") for one in written[:2]] == [None, written[0]["id"]]
    categories = {one["category_id"] for one in json.loads(pred.read_text())["annotations"]}
    assert categories == {1, 3, 4}


def test_bsds_in_its_own_layout(tmp_path):
    """Two annotators: halves of 4 x 8 pixels, and thirds; no photo is read."""
    labels = [np.repeat([[1, 2]], 4, 0).repeat(4, 1), np.repeat([[1] * 3 + [2] * 5], 4, 0)]
    cells = np.empty((1, 2), object)
    for index, one in enumerate(labels):
        cells[0, index] = {"Segmentation": one.astype(np.uint16)}
    (tmp_path / "data/groundTruth/test").mkdir(parents=True)
    (tmp_path / "data/images/test").mkdir(parents=True)
    savemat(tmp_path / "data/groundTruth/test/5.mat", {"groundTruth": cells})
    out = tmp_path / "scores.json"
    options = ["--root", str(tmp_path), "--baseline", "other-annotators", "--out", str(out)]
    assert main(["--dataset", "bsds500", *options]) == 0
    scores = json.loads(out.read_text())
    # 12 of 16 pixels: IoU 0.75, six thresholds; 16 of 20: 0.8, seven thresholds.
    assert scores["AR@1000"] == pytest.approx((6 + 7) / 20)
    assert (scores["num_images"], scores["masks_per_image"]) == (2, 2)


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def without_annotators(annotations):
    for one in annotations:
        del one["annotator"]


def one_each(annotations):
    for one in annotations:
        one["annotator"] = "ann"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            without_annotators,
            "needs photos that several annotators drew on, and no annotation has the field `annotator`",
        ),
        (one_each, "needs photos that several annotators drew on, and no photo has two"),
        (lambda those: those[0].pop("annotator"), "7.jpg: expected an annotator on every annotation, as on others of"),
        (lambda those: those[0].update(parent=12), "7.jpg: parent 12 is no annotation of annotator 'ann'"),
        (lambda those: those[0]["segmentation"].update(counts=[1]), "7.jpg: "),
    ],
)
def test_sets_that_have_no_human_line(truth, tmp_path, edit, message, capsys):
    change(truth, edit)
    pred = tmp_path / "p.json"
    assert message in refused(["--gt", str(truth), "--baseline", "other-annotators", "--pred", str(pred)], capsys)
    assert not pred.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gt", "none.json"], "none.json: no such file"),
        ([], "expected either --gt FILE or --dataset NAME --root FOLDER"),
        (["--gt", "none.json", "--compare", "a.json"], "expected either --pred FILE or --compare RUN RUN ..."),
        (["--gt", "none.json", "--shards", "x"], "--shards goes with --pred"),
        (["--gt", "none.json", "--explore", "x"], "--explore goes with --baseline tree-oracle"),
    ],
)
def test_options_that_do_not_fit(options, message, capsys):
    assert message in refused(["--baseline", "other-annotators", *options], capsys)


@pytest.mark.parametrize("name", ["p.json", "p.annotators.json"])
def test_other_files_are_not_replaced(truth, tmp_path, name, capsys):
    (tmp_path / name).write_text("[]")
    options = ["--gt", str(truth), "--baseline", "other-annotators", "--pred", str(tmp_path / "p.json")]
    assert f"{name} holds no predictions of a baseline, and is not replaced" in refused(options, capsys)
    assert (tmp_path / name).read_text() == "[]"
