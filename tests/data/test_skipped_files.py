# SPDX-License-Identifier: Apache-2.0
"""The commands report once which files of a folder of photos they skipped."""

import pytest
import torch
from PIL import Image

from sohes.configs.presets import get_preset
from sohes.data.sources import list_images
from sohes.phases import pipeline
from sohes.phases.segment_inputs import find_photos
from sohes.pretrain import main as pretrain
from sohes.utils.distributed import World

LINE = "2 files skipped: 2 .dng (a.DNG first)"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (24, 24), (9, 9, 9)).save(folder / "c.jfif", "JPEG")
    for name in ("a.DNG", "b.dng"):
        (folder / name).write_bytes(b"raw")
    return folder


def test_segment(photos, tmp_path, capsys):
    assert [photo.path.name for photo in find_photos([photos], tmp_path / "out")] == ["c.jfif"]
    assert capsys.readouterr().err == f"{photos}: {LINE}\n"
    for name in ("a.DNG", "b.dng"):
        (photos / name).unlink()
    find_photos([photos], tmp_path / "out")
    assert capsys.readouterr().err == ""


def test_pack(photos, tmp_path, capsys):
    assert pretrain(["--images", str(photos), "--pack", str(tmp_path / "a.tar")]) == 0
    assert capsys.readouterr().err.splitlines() == [LINE]


def test_train(photos, tmp_path, monkeypatch):
    """Up to the first use of the photos."""

    class Enough(Exception):
        pass

    def stop(*_):
        raise Enough

    monkeypatch.setattr(pipeline, "draw_scenes", stop)
    job = pipeline.TrainJob(get_preset("micro"), tmp_path / "run")
    with pytest.raises(Enough):
        pipeline.run_phases(job, list_images(photos), None, torch.device("cpu"), World())
    lines = (tmp_path / "run/log.txt").read_text().splitlines()
    assert [line.partition("  ")[2] for line in lines if "files skipped" in line] == [LINE]
