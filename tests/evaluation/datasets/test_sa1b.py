# SPDX-License-Identifier: Apache-2.0
"""SA-1B from generated tars: the list, reading in place, and damage."""

import io
import json
import logging
import tarfile

import numpy as np
import pytest
from PIL import Image

from sohes.baselines.run import true_masks
from sohes.evaluation.datasets.convert import convert_dataset
from sohes.evaluation.datasets.sa1b import Sa1b, in_list

LISTED = [number for number in range(1, 60) if in_list(number)]
MASK = np.zeros((6, 8), bool)
MASK[1:3, 2:7] = True


def photo(number):
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 0, 0)).save(stream, "png")
    return stream.getvalue()


def text(number):
    counts = [0, *np.flatnonzero(np.diff(np.append(0, MASK.T.ravel()))), MASK.size]
    rle = {"size": [6, 8], "counts": np.diff(counts).tolist()}
    record = {"id": 900 + number, "segmentation": rle, "area": 10, "bbox": [2, 1, 5, 2], "predicted_iou": 0.9}
    image = {"image_id": number, "width": 8, "height": 6, "file_name": f"sa_{number}.jpg"}
    return json.dumps({"image": image, "annotations": [record]}).encode()


def write_tar(path, numbers, prefix="./", changes=()):
    """`changes`: other contents by member name."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for name, content in ((f"sa_{number}.jpg", photo(number)), (f"sa_{number}.json", text(number))):
                content = dict(changes).get(name, content)
                member = tarfile.TarInfo(prefix + name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def test_the_list_is_fixed():
    assert LISTED == [5, 13, 25, 32, 53]
    share = sum(map(in_list, range(1, 11_187)))
    assert share == 1031


def test_tars_are_read_in_place(tmp_path):
    write_tar(tmp_path / "sa_000000.tar", range(1, 60))
    dataset = Sa1b(tmp_path)
    assert dataset.keys() == [f"sa_000000.tar/sa_{number}.jpg" for number in LISTED]
    sample = dataset.read(dataset.keys()[1])
    assert sample.image == {"id": 13, "file_name": "sa_000000.tar/sa_13.jpg", "height": 6, "width": 8}
    (masks,) = true_masks(sample)
    np.testing.assert_array_equal(masks.to_dense()[0].numpy(), MASK)
    assert dataset.read_image(sample.image["file_name"])[:, 0, 0].tolist() == [13, 0, 0]
    assert dataset.problems == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sa_000000.tar"]


def test_damage_is_reported_and_skipped(tmp_path, caplog):
    whole = write_tar(tmp_path / "sa_000000.tar", LISTED, prefix="")
    cut = write_tar(tmp_path / "sa_000001.tar", LISTED)
    cut.write_bytes(cut.read_bytes()[: 512 * 5])  # the first photo with its text, and no more
    (tmp_path / "sa_000002.tar").write_bytes(b"not a tar" * 100)
    dataset = Sa1b(tmp_path)
    with caplog.at_level(logging.WARNING):
        convert_dataset(dataset, tmp_path / "out" / "gt.json")
    keys = dataset.keys()
    assert len(json.loads((tmp_path / "out" / "gt.json").read_text())["images"]) == len(keys)
    assert [key.split("/")[0] for key in keys].count(whole.name) == len(LISTED)
    messages = " ".join(caplog.messages)
    assert f"{cut}: damaged" in messages
    assert "sa_000002.tar: damaged" in messages
    assert len(keys) < 2 * len(LISTED)


def test_a_damaged_text_costs_one_photo(tmp_path):
    changes = {"sa_5.json": b'{"image": {"image_id": 5}}', "sa_13.json": b"{"}
    write_tar(tmp_path / "sa_000000.tar", LISTED, changes=changes)
    dataset = Sa1b(tmp_path)
    samples = list(map(dataset.read, dataset.keys()))
    assert [sample is None for sample in samples] == [True, True, False, False, False]
    assert len(dataset.problems) == 2
    assert "sa_000000.tar/sa_5.jpg: left out, its JSON is damaged" in dataset.problems[0]


@pytest.mark.parametrize("name", ["sa_000000.tar/sa_1.jpg", "elsewhere.jpg"])
def test_photos_outside_the_list_are_not_read(tmp_path, name):
    write_tar(tmp_path / "sa_000000.tar", [1, *LISTED])
    with pytest.raises(ValueError, match="no such photo in the tar"):
        Sa1b(tmp_path).read_image(name)
