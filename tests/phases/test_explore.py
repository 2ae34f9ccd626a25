# SPDX-License-Identifier: Apache-2.0
import itertools
import json
import os
import pkgutil
import signal
import tarfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image

from sohes.configs.run import ExploreConfig
from sohes.data.coco import LabelSet
from sohes.data.errors import DataNotFoundError
from sohes.data.images import read_image
from sohes.data.names import Names
from sohes.data.scenes import draw_scene
from sohes.data.sources import list_images
from sohes.labels.features import build_extractor
from sohes.labels.pipeline import label_image, label_images
from sohes.labels.shards import LabelsError, read_shard_info
from sohes.phases.explore import LabelsTimeout, explore
from sohes.phases.explore_summary import TooManyFailures
from sohes.structures.masks import mask_iou
from sohes.utils.console import RunLog
from sohes.utils.distributed import World

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
    assert summary.is_complete
    stages = {"decode", "features", "merge", "masks", "forest", "encode"}
    assert set(summary.seconds) == stages
    times = [json.loads(line) for line in (out / "explore.jsonl").read_text().splitlines()]
    assert [(row["shard"], row["images"]) for row in times] == [(0, 2), (1, 2), (2, 2), (3, 1)]
    for stage in stages:
        assert sum(row["seconds"].get(stage, 0) for row in times) == pytest.approx(summary.seconds[stage], abs=1e-3)


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
    label(photos, tmp_path, replace(CONFIG, num_workers=1))
    assert contents(tmp_path) == contents(out)  # threads change nothing
    folder = tmp_path / "labels"
    kept = folder / "shard-00000.json"
    before = kept.stat().st_mtime_ns
    # What a kill leaves: a shard missing, half of it under another name, and no manifest.
    (folder / "shard-00002.json").unlink()
    (folder / ".shard-00002.json.host.123.tmp").write_text('{"info"')
    (folder / "manifest.jsonl").unlink()
    summary = label(photos, tmp_path)
    assert contents(tmp_path) == contents(out)
    assert kept.stat().st_mtime_ns == before
    assert summary.num_resumed == 5
    assert summary.num_images == 7


@pytest.mark.parametrize("batch_size", [2, 4, 100])
def test_photos_of_a_batch_are_labelled_as_alone(photos, tmp_path, batch_size):
    alone = replace(CONFIG, shard_size=4, theta_small=0.05, local_side=64)
    label(photos, tmp_path / "alone", alone)
    label(photos, tmp_path / "batches", replace(alone, batch_size=batch_size))
    for name in ("shard-00000.json", "shard-00001.json"):
        contents = [json.loads((tmp_path / out / "labels" / name).read_text()) for out in ("alone", "batches")]
        for content in contents:
            del content["info"]  # differs with the settings
        assert contents[0] == contents[1]
    manifests = [(tmp_path / out / "labels/manifest.jsonl").read_text() for out in ("alone", "batches")]
    assert manifests[0] == manifests[1]


def test_a_vit_sees_the_crops_of_a_batch_at_once():
    config = ExploreConfig(
        features="vit_tiny_patch16_224", weights="random", side=64, theta_small=0.3, local_side=32, max_masks=10
    )
    torch.manual_seed(0)
    extractor = build_extractor(config)
    sizes = []
    forward = extractor.vit.forward_intermediates
    extractor.vit.forward_intermediates = lambda x, **kwargs: sizes.append(tuple(x.shape)) or forward(x, **kwargs)
    images = [draw_scene(seed, 64).image for seed in range(3)]
    together = label_images(images, extractor, config)
    assert sizes[0] == (3, 3, 64, 64)
    num_crops = sum(size[0] for size in sizes[1:])
    assert len(sizes) - 1 == len(set(sizes[1:])) < num_crops  # crops of one grid are one forward pass
    for image, forest in zip(images, together, strict=True):
        alone = label_image(image, extractor, config)
        assert len(alone) == len(forest)
        assert mask_iou(alone.masks, forest.masks).max(1).values.min() > 0.99  # rounding may differ with the batch


# Where a process is killed: at the n-th call of a function, before or after it is done.
KILLS = {
    "in the middle of an image": ("sohes.labels.label_files.label_images", 3, "before"),
    "before the first byte of a shard": ("sohes.labels.shards.write_coco", 2, "before"),
    "within a shard": ("sohes.data.coco._write_lines", 3, "before"),
    "before a shard gets its name": ("os.replace", 2, "before"),
    "after a shard got its name": ("os.replace", 2, "after"),
    "before the manifest": ("sohes.labels.shards.Shards.write_manifest", 1, "before"),
    "within the manifest": ("sohes.labels.shards.Shards.rows", 1, "before"),
    "before the manifest gets its name": ("os.replace", 5, "before"),
    "after everything": ("os.replace", 5, "after"),
}


@pytest.mark.parametrize("where", KILLS)
def test_killed_anywhere_a_rerun_gives_equal_bytes(photos, labelled, tmp_path, where):
    name, count, when = KILLS[where]

    def die_at(function):
        calls = itertools.count(1)

        def wrapped(*args, **kwargs):
            is_last = next(calls) == count
            if is_last and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    def run():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(name, die_at(pkgutil.resolve_name(name)))
            label(photos, tmp_path)

    assert in_child(run) == -signal.SIGKILL
    unfinished = contents(tmp_path)
    label(photos, tmp_path, replace(CONFIG, num_workers=3))
    assert contents(tmp_path) == contents(labelled[1])
    assert all(contents(tmp_path)[name] == before for name, before in unfinished.items() if name[0] != ".")


def in_child(work):
    """Exit code of a forked process that does `work`, the signal's negative number where one killed it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class TestSeveralProcesses:
    @pytest.mark.parametrize("size", [2, 3, 9])
    def test_array_jobs_one_after_the_other_give_equal_bytes(self, photos, labelled, tmp_path, size):
        """Independent jobs, in any order; the last one finds all shards done and writes the manifest."""
        for rank in reversed(range(size)):
            summary = label(photos, tmp_path, world=World(rank, size), wait=False)
            assert summary.is_complete == (rank == 0)
            assert (tmp_path / "labels/manifest.jsonl").is_file() == (rank == 0)
        assert contents(tmp_path) == contents(labelled[1])
        assert (summary.num_images, summary.num_failed) == (7, 1)

    def test_at_the_same_time_all_wait_for_all(self, photos, labelled, tmp_path):
        def rank(number):
            return lambda: check(label(photos, tmp_path, world=World(number, 2)))

        def check(summary):
            assert summary.is_complete
            assert summary.num_images == 7

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(in_child, [rank(0), rank(1)])) == [0, 0]
        assert contents(tmp_path) == contents(labelled[1])

    def test_another_number_of_processes_resumes(self, photos, labelled, tmp_path):
        label(photos, tmp_path, world=World(1, 3), wait=False)
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "labels").glob("shard-*")}
        assert [path.name for path in before] == ["shard-00001.json"]
        # What a killed process left of a shard that is now another's.
        (tmp_path / "labels/.shard-00002.json.host.9.tmp").write_text("{")
        for number in range(2):
            label(photos, tmp_path, world=World(number, 2), wait=False)
        assert contents(tmp_path) == contents(labelled[1])
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())

    def test_one_leaves_what_another_is_writing(self, photos, tmp_path):
        (tmp_path / "labels").mkdir()
        theirs = tmp_path / "labels/.shard-00001.json.host.9.tmp"
        theirs.write_text("{")
        label(photos, tmp_path, world=World(0, 2), wait=False)
        assert theirs.is_file()

    def test_waiting_ends(self, photos, tmp_path):
        impatient = replace(CONFIG, patience=0.0)
        with pytest.raises(LabelsTimeout, match=r"^2 shards of other processes are missing, the first .*shard-00001"):
            label(photos, tmp_path, impatient, world=World(0, 2))

    def test_waiting_is_logged(self, photos, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("sohes.phases.explore._FIRST_LOG_SECONDS", 0.2)
        with pytest.raises(LabelsTimeout):
            explore(photos, tmp_path, replace(CONFIG, patience=1.2), world=World(0, 2))
        logged = [line for line in capsys.readouterr().err.splitlines() if "waiting for" in line]
        assert logged == ["explore: waiting for 2 shards of other processes, the first 1"]

    def test_failures_count_over_all(self, photos, labelled, tmp_path):
        strict = replace(CONFIG, max_failures=0)
        (damaged,) = [rank for rank in range(2) if "damaged" in json.dumps(rows_of(labelled[1], rank))]
        label(photos, tmp_path, strict, world=World(1 - damaged, 2), wait=False)
        with pytest.raises(TooManyFailures, match=r"^1 of 7 images"):
            label(photos, tmp_path, strict, world=World(damaged, 2), wait=False)
        with pytest.raises(TooManyFailures, match=r"^1 of 7 images"):  # those who have waited fail as well
            label(photos, tmp_path, strict, world=World(1 - damaged, 2))

    def test_overwriting_is_for_one(self, photos, tmp_path):
        with pytest.raises(ValueError, match="overwrite needs a single process"):
            label(photos, tmp_path, world=World(0, 2), overwrite=True)


def rows_of(out, rank):
    """The manifest rows of the shards of one of two ranks."""
    return [read_shard_info(path)["manifest"] for path in sorted((out / "labels").glob("shard-*"))[rank::2]]


def test_fewer_images_than_labels_are_refused(photos, tmp_path):
    label(photos, tmp_path)
    few = list_images(photos)
    few.names = Names([few.names.encoded(i) for i in range(4)])
    with pytest.raises(LabelsError, match=r"shard-00002.json was made with other settings or from other images"):
        label(few, tmp_path)


def test_archives_are_labelled_like_folders(photos, labelled, tmp_path):
    """A folder and a tar of the same photos give the same labels; a damaged tar is a failure beside what it holds."""
    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(source / "a.tar", "w") as tar:
        for path in list_images(photos):
            tar.add(path, path.relative_to(photos).as_posix())
    (source / "b.tar").write_bytes((source / "a.tar").read_bytes()[:5000])
    summary = label(source, tmp_path / "out")
    assert (summary.num_images, summary.num_failed) == (9, 3)
    ours, theirs = (LabelSet(out / "labels", root) for out, root in ((tmp_path / "out", source), (labelled[1], photos)))
    assert [image.path for image in ours] == [source / "a.tar" / image.path.relative_to(photos) for image in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.forest.masks.words, b.forest.masks.words)
        assert torch.equal(read_image(a.path), read_image(b.path))
    last = json.loads((tmp_path / "out/labels/manifest.jsonl").read_text().splitlines()[-1])
    assert last["file_name"] == "b.tar"
    assert last["status"] == "failed: cut short: a member goes on past its 5000 bytes"


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
    label(list_images(tmp_path / "list.txt", root=photos), tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/labels/manifest.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["plain.png", "scene ü 0.png"]


def test_no_images_writes_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataNotFoundError):
        label(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()
