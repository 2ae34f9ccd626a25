# SPDX-License-Identifier: Apache-2.0
import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.configs.presets import photo_labels
from sohes.configs.run import InferConfig, ModelConfig
from sohes.data.coco import LabelSet
from sohes.data.images import read_image
from sohes.data.scenes import draw_scene
from sohes.labels.features import build_extractor
from sohes.labels.pipeline import label_image
from sohes.models.segmenter import Segmenter
from sohes.models.segmenter_model import build_model
from sohes.phases import segment_photos
from sohes.phases.segment_inputs import find_photos
from sohes.segment import Arguments, main

TINY_MODEL = ModelConfig(
    backbone="vit_tiny_patch16_224",
    backbone_kwargs={"depth": 1, "embed_dim": 32, "num_heads": 2},
    adapter_interactions=1,
    adapter_heads=2,
    adapter_stem=8,
    hidden_dim=16,
    num_heads=2,
    encoder_layers=1,
    encoder_ffn_dim=16,
    decoder_layers=1,
    decoder_ffn_dim=16,
    num_queries=12,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A model with random weights, as a run folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = build_model(TINY_MODEL).eval()
    Segmenter(model, TINY_MODEL, InferConfig(size=64)).save_pretrained(folder / "weights" / "correct")
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "my photos"
    for index, name in enumerate(["a.png", "sub/a.jpg", "sub/ünï code.webp", "sub/deep/B.JPG"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40 + index, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def run(*arguments):
    """Exit code of the command."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def read_manifest(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_folder_gives_pictures_coco_and_manifest(weights, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photos, "--weights", weights, "--out", out) == 0
    pictures = ["a.png", "sub/a.png", "sub/deep/B.png", "sub/ünï code.png"]
    assert files(out) == sorted([*pictures, "manifest.jsonl", "segments.json"])
    rows = read_manifest(out)
    assert [row["picture"] for row in rows] == pictures
    assert {row["file_name"] for row in rows} == {str(path) for path in photos.rglob("*.*")}
    assert {row["masks"] for row in rows} == {"segments.json"}
    segmenter = Segmenter.from_pretrained(weights)
    labels = LabelSet(out / "segments.json", image_root=Path())
    assert len(labels) == 4
    for row, labelled in zip(rows, labels, strict=True):
        expected = segmenter(labelled.path)[0]
        assert row["status"] == ("ok" if len(expected) else "empty")
        assert row["num_masks"] == len(expected)
        assert str(labelled.path) == row["file_name"]
        assert torch.equal(labelled.forest.masks.words, expected.masks.words)
        assert torch.equal(labelled.forest.parents, expected.parents)
        # Five tiles and a caption: photo, three levels, contours.
        with Image.open(out / row["picture"]) as picture:
            assert picture.width > 5 * picture.height - 5 * 26
    assert sum(row["num_masks"] for row in rows) > 0
    captured = capsys.readouterr()
    assert captured.out.startswith("4 photos: ")
    assert "segment: 4 photos in " in captured.err


def test_sam_records(weights, photos, tmp_path):
    out = tmp_path / "out"
    assert run(photos / "a.png", "--weights", weights, "--out", out, "--format", "sam") == 0
    assert files(out) == ["a.json", "a.png", "manifest.jsonl"]
    records = json.loads((out / "a.json").read_text())
    assert len(records) == read_manifest(out)[0]["num_masks"]
    assert {"segmentation", "area", "bbox", "predicted_iou", "level", "parent"} <= records[0].keys()


def test_label_map_and_limits(weights, photos, tmp_path):
    out = tmp_path / "out"
    code = run(photos / "a.png", "--weights", weights, "--out", out, "--format", "png", "--max-masks", 3, "--depth", 0)
    assert code == 0
    assert files(out) == ["a.labels.png", "a.png", "manifest.jsonl"]
    with Image.open(out / "a.labels.png") as image:
        assert image.mode == "I;16"
        labels = np.array(image)
    forest = Segmenter.from_pretrained(weights)(photos / "a.png")[0]
    assert labels.shape == forest.masks.size
    count = read_manifest(out)[0]["num_masks"]
    assert 1 <= count <= 3
    assert labels.max() <= count


def test_min_score_may_drop_all_masks(weights, photos, tmp_path):
    out = tmp_path / "out"
    assert run(photos, "--weights", weights, "--out", out, "--min-score", 1) == 0
    assert [row["status"] for row in read_manifest(out)] == ["empty"] * 4
    assert json.loads((out / "segments.json").read_text())["annotations"] == []


def test_without_weights_photos_are_clustered(tmp_path, capsys):
    scene = draw_scene(3, 96).image
    photo = tmp_path / "scene.png"
    Image.fromarray(scene.permute(1, 2, 0).numpy()).save(photo)
    assert run(photo, "--out", tmp_path / "out") == 0
    assert "photos are clustered, as in phase 1, without a model" in capsys.readouterr().err
    config = photo_labels()
    expected = label_image(scene, build_extractor(config), config)
    assert len(expected) > 5
    found = LabelSet(tmp_path / "out" / "segments.json")[0].forest
    assert torch.equal(found.masks.words, expected.masks.words)
    assert torch.equal(found.parents, expected.parents)
    middle = expected.scores.median().item()
    assert run(photo, "--out", tmp_path / "few", "--max-masks", "5", "--min-score", middle) == 0
    few = LabelSet(tmp_path / "few" / "segments.json")[0].forest
    assert 0 < len(few) <= 5
    assert (few.scores >= middle - 1e-6).all()


def test_no_readable_photo_is_a_failure_whatever_max_failures(photos, tmp_path):
    (tmp_path / "a.jpg").touch()
    assert run(tmp_path / "a.jpg", "--out", tmp_path / "out", "--max-failures", 9) == 1


@pytest.mark.parametrize(("allowed", "code"), [(0, 1), (1, 1), (2, 0)])
def test_unreadable_photos_are_named_and_counted(weights, photos, tmp_path, capsys, allowed, code):
    (photos / "sub" / "empty.jpg").touch()
    (photos / "sub" / "text.png").write_text("no image")
    out = tmp_path / "out"
    assert run(photos, "--weights", weights, "--out", out, "--max-failures", allowed) == code
    rows = {Path(row["file_name"]).name: row for row in read_manifest(out)}
    assert len(rows) == 6
    assert rows["empty.jpg"] == {
        "file_name": str(photos / "sub" / "empty.jpg"),
        "status": "failed",
        "reason": "the file is empty (0 bytes)",
    }
    assert rows["text.png"]["status"] == "failed"
    assert len(LabelSet(out / "segments.json")) == 4
    captured = capsys.readouterr()
    assert "empty.jpg: failed: the file is empty (0 bytes)\n" in captured.err
    assert "2 failed; see" in captured.out


def test_names_are_unique_and_never_those_of_a_photo(tmp_path):
    for name in ["one/x.jpg", "two/x.jpg", "two/X.png", "two/x-2.jpg", "two/x.labels.jpg"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    found = find_photos([tmp_path / "one", tmp_path / "two", tmp_path / "one" / "x.jpg"], tmp_path / "two")
    assert [photo.path.relative_to(tmp_path).as_posix() for photo in found] == [
        "one/x.jpg",
        "two/X.png",
        "two/x-2.jpg",
        "two/x.jpg",
        "two/x.labels.jpg",
    ]
    names = [photo.name for photo in found]
    assert len({name.lower() for name in names}) == 5
    # two/X.png is a photo and lies in --out, where x.jpg's picture would have gone.
    assert "x" not in {name.lower() for name in names}
    targets = {f"{name}{suffix}".lower() for name in names for suffix in (".png", ".labels.png", ".json")}
    assert len(targets) == 15


def test_two_folders_with_equal_names(weights, photos, tmp_path):
    out = tmp_path / "out"
    assert run(photos / "a.png", photos / "sub", "--weights", weights, "--out", out) == 0
    assert [row["picture"] for row in read_manifest(out)] == ["a.png", "a-2.png", "deep/B.png", "ünï code.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one photo or folder of photos"),
        (["--weights", "{weights}"], "name at least one photo or folder of photos"),
        (["{photos}", "--min-score", "-0.1"], "--min-score -0.1: expected 0 to 1"),
        (["{photos}", "--weights", "{weights}", "--depth", "-1"], "--depth -1: expected >= 0"),
        (["{photos}", "--weights", "{weights}", "--min-score", "1.5"], "--min-score 1.5: expected 0 to 1"),
        (["{photos}", "--weights", "{weights}", "--min-score", "nan"], "--min-score nan: expected a finite number"),
        (["{photos}", "--weights", "{weights}", "--max-masks", "0"], "--max-masks 0: expected >= 1"),
        (["{photos}", "--weights", "{weights}", "--tile", "5"], "--tile 5: expected 0 or >= 32"),
        (["{photos}", "--tile", "512"], "--tile needs --weights: photos are clustered as a whole"),
        (["{photos}", "--weights", "{weights}", "--max-failures", "-1"], "--max-failures -1: expected >= 0"),
        (
            ["{photos}", "--weights", "{weights}", "--out", "{photos}/a.png"],
            "--out {photos}/a.png: expected a folder, this is a file",
        ),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(weights, photos, capsys, arguments, message):
    known = {"photos": photos, "weights": weights}
    assert run(*[argument.format(**known) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"sohes.segment: error: {message.format(**known)}\n"
    assert captured.out == ""


@pytest.mark.parametrize("missing", ["no/such.jpg", "empty folder"])
def test_missing_photos_stop_before_anything_is_written(weights, photos, tmp_path, capsys, missing):
    (tmp_path / "empty folder").mkdir()
    out = tmp_path / "out"
    assert run(photos, tmp_path / missing, "--weights", weights, "--out", out) == 2
    assert missing in capsys.readouterr().err
    assert not out.exists()


def test_missing_weights_stop_before_a_photo_is_read(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(segment_photos, "read_image", lambda path: pytest.fail("a photo was read"))
    (tmp_path / "no weights").mkdir()
    out = tmp_path / "out"
    assert run(photos, "--weights", tmp_path / "no weights", "--out", out) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"sohes.segment: error: no model.safetensors in {tmp_path / 'no weights'}")
    assert not out.exists()


@pytest.mark.parametrize("workers", [1, 3])
def test_results_depend_on_neither_threads_nor_their_number(weights, photos, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(segment_photos, "available_cpus", lambda: workers)
    photos_of, seen = [], []
    segment_photo = segment_photos.segment_photo

    def watch(photo, *rest):
        photos_of.append(photo)
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return segment_photo(photo, *rest)

    monkeypatch.setattr(segment_photos, "segment_photo", watch)
    before = torch.get_num_threads()
    for option in ([], ["--weights", weights]):
        out = tmp_path / f"out{len(option)}"
        assert run(photos, "--out", out, *option) == 0
        segmenter = Segmenter.from_pretrained(weights) if option else None
        config = photo_labels()
        extractor = build_extractor(config)
        rows = read_manifest(out)
        assert [row["file_name"] for row in rows] == [str(path) for path in sorted(photos.rglob("*.*"))]
        first_id = 1
        expected = []
        for image_id, row in enumerate(rows, start=1):
            image = read_image(row["file_name"])
            forest = segmenter(image)[0] if segmenter else label_image(image, extractor, config)
            expected += forest.to_coco(image_id, first_id)
            first_id += len(forest)
        assert json.loads((out / "segments.json").read_text())["annotations"] == expected
    assert {threads for _, threads in seen} == {1}
    assert all(name.startswith("segment") for name, _ in seen)
    assert torch.get_num_threads() == before


def test_a_single_photo_has_all_cpus_for_its_model(weights, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(segment_photos, "available_cpus", lambda: 3)
    seen = []
    encode_masks = segment_photos.encode_masks

    def watch(*arguments):
        seen.append(torch.get_num_threads())
        return encode_masks(*arguments)

    monkeypatch.setattr(segment_photos, "encode_masks", watch)
    assert run(photos / "a.png", "--out", tmp_path / "a", "--weights", weights) == 0
    assert run(photos / "a.png", "--out", tmp_path / "b") == 0
    assert seen == [3, 1]


@pytest.mark.parametrize(("given", "device"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cpu", "cpu")])
def test_the_device_is_used_with_weights_and_without(given, device, monkeypatch, photos, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    asked = []

    class Stop(Exception):
        pass

    def stop(_, device):
        asked.append(str(device))
        raise Stop

    monkeypatch.setattr(segment_photos, "build_extractor", stop)
    monkeypatch.setattr(Segmenter, "from_pretrained", stop)
    for option in ([], ["--weights", "here"]):
        with pytest.raises(Stop):
            main([str(photos), "--out", str(tmp_path), "--device", given, *option])
    assert asked == [device, device]


def test_without_a_standard_error(photos, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert run(photos, "--out", tmp_path / "out", "--weights", weights) == 0
    assert len(read_manifest(tmp_path / "out")) == 4


def test_unknown_option_names_the_nearest(photos, capsys):
    assert run(photos, "--weigths", "x") == 2
    error = capsys.readouterr().err
    assert "--weigths" in error
    assert "--weights" in error


def test_help_explains_every_option(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert run("--help-all") == 0
    shown = capsys.readouterr().out
    for name in Arguments.__dataclass_fields__:
        assert name == "photos" or f"--{name.replace('_', '-')}" in shown
    assert "0 to 1" in shown
    assert "(default: segments)" in shown
