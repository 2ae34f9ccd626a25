# SPDX-License-Identifier: Apache-2.0
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from sohes.config import ExploreConfig
from sohes.data.coco import LabelSet
from sohes.data.errors import DataNotFoundError
from sohes.data.images import read_image
from sohes.data.scenes import draw_scene
from sohes.engine.console import RunLog
from sohes.labels.features import build_extractor
from sohes.labels.shards import LabelsError
from sohes.masks import mask_iou
from sohes.phases.explore import TooManyFailures, explore, label_image

QUIET = RunLog(console=False)
CONFIG = ExploreConfig(shard_size=2, max_masks=20)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five scenes, nested and oddly named, a damaged file, and a constant image in which there is nothing to find."""
    root = tmp_path_factory.mktemp("photos")
    (root / "nested folder").mkdir()
    for seed in range(5):
        pixels = draw_scene(seed, 48).image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / ("nested folder" if seed % 2 else ".") / f"scene ü {seed}.png")
    (root / "damaged.jpg").write_bytes(b"\xff\xd8 not a photo")
    Image.new("RGB", (48, 48), (90, 90, 90)).save(root / "plain.png")
    return root


def contents(out):
    return {path.name: path.read_bytes() for path in sorted((out / "labels").iterdir())}


def label(photos, out, config=CONFIG, **kwargs):
    return explore(photos, out, config, log=QUIET, **kwargs)


@pytest.fixture(scope="module")
def labelled(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("labels")
    return label(photos, out), out


def test_every_image_is_accounted_for(photos, labelled):
    summary, out = labelled
    rows = [json.loads(line) for line in (out / "labels/manifest.jsonl").read_text().splitlines()]
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))
    assert sorted(row["file_name"] for row in rows) == names
    status = {row["file_name"]: row["status"] for row in rows}
    assert status["damaged.jpg"].startswith("failed: ")
    assert sum(value == "ok" for value in status.values()) == summary.num_ok >= 5
    assert summary.num_failed == 1
    assert summary.num_ok + summary.num_empty + summary.num_failed == summary.num_images == 7
    assert set(summary.seconds) == {"decode", "features", "merge", "masks", "forest", "encode"}


def test_labels_read_back_as_forests(photos, labelled):
    _, out = labelled
    labels = LabelSet(out / "labels", photos)
    extractor = build_extractor(CONFIG)
    ids = []
    for shard in sorted((out / "labels").glob("shard-*.json")):
        content = json.loads(shard.read_text())
        ids += [annotation["id"] for annotation in content["annotations"]]
        assert content["info"]["root"] == str(photos)
        assert content["info"]["human_labels"] is False
    assert len(ids) == len(set(ids)) > 0
    for labelled_image in labels:
        assert labelled_image.path.is_file()
        forest = labelled_image.forest
        assert ((forest.scores > 0) & (forest.scores <= 1)).all()
        assert (forest.masks.areas >= CONFIG.min_pixels).all()
        has_parent = forest.parents >= 0
        assert (forest.masks.areas[has_parent] < forest.masks.areas[forest.parents[has_parent]]).all()
    first = labels[0]
    again = label_image(read_image(first.path), extractor, CONFIG)
    assert torch.equal(again.masks.words, first.forest.masks.words)
    assert torch.equal(again.parents, first.forest.parents)


def test_rerun_keeps_finished_shards_and_makes_equal_bytes(photos, labelled, tmp_path):
    _, out = labelled
    label(photos, tmp_path, num_threads=1)
    assert contents(tmp_path) == contents(out)  # threads change nothing
    folder = tmp_path / "labels"
    kept = folder / "shard-00000.json"
    before = kept.stat().st_mtime_ns
    # What a kill leaves: the last shards missing, one half-written, and a manifest that is behind.
    (folder / "shard-00002.json").unlink()
    (folder / ".shard-00002.json.123.tmp").write_text('{"info"')
    (folder / "manifest.jsonl").write_text("")
    summary = label(photos, tmp_path)
    assert contents(tmp_path) == contents(out)
    assert kept.stat().st_mtime_ns == before
    assert summary.num_resumed == 5
    assert summary.num_images == 7


def test_killed_process_can_be_rerun(photos, labelled, tmp_path):
    _, out = labelled
    program = (
        "import sys, time, sohes.phases.explore as phase\n"
        "from pathlib import Path\n"
        "from sohes.config import ExploreConfig\n"
        "write = phase.write_shard\n"
        "def write_slowly(*args):\n"
        "    write(*args)\n"
        "    time.sleep(60)\n"
        "phase.write_shard = write_slowly\n"
        "phase.explore(Path(sys.argv[1]), Path(sys.argv[2]), ExploreConfig(shard_size=2, max_masks=20))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(photos), str(tmp_path)], stderr=subprocess.DEVNULL, env=os.environ
    )
    first = tmp_path / "labels/shard-00000.json"
    deadline = time.monotonic() + 60
    while not first.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert first.is_file()
    assert not (tmp_path / "labels/shard-00001.json").exists()
    label(photos, tmp_path)
    assert contents(tmp_path) == contents(out)


def test_other_settings_or_images_are_refused(photos, labelled, tmp_path):
    label(photos, tmp_path)
    other = ExploreConfig(shard_size=2, max_masks=5)
    with pytest.raises(LabelsError, match="made with other settings or from other images"):
        label(photos, tmp_path, other)
    assert contents(tmp_path) == contents(labelled[1])
    label(photos, tmp_path, other, overwrite=True)
    assert all(len(image.forest) <= 5 for image in LabelSet(tmp_path / "labels", photos))


def test_too_many_failures_end_with_an_error_after_everything_is_written(photos, labelled, tmp_path):
    strict = ExploreConfig(shard_size=2, max_masks=20, max_failures=0)
    with pytest.raises(
        TooManyFailures, match=r"^1 of 7 images could not be used, more than max_failures = 0; the first"
    ):
        label(photos, tmp_path, strict)
    manifest = "manifest.jsonl"
    assert contents(tmp_path)[manifest] == contents(labelled[1])[manifest]


def test_a_list_of_images(photos, tmp_path):
    (tmp_path / "list.txt").write_text(f"{photos}/plain.png\n{photos}/scene ü 0.png\n")
    label(tmp_path / "list.txt", tmp_path / "out", image_root=photos)
    rows = [json.loads(line) for line in (tmp_path / "out/labels/manifest.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["plain.png", "scene ü 0.png"]


def test_no_images_writes_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataNotFoundError):
        label(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (17, 5)])
@pytest.mark.parametrize("constant", [True, False])
def test_any_size(size, constant):
    image = torch.full((3, *size), 60, dtype=torch.uint8)
    if not constant:
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    forest = label_image(image, build_extractor(CONFIG), CONFIG)
    assert forest.masks.size == size
    assert len(forest) <= CONFIG.max_masks


def test_vit_features_end_to_end():
    config = ExploreConfig(features="vit_tiny_patch16_224", weights="random", side=96, max_masks=10)
    scene = draw_scene(1, 96)
    forest = label_image(scene.image, build_extractor(config), config)
    assert forest.masks.size == (96, 96)
    assert len(forest) > 0


def test_labels_find_scenes():
    config = ExploreConfig()
    extractor = build_extractor(config)
    best = []
    for seed in range(4):
        scene = draw_scene(seed, 96)
        forest = label_image(scene.image, extractor, config)
        best.append(mask_iou(scene.forest.masks, forest.masks).max(1).values)
    assert (torch.cat(best) > 0.5).float().mean() > 0.4
