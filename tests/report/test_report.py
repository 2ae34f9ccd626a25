# SPDX-License-Identifier: Apache-2.0
import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from report.run_folder import RESULTS, make_forest, write_manifest, write_truth

from sohes.data.coco import write_coco
from sohes.report import write_report
from sohes.report.photos import VIEWS, png_uri
from sohes.report.record import failure_reasons, read_run, status_counts, training_seconds
from sohes.report.sections import explore_seconds, format_score, stage_seconds

VOID = {"meta", "input", "img", "br", "hr", "link"}
SVG_LEAVES = {"line", "rect", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags nest, and collects elements and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.cells, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SVG_LEAVES | VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)
        tag, attrs = self.tags[-1] if self.tags else ("", {})
        if tag == "td" and self.open[-1:] == ["td"] and "data-key" in attrs:
            self.cells.append((attrs, data))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def report(run, **options):
    path = write_report(run, **options)
    assert path == run / "report.html"
    assert not [p for p in run.iterdir() if p.suffix == ".tmp"]
    html = path.read_text(encoding="utf-8")
    return Page(html), html


def test_full_report_is_one_self_contained_page(full_run):
    page, html = report(full_run)
    for _, attrs in page.tags:
        for name in ("src", "href", "data", "srcset", "poster", "action"):
            assert attrs.get(name, "data:").startswith("data:image/") or attrs.get(name) is None
    styles = re.findall(r"<style>(.*?)</style>", html, re.S)
    assert len(styles) == 1
    assert all(url.startswith("data:image/") for url in re.findall(r"url\(([^)]*)\)", styles[0]))
    assert "@import" not in html
    assert not page.all("link")
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest", html)
    assert len(html) < 8_000_000
    assert "my run &lt;1&gt;" in html
    for heading in ("Results", "Photos", "Training", "Pseudo-labels of phase 1", "Time", "Settings and environment"):
        assert f"<h2>{heading}</h2>" in html


def test_every_number_of_the_table_is_that_of_results_json(full_run):
    page, _ = report(full_run)
    shown = {(attrs["data-phase"], attrs["data-key"]): (attrs, text) for attrs, text in page.cells}
    assert len(shown) == len(page.cells)
    expected = {(p, k): v for p, scores in RESULTS.items() for k, v in scores.items()}
    assert expected.keys() <= shown.keys()
    for key, (attrs, text) in shown.items():
        value = expected.get(key)
        assert text == format_score(key[1], value)
        assert attrs.get("data-value") == (None if value is None else repr(value))
        if value is not None and key[1] not in ("num_images", "masks_per_image"):
            assert float(text) == pytest.approx(100 * value, abs=0.0500001)
    assert {k for k, (attrs, _) in shown.items() if "best" in attrs.get("class", "").split()} == {
        ("instruct", "AR@1000"),
        ("correct", "AR@1000"),  # equal after rounding
        ("correct", "AR@100"),
        ("instruct", "AR-small"),
        ("correct", "AP"),
        ("explore", "parent_recall"),
        ("instruct", "parent_recall"),
        ("correct", "parent_recall"),
    }


def pictures_of_all_levels(page):
    """Alternative texts of the pictures shown first, one per forest over a photo."""
    return [attrs["alt"] for attrs in page.all("img") if "v0" in attrs.get("class", "").split()]


def test_every_picture_has_a_text_and_every_table_a_box_that_scrolls(full_run):
    page, html = report(full_run)
    texts = [attrs.get("alt") for attrs in page.all("img")]
    assert len(texts) > 20
    assert all(texts)
    assert all(attrs.get("aria-label") for attrs in page.all("svg"))
    tables = re.findall(r'(<div class="scroll">|<section>(?:<h3>.*?</h3>)?)<table', html)  # settings wrap in columns
    assert len(tables) == len(page.all("table")) > 5


def test_the_total_time_has_the_scoring_in_it(full_run):
    _, html = report(full_run)
    assert "<dt>in all phases</dt><dd>44s</dd>" in html  # 4 s of phase 1, 20 s each of the others
    rows = [{"phase": phase, "images": 4, "seconds": 12.0} for phase in RESULTS]
    (full_run / "scoring.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page, html = report(full_run)
    assert "<dt>phases and scoring</dt><dd>1m 20s<small>36s of it scoring</small></dd>" in html
    assert "Scoring after the phases" in page.text


def test_photos_show_truth_and_every_phase_at_every_view(full_run):
    page, html = report(full_run, num_photos=3)
    shown = pictures_of_all_levels(page)
    assert len(shown) == 3 * 4
    for alt, title in zip(shown, ["ground truth", "Phase 1", "Phase 2", "Phase 3"] * 3, strict=True):
        assert alt.startswith(title)
        assert ", 3 masks, by level 1 · 1 · 1: sub/phöto " in alt
    overlays = [attrs for attrs in page.all("img") if attrs.get("class", "").startswith("over-photo")]
    assert len(overlays) == 3 * (4 * 5 + 2)  # "misses" has a picture where a true mask is missed: phases 2 and 3
    assert html.count("nothing missed") == 3  # by phase 1; the truth is not asked
    truths = [attrs["alt"] for attrs in overlays if f"v{VIEWS.index('misses')}" in attrs["class"].split()]
    assert [alt.partition(",")[0] for alt in truths] == ["ground truth", "Phase 2", "Phase 3"] * 3
    assert [html.count(f"misses {n} of 3") for n in range(4)] == [3, 0, 3, 3]
    photos = [attrs for attrs in page.all("img") if "class" not in attrs]
    assert [attrs["alt"] for attrs in photos] == [f"sub/phöto {i} <&>.png" for i in (0, 2, 3)]
    assert [a["id"] for a in page.all("input") if a["type"] == "radio" and "checked" in a] == ["view-0"]
    assert "no mask at" not in html


def test_photo_on_the_page_is_the_photo(full_run):
    page, _ = report(full_run, num_photos=1)
    source = next(a["src"] for a in page.all("img") if "class" not in a)
    kind, _, content = source.partition(";base64,")
    assert kind == "data:image/jpeg"
    shown = Image.open(io.BytesIO(base64.b64decode(content)))
    assert shown.size == (440, 264)  # 40 x 24 enlarged by the whole number 11


def test_missing_ground_truth_photos_and_damaged_files_are_said(full_run, tmp_path):
    (tmp_path / "truth" / "images" / "sub" / "phöto 0 <&>.png").unlink()
    (full_run / "predictions" / "instruct.json").write_text("{")
    (full_run / "env.json").write_text("[1]")
    page, _ = report(full_run, num_photos=4)
    text = " ".join(page.text)
    assert "phöto 0 <&>.png: no such file" in text
    assert "instruct.json is not JSON" in text
    assert "env.json: expected an object, got list" in text
    assert "metrics.jsonl: 1 damaged line skipped" in text
    assert len([a for a in page.all("div") if a.get("class") == "photo"]) == 3


def test_truth_without_hierarchy_gets_one_and_one_annotator_is_shown(full_run, tmp_path):
    truth = json.loads((tmp_path / "truth" / "annotations.json").read_text())
    for annotation in truth["annotations"]:
        del annotation["parent"]
        annotation["annotator"] = 3
    truth["annotations"] += [{**truth["annotations"][0], "id": 900, "annotator": 1, "iscrowd": 0}]
    truth["annotations"] += [{**truth["annotations"][0], "id": 901, "annotator": 3, "iscrowd": 1}]
    path = tmp_path / "truth" / "flat.json"
    path.write_text(json.dumps(truth))
    page, _ = report(full_run, gt_json=path, num_photos=4)
    assert pictures_of_all_levels(page)[0] == "ground truth, 3 masks, by level 1 · 1 · 1: sub/phöto 0 <&>.png"


def test_predictions_without_ground_truth(full_run, tmp_path):
    (full_run / "config.json").unlink()
    page, html = report(full_run, image_root=tmp_path / "truth" / "images")
    assert len(pictures_of_all_levels(page)) == 4 * 3
    assert "ground truth</b>" not in html


def test_only_phase_1(tmp_path):
    images = write_truth(tmp_path / "photos")
    run = tmp_path / "run"
    write_manifest(run)
    annotations = []
    for image in images:
        annotations += make_forest((24, 40)).to_coco(image["id"], len(annotations) + 1)
    info = {"root": str(tmp_path / "photos" / "images"), "digest": "", "manifest": []}
    write_coco(run / "labels" / "shard-00000.json", images, annotations, info)
    (run / "config.json").write_text(json.dumps({"images": [str(tmp_path / "photos" / "images")], "eval": None}))
    page, html = report(run)
    assert "<h2>Results</h2>" not in html
    assert "<h2>Training</h2>" not in html
    assert "Training photos, spread evenly" in html
    assert len([a for a in page.all("div") if a.get("class") == "photo"]) == 4
    text = " ".join(" ".join(page.text).split())
    assert "truncated <file> 2" in text
    assert "ok 5 photos empty 1 photo failed 2 photos" in text


def test_a_file_in_place_of_a_shard_is_a_problem_on_the_page(tmp_path):
    images = write_truth(tmp_path / "photos")
    (tmp_path / "run" / "labels").mkdir(parents=True)
    write_coco(tmp_path / "run" / "labels" / "shard-00000.json", images, [], {"of": "someone else"})
    page, _ = report(tmp_path / "run")
    assert "is not a shard of labels" in " ".join(page.text)


def test_empty_run_folder_and_no_run_folder(tmp_path):
    (tmp_path / "run").mkdir()
    page, _ = report(tmp_path / "run")
    assert "This folder holds no results yet." in page.text
    with pytest.raises(FileNotFoundError, match=r"^no run folder at .*nowhere$"):
        write_report(tmp_path / "nowhere")


def test_results_of_one_phase_have_no_best_and_no_charts(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"explore": RESULTS["explore"]}))
    page, html = report(tmp_path)
    assert 'class="best"' not in html
    assert not page.all("svg")


def test_the_granularity_curve_is_drawn_and_stays_out_of_the_table(tmp_path):
    rows = [
        {"max_dets": k, "masks_per_image": k, "AR": ar, "AR50": 0.9} for k, ar in ((1, 0.1), (10, 0.25), (1000, 0.4))
    ]
    nothing = [{"max_dets": 1, "masks_per_image": 1, "AR": None, "AR50": None}]
    results = {"explore": {"AR@1000": 0.4, "granularity": rows}, "instruct": {"AR@1000": 0.2, "granularity": nothing}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    _, html = report(tmp_path)
    assert "Average recall by the number of masks that count per photo" in html
    assert "10.0, 25.0, 40.0" in html
    assert 'data-key="granularity"' not in html
    wide, narrow = (html.partition(f'<div class="{name}">')[2] for name in ("on-wide", "on-narrow"))
    assert 'width="780"' in wide.partition(">")[0]
    assert 'width="380"' in narrow.partition(">")[0]


def test_read_run(full_run):
    run = read_run(full_run)
    assert list(run.metrics) == ["instruct", "correct"]
    assert [row["step"] for row in run.metrics["instruct"]] == list(range(40))
    assert status_counts(run.manifest) == {"ok": 5, "empty": 1, "failed": 2}
    assert failure_reasons(run.manifest) == {"truncated <file>": 2}
    assert stage_seconds(run) == {"decode": 3.0, "merge": 1.5}
    assert explore_seconds(run) == 4.0  # of rank 0, which made two files


def test_a_resumed_phase_counts_the_time_of_both_starts():
    rows = [{"time": t} for t in (1.0, 2.0, 3.5, 0.5, 4.0)]
    assert training_seconds(rows) == 7.5
    assert training_seconds([]) == 0


@pytest.mark.parametrize("num_colors", [3, 256, 257])
def test_png_keeps_colours_and_alpha_exactly(num_colors):
    generator = torch.Generator().manual_seed(num_colors)
    colors = torch.randint(0, 256, (num_colors, 4), dtype=torch.uint8, generator=generator)
    picture = colors[torch.arange(30 * 40) % num_colors].T.reshape(4, 30, 40)
    content = base64.b64decode(png_uri(picture).partition(";base64,")[2])
    image = Image.open(io.BytesIO(content))
    assert image.mode == ("P" if num_colors <= 256 else "RGBA")
    back = torch.from_numpy(np.array(image.convert("RGBA"))).permute(2, 0, 1)
    assert torch.equal(back, picture)
