# SPDX-License-Identifier: Apache-2.0
"""The output of sohes.segment: no finished file, and no file of another origin, is lost."""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from micro import no_file_beyond
from PIL import Image

from sohes.data.coco import LabelSet
from sohes.phases import segment_photos
from sohes.phases.segment_inputs import find_photos
from sohes.segment import main
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Two nested squares instead of a clustering."""

    def segment(image):
        masks = torch.zeros(2, *image.shape[1:], dtype=torch.bool)
        masks[0, 2:30, 2:30], masks[1, 5:9, 5:9] = True, True
        return Forest(PackedMasks.from_dense(masks), torch.tensor([0.9, 0.5]), torch.tensor([-1, 0]))

    monkeypatch.setattr(segment_photos, "load_segmenter", lambda *_: segment)


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos", "a.jpg", "b.png", "sub/c.png")


def make_photos(folder, *names):
    for index, name in enumerate(names):
        path = os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else name.encode())
        os.makedirs(os.path.dirname(path), exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        with open(path, "wb") as file:
            Image.fromarray(pixels).save(file, "png" if path.endswith(b"png") else "jpeg")
    return folder


def run(*arguments):
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def rows_of(out, name="manifest.jsonl"):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_at(monkeypatch, number, error):
    """Reading the photo of that number, from 1 on, ends in an error."""
    read_image, calls = segment_photos.read_image, []

    def read(path):
        calls.append(path)
        if len(calls) == number:
            raise error
        return read_image(path)

    monkeypatch.setattr(segment_photos, "available_cpus", lambda: 1)
    monkeypatch.setattr(segment_photos, "read_image", read)


@pytest.mark.parametrize("done", [0, 2])
@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError(5, "bad disk", "x"), 2)])
def test_a_second_call_that_is_stopped_leaves_what_the_first_has_finished(
    photos, tmp_path, monkeypatch, done, error, code
):
    out = tmp_path / "out"
    assert run(photos, "--out", out) == 0
    before = contents(out)
    with monkeypatch.context() as patch:
        stop_at(patch, done + 1, error)
        assert run(photos, "--out", out, "--depth", 0) == code
    after = contents(out)
    assert {name: after[name] for name in ("segments.json", "manifest.jsonl")} == {
        name: before[name] for name in ("segments.json", "manifest.jsonl")
    }
    assert len(rows_of(out, "manifest.partial.jsonl")) == done
    if code == 130:
        partial = LabelSet(out / "segments.partial.json", photos)
        assert [len(image.forest) for image in partial] == [1] * done
    assert run(photos, "--out", out) == 0
    now = contents(out)
    assert now.keys() == before.keys()
    assert now["segments.json"] == before["segments.json"]


def test_a_first_call_that_is_stopped_leaves_no_half_result(photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(patch, 3, KeyboardInterrupt)
        assert run(photos, "--out", out) == 130
    assert sorted(contents(out)) == ["a.png", "b.png", "manifest.partial.jsonl", "segments.partial.json"]
    assert [len(image.forest) for image in LabelSet(out / "segments.partial.json", photos)] == [2, 2]


@pytest.mark.parametrize("kind", ["coco", "sam", "png"])
@pytest.mark.parametrize("limit", [100, 2500])
def test_a_full_disk_leaves_what_was_finished(photos, tmp_path, capsys, kind, limit):
    out = tmp_path / "out"
    assert run(photos, "--out", out, "--format", kind) == 0
    before = contents(out)
    capsys.readouterr()
    with no_file_beyond(limit):
        assert run(photos, "--out", out, "--format", kind) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"sohes.segment: error: {out}/")
    assert last.endswith("File too large")
    after = contents(out)
    for name, content in before.items():
        if name != "manifest.jsonl" and not name.endswith(".png"):
            assert after[name] == content
    assert after["manifest.jsonl"] == before["manifest.jsonl"]
    assert not [name for name in after if name.endswith(".tmp")]


@pytest.mark.parametrize("place", [".", "segments", "sub"])
@pytest.mark.parametrize("kind", ["coco", "sam", "png"])
def test_own_pictures_are_skipped_and_photos_are_not_replaced(photos, place, kind):
    """--out is the folder of photos, or in it; a folder in it may hold photos of its own."""
    before = contents(photos)
    for _ in range(3):
        assert run(photos, "--out", photos / place, "--format", kind) == 0
        rows = rows_of(photos / place)
        assert [row["file_name"] for row in rows] == [str(photos / name) for name in ("a.jpg", "b.png", "sub/c.png")]
        after = contents(photos)
        assert {name: after[name] for name in before} == before
        assert len(after) == 3 + 3 + 1 + (1 if kind == "coco" else 3)
    shutil.copytree(photos / place, photos / "copied", ignore=shutil.ignore_patterns("[abc].jpg", "[bc].png"))
    assert run(photos, "--out", photos / place, "--format", kind) == 0
    assert len(rows_of(photos / place)) == 3


def test_files_of_others_are_not_replaced(tmp_path, capsys):
    photos = make_photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg")
    (photos / "a.json").write_text("a truth")
    (photos / "b.png").write_bytes(b"no photo that was asked for")
    (photos / "c.labels.png").write_bytes(b"a label map")
    before = contents(photos)
    names = [photos / name for name in ("a.jpg", "b.jpg", "c.jpg")]
    for _ in range(2):
        assert run(*names, "--out", photos, "--format", "sam") == 0
        assert [row["picture"] for row in rows_of(photos)] == ["a-2.png", "b-2.png", "c-2.png"]
        assert {name: contents(photos)[name] for name in before} == before
    labels = tmp_path / "labels"
    labels.mkdir()
    for name, content in (
        ("manifest.jsonl", '{"file_name": "a.jpg", "image_id": 1, "masks": 3, "status": "ok"}\n'),
        ("segments.json", '{"info": {"description": "mine"},\n"images": []}'),
        ("segments.json", "[]"),
    ):
        (labels / name).write_text(content)
        capsys.readouterr()
        assert run(photos / "a.jpg", "--out", labels) == 2
        message = f"--out {labels}: its {name} was not written by sohes.segment and is not replaced: choose another"
        assert capsys.readouterr().err == f"sohes.segment: error: {message}\n"
        assert contents(labels) == {name: content.encode()}
        (labels / name).unlink()


def test_a_folder_with_only_own_pictures(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photos, "--out", out) == 0
    capsys.readouterr()
    assert run(out, "--out", tmp_path / "again") == 2
    assert "no photos in" in capsys.readouterr().err
    assert run(out / "b.png", "--out", tmp_path / "again") == 0  # named itself, it is what was asked for


LONG = [b"x" * 251 + b".png", b"x" * 250 + b"y.png", "ü".encode() * 125 + b"z.png", b"\xe9" * 251 + b".jpg"]


@pytest.mark.parametrize("kind", ["coco", "sam", "png"])
def test_names_of_255_bytes(tmp_path, kind):
    photos = make_photos(tmp_path / "photos", *LONG, b"x" * 251 + b".jpg")
    for _ in range(2):
        assert run(photos, "--out", tmp_path / "out", "--format", kind) == 0
        rows = rows_of(tmp_path / "out")
        assert [row["status"] for row in rows] == ["ok"] * 5
        written = {row["picture"] for row in rows} | {row["masks"] for row in rows}
        assert set(contents(tmp_path / "out")) == written | {"manifest.jsonl"}
        assert len({row["picture"] for row in rows}) == 5


@pytest.mark.parametrize("kind", ["coco", "sam", "png"])
def test_names_that_are_not_utf8(tmp_path, kind, capsysbinary):
    photos = make_photos(tmp_path / os.fsdecode(b"caf\xe9"), b"Jos\xe9.jpg", b"Jos\xe9.png", b"d\xe9j\xe0/vu.png")
    (photos / os.fsdecode(b"mal\xe9.jpg")).touch()
    out = photos / os.fsdecode(b"segment\xe9")
    assert run(photos, "--out", out, "--format", kind, "--max-failures", 1) == 0
    shown = capsysbinary.readouterr()
    assert b"mal\\udce9.jpg: failed" in shown.err
    assert b"segment\\udce9" in shown.out
    rows = {os.fsencode(os.path.relpath(row["file_name"], photos)): row for row in rows_of(out)}
    assert {name: row["status"] for name, row in rows.items()} == {
        b"Jos\xe9.jpg": "ok",
        b"Jos\xe9.png": "ok",
        b"d\xe9j\xe0/vu.png": "ok",
        b"mal\xe9.jpg": "failed",
    }
    assert os.fsencode(rows[b"Jos\xe9.png"]["picture"]) == b"Jos\xe9-2.png"
    for row in rows.values():
        assert row["status"] == "failed" or (out / row["picture"]).is_file()
    if kind == "coco":
        assert [image.path.is_file() for image in LabelSet(out / "segments.json", photos)] == [True] * 3


def test_photos_of_an_archive_beside_it(tmp_path):
    """The archive's name, which photos in it have as their folder, is that of a file in --out."""
    photos = make_photos(tmp_path / "photos", "a.png")
    with tarfile.open(photos / "more.tar", "w") as tar:
        tar.add(photos / "a.png", "in/b.png")
    for _ in range(2):
        assert run(photos, "--out", photos) == 0
        assert [row["picture"] for row in rows_of(photos)] == ["a-2.png", "more.tar.d/in/b.png"]


@pytest.mark.parametrize("out", ["{tmp}/file", "{tmp}/file/out", "/proc/out", "/dev/null"])
def test_an_impossible_out_is_a_one_line_error(photos, tmp_path, capsys, out):
    (tmp_path / "file").write_text("content")
    out = out.format(tmp=tmp_path)
    assert run(photos, "--weights", "x", "--out", out) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("sohes.segment: error: ")
    assert out in line
    assert (tmp_path / "file").read_text() == "content"


def test_names_in_capitals_count_as_equal(tmp_path):
    photos = make_photos(tmp_path / "photos", "one/x.jpg", "two/X.png")
    found = find_photos([photos / "one", photos / "two"], tmp_path / "out")
    assert [photo.name for photo in found] == ["x", "X-2"]
