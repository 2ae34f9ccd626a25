# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.evaluate`: what it prints and writes, and how it refuses."""

import csv
import json

import pytest

from sohes.evaluate import main
from sohes.evaluation.tables import format_results


@pytest.fixture
def files(tmp_path):
    """A true mask of 10 pixels with a part of 4, and the predictions that hold both, as command-line arguments."""
    images = [{"id": 1, "file_name": "a.png", "width": 20, "height": 1}]
    records = [
        {"id": 1, "image_id": 1, "segmentation": {"size": [1, 20], "counts": [0, 10, 10]}, "parent": None},
        {"id": 2, "image_id": 1, "segmentation": {"size": [1, 20], "counts": [2, 4, 14]}, "parent": 1},
    ]
    (tmp_path / "gt.json").write_text(json.dumps({"images": images, "annotations": records}))
    scored = [{**record, "score": 0.5} for record in records]
    (tmp_path / "pred.json").write_text(json.dumps({"images": images, "annotations": scored}))
    return ["--gt", str(tmp_path / "gt.json"), "--pred", str(tmp_path / "pred.json")]


def test_prints_and_writes(files, tmp_path, capsys):
    out, table = tmp_path / "results.json", tmp_path / "table.csv"
    options = ["--max-dets", "1", "100", "--out", str(out), "--per-image", str(table)]
    assert main([*files, *options]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert lines["AR@100"] == "100.0"
    assert lines["AR@1"] == "50.0"
    assert lines["AR-large"] == "n/a"
    assert (lines["parent_recall"], lines["num_images"], lines["masks_per_image"]) == ("100.0", "1", "2.0")
    written = json.loads(out.read_text())
    assert list(written) == [*lines, "granularity"]
    assert written["granularity"][-1] == {"max_dets": 100, "masks_per_image": 2, "AR": 1, "AR50": 1}
    assert (written["AR@100"], written["AR-large"], written["ancestor_f1"]) == (1, None, 1)
    with table.open() as file:
        (row,) = csv.DictReader(file)
    assert (row["image"], row["AR@1"], row["AR-large"], row["true_masks"]) == ("1", "0.5", "", "2")


def test_boxes_and_categories_on_request(files, tmp_path, capsys):
    """The file has no categories and no boxes: boxes are those around the masks, and categories are missed."""
    table = tmp_path / "table.jsonl"
    assert main([*files, "--iou-type", "both", "--threads", "2", "--per-image", str(table)]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert (lines["AR@1000"], lines["box-AR@1000"], lines["box-parent_recall"]) == ("100.0", "100.0", "100.0")
    (row,) = map(json.loads, table.read_text().splitlines())
    assert (row["image"], row["true_masks"], row["box-AR@1"], row["box-AR-large"]) == ("1", 2, 0.5, None)
    assert main([*files, "--iou-type", "box"]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert "AR@1000" not in lines
    assert lines["box-AR@1000"] == "100.0"
    assert "image 1: expected a number as category_id of every annotation" in refused([*files, "--class-aware"], capsys)


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_bad_files_are_one_line_and_exit_code_2(files, tmp_path, capsys):
    missing = str(tmp_path / "none.json")
    assert refused([*files[:3], missing], capsys) == f"sohes.evaluate: error: {missing}: no such file\n"
    (tmp_path / "pred.json").write_text("not json")
    expected = f"sohes.evaluate: error: {files[3]} is not JSON: Expecting value at byte 0\n"
    assert refused(files, capsys) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-dets", "0"], "--max-dets: expected different numbers from 1 up, got [0]"),
        (["--max-dets", "5", "5"], "--max-dets: expected different numbers from 1 up, got [5, 5]"),
        (["--threads", "0"], "--threads 0: expected at least 1"),
        (["--out", "nowhere/results.json"], "nowhere/results.json: the folder nowhere does not exist"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(files, options, message, capsys):
    assert refused([*files, *options], capsys) == f"sohes.evaluate: error: {message}\n"


def test_unknown_options_name_the_nearest(files, capsys):
    assert "--max-dets" in refused([*files, "--max-det", "5"], capsys)


def test_help_gives_meaning_range_and_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help-all"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "each at least 1" in text
    assert "(default: 1 10 100 1000)" in text


def test_tables_compare_runs():
    results = {
        "explore": {"AR@1000": 0.3051, "AP": None, "masks_per_image": 41.26, "AR@1": 0.1},
        "instruct": {"AR@1000": 0.5, "AP": 0.021, "masks_per_image": 7.0, "AR@1": float("nan")},
    }
    assert format_results(results).splitlines() == [
        "          AR@1000   AP  masks_per_image",
        "explore      30.5  n/a             41.3",
        "instruct     50.0  2.1              7.0",
    ]
