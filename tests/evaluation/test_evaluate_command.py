# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.evaluate`: output, files and errors."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

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
    """A file without categories and boxes: boxes are computed from the masks, missing categories are an error."""
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
        (["--max-dets", "0"], "--max-dets 0: expected 1 to 2147483647"),
        (["--max-dets", str(2**31)], "--max-dets 2147483648: expected 1 to 2147483647"),
        (["--max-dets", "5", "5"], "--max-dets: expected different numbers, got [5, 5]"),
        (["--threads", "0"], "--threads 0: expected 1 to 1024"),
        (["--out", "nowhere/results.json"], "--out nowhere/results.json: the folder nowhere does not exist"),
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
    assert "(1 to 2147483647; default: 1 10 100 1000)" in text


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


def change(path, spoil):
    """Rewrite the JSON file after spoil(content)."""
    content = json.loads(Path(path).read_text())
    spoil(content)
    Path(path).write_text(json.dumps(content))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "{}/folder"], "--out {}/folder: a folder, expected a file"),
        (["--per-image", "{}/folder"], "--per-image {}/folder: a folder, expected a file"),
        (["--shards", "{}/file"], "shards {}/file: a file, expected a folder"),
        (["--out", "{}/file/x"], "--out {}/file/x: the folder {}/file does not exist"),
        (["--out", "/proc/x.json"], "--out /proc/x.json: cannot be written, No such file or directory"),
        (["--per-image", "/proc/x.csv"], "--per-image /proc/x.csv: cannot be written, No such file or directory"),
        (["--out", "{}/gt.json"], "--out {}/gt.json: the same file as --gt, expected another"),
        (["--per-image", "{}/folder/../pred.json"], "--per-image {}/folder/../pred.json: the same file as --pred, exp"),
        (["--out", "{}/a", "--per-image", "{}/a"], "--per-image {}/a: the same file as --out, expected another"),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_scoring(files, tmp_path, capsys, options, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("keep")
    before = contents(tmp_path)
    text = refused([*files, *(option.format(tmp_path) for option in options)], capsys)
    assert text.startswith("sohes.evaluate: error: " + message.replace("{}", str(tmp_path)))
    assert text.count("\n") == 1  # not even the bar of the scoring
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["{} > /dev/full", "{} --per-image /dev/full"])
def test_a_full_disk_is_one_line_and_other_outputs_are_whole(files, tmp_path, command):
    whole = f"{sys.executable} -m sohes.evaluate {' '.join(files)} --out {tmp_path}/a.json"
    done = subprocess.run(command.format(whole), shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search("sohes.evaluate: error: (/dev/full|stdout): No space left on device", done.stderr)
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "a.json").read_text())["AR@1000"] == 1


@pytest.mark.parametrize("command", ["{} | true", "{} >&-"])
def test_a_stream_that_nobody_reads_does_not_matter(files, tmp_path, command):
    whole = f"{sys.executable} -m sohes.evaluate {' '.join(files)} --out {tmp_path}/a.json"
    done = subprocess.run(["bash", "-c", command.format(whole)], capture_output=True, text=True, check=False)
    assert (done.returncode, "rror" in done.stderr) == (0, False), done.stderr
    assert json.loads((tmp_path / "a.json").read_text())["AR@1000"] == 1


def test_names_of_images_that_are_no_text_are_written_as_escapes(files, tmp_path, capsys):
    def rename(content):
        content["images"][0]["id"] = "\ud800"
        for record in content["annotations"]:
            record["image_id"] = "\ud800"

    change(files[1], rename)
    change(files[3], rename)
    assert main([*files, "--per-image", str(tmp_path / "table.csv")]) == 0
    assert (tmp_path / "table.csv").read_text().splitlines()[1].startswith("\\ud800,")


def without_regions(content):
    """Three more true masks without a region, of which the last is the part's parent, inside the whole."""
    content["annotations"][1]["parent"] = 5
    content["annotations"] += [
        {"id": 3, "image_id": 1, "segmentation": [], "bbox": [2, 0, 4, 1], "area": 4},
        {"id": 4, "image_id": 1, "bbox": [2, 0, 4, 1]},
        {"id": 5, "image_id": 1, "segmentation": None, "parent": 1},
    ]


def test_what_has_no_region_is_no_mask_and_named_once(files, capsys, caplog):
    change(files[1], without_regions)
    assert main([*files]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert (lines["AR@1000"], lines["AP"], lines["parent_recall"]) == ("100.0", "100.0", "100.0")
    note = f"{files[1]}: 3 of 5 annotations have no segmentation, and are not counted as masks"
    assert caplog.text.count(note) == 1


def test_what_has_a_box_alone_counts_among_boxes(files, capsys):
    """As in pycocotools; without ``bbox`` and mask there is no box."""
    change(files[1], without_regions)
    assert main([*files, "--iou-type", "both"]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert (lines["AR@1000"], lines["box-AR@1000"]) == ("100.0", "50.0")  # of four boxes, three of which are one


def test_truth_without_any_region_is_refused(files, capsys):
    change(files[1], lambda content: [record.update(segmentation=[]) for record in content["annotations"]])
    message = f"{files[1]}: no annotation has a segmentation, so there are no masks to score against"
    assert refused(files, capsys) == f"sohes.evaluate: error: {message}\n"


def test_a_damaged_description_of_shards_is_named(files, tmp_path, capsys):
    (tmp_path / "shards").mkdir()
    for text in ("{", "[]", "\u0000"):
        (tmp_path / "shards/evaluation.json").write_text(text)
        assert "evaluation.json is damaged: delete its folder" in refused(
            [*files, "--shards", str(tmp_path / "shards")], capsys
        )


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b'{"explore": {"AR@1000": 0.5}}', b"[1, 2]", b"image\n1\n"])
@pytest.mark.parametrize("option", ["--out", "--per-image"])
def test_only_earlier_results_are_replaced(files, tmp_path, capsys, option, content):
    """A photo, the results of a training run, other JSON and text stay as they are; nothing is scored."""
    out = tmp_path / "photo.png"
    out.write_bytes(content)
    what = {"--out": "result", "--per-image": "table"}[option]
    message = f"{option} {out}: exists and is no earlier {what} of sohes.evaluate, so it is not replaced"
    assert refused([*files, option, str(out)], capsys) == f"sohes.evaluate: error: {message}: give another file\n"
    assert out.read_bytes() == content


def test_earlier_results_and_empty_files_are_replaced(files, tmp_path):
    paths = [tmp_path / name for name in ("results.json", "table.csv", "table.jsonl")]
    for path in paths:
        path.touch()
    for _ in range(2):
        assert main([*files, "--out", str(paths[0]), "--per-image", str(paths[1])]) == 0
        assert main([*files, "--iou-type", "box", "--out", str(paths[0]), "--per-image", str(paths[2])]) == 0
    assert "box-AR@1000" in json.loads(paths[0].read_text())
    assert all(path.stat().st_size for path in paths)
    assert main([*files, "--out", "/dev/null"]) == 0
