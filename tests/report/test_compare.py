# SPDX-License-Identifier: Apache-2.0
"""The comparison page: its numbers and pictures; which runs the command finds, and its errors."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.evaluate import main
from sohes.report.charts import interval_chart
from sohes.report.compare_photos import draw_crop, run_names
from sohes.report.published import published_recall
from sohes.structures.masks import PackedMasks

SIZE = 120
NUM_PHOTOS = 6
FEW = ("--bootstrap.photos", "0", "--bootstrap.misses", "0")  # pictures


def square(left, side):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[left : left + side, left : left + side] = True
    return mask


@pytest.fixture
def data(tmp_path):
    """Photos of a large and a small square. `good` finds both except in photo 6, `bad` the large one except in 1."""
    (tmp_path / "images").mkdir()
    images, truth = [], []
    found = {"good": [], "bad": []}
    for number in range(1, NUM_PHOTOS + 1):
        masks = np.stack([square(2, 100 + number), square(5, 10 + number)])
        Image.fromarray(np.uint8(40 * number) * np.ones((SIZE, SIZE, 3), np.uint8)).save(
            tmp_path / "images" / f"{number}.png"
        )
        images.append({"id": number, "file_name": f"{number}.png", "width": SIZE, "height": SIZE})
        rles = PackedMasks.from_dense(masks).to_rle()
        for k, rle in enumerate(rles):
            record = {"id": 2 * number + k, "image_id": number, "segmentation": rle, "score": 0.5 + 0.1 * k}
            truth.append({**record, "parent": 2 * number if k else None})
            if number < NUM_PHOTOS:
                found["good"].append(truth[-1])
            if k == 0 and number > 1:
                found["bad"].append(record)
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images, "annotations": truth}))
    for name, records in found.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": images, "annotations": records}))
    return tmp_path


def compare(data, *options, runs=("bad.json", "good.json")):
    page = data / "page.html"
    arguments = ["--compare", *(str(data / run) for run in runs), "--out", str(page), *options]
    assert main(arguments) == 0
    return page.read_text(encoding="utf-8")


def cells(html, table):
    """Cell texts of a table: {row: {metric: text}}."""
    body = re.search(rf'<table id="{table}">(.*?)</table>', html, re.DOTALL)[1]
    return {
        re.search(r"<th[^>]*>(.*?)</th>", row)[1]: dict(re.findall(r'data-key="([^"]+)"[^>]*>(.*?)</td>', row))
        for row in re.findall(r"<tr><th scope=\"row\".*?</tr>", body)
    }


def test_page_shows_scores_differences_and_pictures(data, capsys):
    html = compare(data, "--gt", str(data / "annotations.json"))
    scores = cells(html, "scores")
    assert list(scores) == ["bad", "good"]
    assert scores["good"]["AR@1000"].startswith("83.3<small>")
    assert scores["bad"]["AR@1000"].startswith("41.7<small>")
    assert scores["bad"]["AR-small"].startswith("0.0<small>0.0 to 0.0")
    assert "<small>" not in scores["good"]["AP"]
    changes = cells(html, "differences")
    assert list(changes) == ["good"]
    assert changes["good"]["AR@1000"].startswith("+41.7<small>")
    assert changes["good"]["AR-large"].startswith("+0.0")
    assert changes["good"]["parent_recall"].startswith("+83.3")
    captions = re.findall(r'<div class="caption">(.*?)</div>', html)
    assert captions[0] == "good gains most on bad: 1.png (AR@1000 bad 0.0, good 100.0)"
    assert "good loses most to bad: 6.png (AR@1000 bad 50.0, good 0.0)" in captions
    assert len(captions) == len(set(captions)) == NUM_PHOTOS
    assert "<h2>Misses by size</h2>" in html
    assert re.findall(r"<h3>(\w+)</h3>", html) == ["small"]  # the small square of photo 6 is the only one
    assert "256 px; best IoU bad 0.02, good 0.00<br>6.png" in html
    assert "http" not in re.sub(r"http://www.w3.org\S*", "", html)  # nothing is fetched
    assert "good" in capsys.readouterr().out
    for kind, content in re.findall(r"data:image/(\w+);base64,([\w+/=]+)", html):
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.format.lower() == kind
            image.load()


def test_equal_calls_give_equal_pages(data):
    options = ["--gt", str(data / "annotations.json"), "--bootstrap.resamples", "50", "--bootstrap.photos", "0"]
    page = compare(data, *options)
    assert compare(data, *options) == page
    assert compare(data, *options, "--bootstrap.seed", "1") != page


def test_published_proposals_stand_folded_below_other_sets(data):
    html = compare(data, "--gt", str(data / "annotations.json"), *FEW)
    row = re.search(r">MCG</th>(.*?)</tr>", html)[1]
    assert re.findall(r">([^<>]+)</td>", row) == ["contours, ranking", "7.7", "18.6", "29.9"]


def test_a_page_replaces_a_page_and_nothing_else(data, capsys):
    options = ["--gt", str(data / "annotations.json"), *FEW]
    compare(data, *options)
    compare(data, *options)
    for content in ("<!DOCTYPE html><title>my page</title>", '{"num_images": 1, "masks_per_image": 2}'):
        (data / "page.html").write_text(content)
        with pytest.raises(SystemExit):
            compare(data, *options)
        assert "page.html: exists and is no earlier page of sohes.evaluate, so it is not" in capsys.readouterr().err
        assert (data / "page.html").read_text() == content


def test_published_rows_stand_beside_a_known_data_set(data):
    root = data / "coco"
    (root / "annotations").mkdir(parents=True)
    (data / "images").rename(root / "val2017")
    (data / "annotations.json").rename(root / "annotations" / "instances_val2017.json")
    html = compare(data, "--dataset", "coco", "--root", str(root), *FEW)
    assert "SOHES, ViT-B/8, 0.2 M images (published)" in html
    assert 'class="reference"' in html
    assert "UnSAM 42.0" in html
    assert published_recall("plain") == published_recall(None) == []
    assert dict((method, value) for method, _, value in published_recall("sa1b"))["SOHES"] == pytest.approx(0.333)


def test_photos_that_are_gone_are_mentioned(data):
    (data / "images" / "1.png").unlink()
    html = compare(data, "--gt", str(data / "annotations.json"))
    assert html.count('class="note problem"') == 1
    assert "1.png: no such file" in html
    assert cells(html, "scores")["good"]["AR@1000"].startswith("83.3")


def test_run_folders_bring_their_truth(data):
    for name in ("good", "bad"):
        folder = data / name / "predictions"
        folder.mkdir(parents=True)
        (folder / "explore.json").write_text((data / "bad.json").read_text())
        (folder / "instruct.json").write_text((data / f"{name}.json").read_text())
    (data / "good" / "config.json").write_text(json.dumps({"eval": str(data)}))
    scores = cells(compare(data, *FEW, runs=("good", "bad")), "scores")
    assert scores["good"]["AR@1000"].startswith("83.3")
    assert scores["bad"]["AR@1000"].startswith("41.7")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "nowhere"], "--compare nowhere: expected a file of predictions or run folder"),
        (["--compare", "bad.json"], "bad.json does not say what it was scored on: give --gt, or --dataset and --root"),
        (["--compare", "images"], "--compare images: expected a run folder with predictions/"),
        (["--compare", "bad.json", "bad.json", "--gt", "annotations.json"], "expected different runs"),
        (["--compare", "bad.json", "--pred", "good.json"], "expected either --pred FILE or --compare RUN RUN"),
        (["--compare", "bad.json", "--per-image", "x.csv"], "--per-image goes with --pred"),
        (["--compare", "bad.json", "--bootstrap.level", "2"], "--bootstrap.level 2.0: expected > 0 to below 1"),
        (["--compare", "bad.json", "--dataset", "coco"], "--dataset goes with --root"),
    ],
)
def test_what_cannot_be_compared_is_one_line(data, options, message, capsys, monkeypatch):
    monkeypatch.chdir(data)
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") <= 1


def test_crops_show_the_mask_and_its_surroundings():
    image = torch.full((3, SIZE, SIZE), 7, dtype=torch.uint8)
    crop = draw_crop(image, PackedMasks.from_dense(square(60, 10)[None]))
    assert crop.shape == (3, 6 * 34, 6 * 34)  # 12 pixels around 10, six times as large
    marked = (crop[0] == 255).nonzero()
    assert marked.min().item() == 6 * 12 - 1
    assert marked.max().item() == 6 * 22
    large = draw_crop(
        torch.full((3, 600, 900), 7, dtype=torch.uint8), PackedMasks.from_dense(np.ones((1, 600, 900), bool))
    )
    assert max(large.shape) == 220
    assert (image == 7).all()


def test_names_of_runs_are_short_and_distinct(tmp_path):
    paths = [tmp_path / "a" / "p.json", tmp_path / "b" / "p.json", tmp_path / "c" / "q.json"]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    assert run_names(paths) == ["a/p", "b/p", "q"]


def test_interval_chart_places_dots_whiskers_and_references():
    svg = interval_chart(
        [("a", 0.2, 0.1, 0.3), ("b", 0.4, *2 * [float("nan")]), ("c", *3 * [float("nan")])], "t", [("R", 0.25)]
    )
    x = {name: float(value) for name, value in zip("ab", re.findall(r'cx="([\d.]+)"', svg), strict=True)}
    low, high = (float(end.split(",")[0]) for end in re.findall(r'points="([^"]+)"', svg)[0].split()[::2])
    assert low < x["a"] < high < x["b"]
    reference = float(re.search(r'class="reference" x1="([\d.]+)"', svg)[1])
    assert reference == pytest.approx(x["a"] + (x["b"] - x["a"]) / 4, abs=0.2)
    assert "nothing to find" in svg
    assert interval_chart([("c", *3 * [float("nan")])], "t") == ""
