# SPDX-License-Identifier: Apache-2.0
"""Annotations refer to stored pixels: all readers of annotated photos ignore EXIF orientation."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from sohes.data.images import read_image
from sohes.data.sources import list_images
from sohes.evaluation.datasets.registry import open_dataset
from sohes.evaluation.datasets.sa1b import in_list
from sohes.phases.scoring import find_ground_truth
from sohes.report.compare_runs import photo_reader

HEIGHT, WIDTH = 6, 8
PIXELS = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_all_readers_of_ground_truth_agree(tmp_path, orientation, suffix):
    (tmp_path / "images").mkdir()
    name = f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(PIXELS).save(tmp_path / "images" / name, exif=exif(orientation), **options)
    record = {"id": 1, "file_name": name, "height": HEIGHT, "width": WIDTH}
    truth = tmp_path / "annotations.json"
    truth.write_text(json.dumps({"images": [record], "annotations": [], "categories": []}))
    dataset = open_dataset("plain", tmp_path)
    read = (find_ground_truth(tmp_path).read_photo, dataset.read_image, photo_reader(truth))
    for reader in read:
        np.testing.assert_array_equal(reader(name).permute(1, 2, 0).numpy(), PIXELS)
    upright = list_images(tmp_path / "images").read(0)
    assert upright.shape == (3, *((WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH)))
    assert (upright.shape == (3, HEIGHT, WIDTH) and (upright == dataset.read_image(name)).all()) == (orientation == 1)


def test_photos_in_the_tars_of_sa1b_too(tmp_path):
    number = next(number for number in range(1, 60) if in_list(number))
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "png", exif=exif(6))
    with tarfile.open(tmp_path / "sa_000000.tar", "w") as tar:
        for name, content in ((f"sa_{number}.jpg", stream.getvalue()), (f"sa_{number}.json", b"{}")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (key,) = open_dataset("sa1b", tmp_path).keys()
    stored = open_dataset("sa1b", tmp_path).read_image(key)
    np.testing.assert_array_equal(stored.permute(1, 2, 0).numpy(), PIXELS)
    assert read_image(tmp_path / key).shape == (3, WIDTH, HEIGHT)
