# SPDX-License-Identifier: Apache-2.0
"""An annotation without a region is not a mask: a ground-truth file and the same file as a data set score the same."""

import json
import logging

import pytest

from sohes.evaluation import score_files
from sohes.evaluation.datasets.convert import convert_dataset
from sohes.evaluation.datasets.registry import open_dataset

LEFT, RIGHT = [[0, 0, 4, 0, 4, 6, 0, 6]], [[4, 0, 8, 0, 8, 6, 4, 6]]


def annotation(number, image_id=1, **keys):
    return {"id": number, "image_id": image_id, "category_id": 1, **keys}


CASES = {
    "box alone": [annotation(1, segmentation=LEFT), annotation(2, segmentation=[], bbox=[4, 0, 4, 6])],
    "null": [annotation(1, segmentation=LEFT), annotation(2, segmentation=None)],
    "missing": [annotation(1, segmentation=LEFT), annotation(2, bbox=[4, 0, 4, 6])],
    "{}": [annotation(1, segmentation={}), annotation(2, segmentation=LEFT)],
    "a crowd": [annotation(1, segmentation=LEFT), annotation(2, segmentation=[], iscrowd=1)],
    "between parent and child": [
        annotation(1, segmentation=[[0, 0, 8, 0, 8, 6, 0, 6]], parent=None),
        annotation(2, segmentation=[], parent=1),
        annotation(3, segmentation=LEFT, parent=2),
    ],
    "an image of nothing else": [annotation(1, segmentation=LEFT), annotation(2, 2, segmentation=[])],
    "annotators": [annotation(1, segmentation=LEFT, annotator=0), annotation(2, segmentation=[], annotator=1)],
}


@pytest.mark.parametrize("iou_type", ["mask", "box"])
@pytest.mark.parametrize("case", CASES)
def test_both_readers_agree(tmp_path, caplog, case, iou_type):
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 6, "width": 8} for number in (1, 2)]
    truth, found = tmp_path / "annotations.json", tmp_path / "found.json"
    truth.write_text(json.dumps({"images": images, "annotations": CASES[case], "categories": []}))
    predictions = [
        {"image_id": 1, "category_id": 1, "segmentation": segmentation, "score": 1 - k / 10}
        for k, segmentation in enumerate((LEFT, RIGHT))
    ]
    found.write_text(json.dumps(predictions))
    caplog.set_level(logging.WARNING)
    direct = score_files(truth, found, iou_type=iou_type).summary()
    warned = [message for message in caplog.messages if "no segmentation" in message]
    caplog.clear()
    converted = convert_dataset(open_dataset("plain", tmp_path), tmp_path / "out" / "plain.json")
    as_dataset = score_files(converted, found, iou_type=iou_type).summary()
    assert as_dataset == pytest.approx(direct, nan_ok=True)
    again = [message for message in caplog.messages if "no segmentation" in message]
    assert len(again) == len(warned) == (iou_type == "mask")
    assert all("1 of" in message for message in again)
