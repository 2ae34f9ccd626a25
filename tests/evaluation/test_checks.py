# SPDX-License-Identifier: Apache-2.0
"""Predicted images are matched to true ones by id, or by file name if ids differ."""

import json

import pytest

from sohes.evaluation import BadInput, score_files


@pytest.fixture
def score(tmp_path):
    """score(names by id of the truth, names by id of the predictions, **options) -> AR@1000.

    True image k has k pixels set of 40; the prediction of a photo "k.png" has the same, so that only the right match
    scores.
    """

    def call(truth, predicted, **options):
        def mask(name):
            pixels = int(name.rsplit("/")[-1].split(".")[0])
            return {"size": [1, 40], "counts": [0, pixels, 40 - pixels]}

        for file, names in (("gt", truth), ("pred", predicted)):
            images = [{"id": i, "file_name": name, "width": 40, "height": 1} for i, name in names.items()]
            records = [{"image_id": i, "segmentation": mask(name), "score": 0.5} for i, name in names.items()]
            (tmp_path / f"{file}.json").write_text(json.dumps({"images": images, "annotations": records}))
        return score_files(tmp_path / "gt.json", tmp_path / "pred.json", **options).summary()["AR@1000"]

    return call


TRUTH = {139: "val2017/3.jpg", 285: "val2017/20.jpg", 632: "val2017/9.jpg"}


def test_ids_that_agree_are_taken(score):
    assert score(TRUTH, {285: "20.png", 139: "3.png", 632: "9.jpg"}) == 1


def test_other_ids_give_way_to_names(score):
    assert score(TRUTH, {1: "photos/3.png", 2: "photos/9.png", 3: "photos/20.png"}) == 1
    assert score(TRUTH, {139: "20.png", 285: "9.png", 632: "3.png"}) == 1  # known ids of other photos


def test_photos_the_truth_does_not_know_are_an_error_or_left_out(score):
    predicted = {1: "3.png", 139: "5.png", 3: "20.png", 4: "9.png"}
    with pytest.raises(BadInput, match="1 of 4 images are not in"):
        score(TRUTH, predicted)
    assert score(TRUTH, predicted, ignore_others=True) == 1


def test_names_that_are_shared_decide_nothing(score):
    with pytest.raises(BadInput, match="no image of"):
        score(TRUTH, {1: "a/3.png", 2: "b/3.png"})
