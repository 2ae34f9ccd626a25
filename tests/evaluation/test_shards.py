# SPDX-License-Identifier: Apache-2.0
"""Metrics do not depend on interruption and resuming, threads and processes."""

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from sohes.evaluate import main
from sohes.evaluation import BadInput, Plan, files, score
from sohes.evaluation.protocol import Protocol
from sohes.evaluation.shards import Shards, StoredEvaluation
from sohes.utils.distributed import World

ROOT = Path(__file__).parents[2]


@pytest.fixture
def set_of_images(tools, tmp_path):
    """(ground truth, predictions) of 30 images with annotators and a hierarchy in some."""
    rng = np.random.default_rng(8)
    truth, results = tools.coco_files([tools.random_image(rng) for _ in range(30)], with_boxes=True)
    for record in truth["annotations"]:
        record["annotator"] = ["ann", 2][record["id"] % 2]
        if record["image_id"] % 3 == 0:
            record["parent"] = None
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "pred.json").write_text(json.dumps(results))
    return tmp_path / "gt.json", tmp_path / "pred.json"


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for iou_type, evaluator in ours.items():
        expected = theirs[iou_type]
        np.testing.assert_equal(evaluator.summary(), expected.summary())
        np.testing.assert_equal(evaluator.per_image(), expected.per_image())
        np.testing.assert_equal(evaluator.granularity(), expected.granularity())


@pytest.mark.parametrize("class_aware", [False, True])
def test_threads_shards_and_resuming_change_nothing(set_of_images, tmp_path, monkeypatch, class_aware):
    monkeypatch.setattr(files, "IMAGES_PER_SHARD", 7)
    options = {"iou_types": ("mask", "box"), "class_aware": class_aware}
    whole = score(*set_of_images, Plan(**options, threads=1))
    assert_same(score(*set_of_images, Plan(**options, threads=3)), whole)
    folder = tmp_path / "shards"
    seen = []
    plan = Plan(**options, threads=2, shards=folder)
    assert_same(score(*set_of_images, plan, lambda done, total: seen.append((done, total))), whole)
    assert seen == [(done, 30) for done in range(1, 31)]
    assert len(list(folder.glob("shard-*.npz"))) == 5
    (folder / "shard-000002.npz").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert_same(score(*set_of_images, plan), whole)
    after = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after.keys() - before.keys() == {folder / "shard-000002.npz"}
    assert {path for path, time in before.items() if after[path] != time} == {folder / "shard-000002.rows"}


def test_each_rank_scores_its_share_and_the_first_merges(set_of_images, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "IMAGES_PER_SHARD", 4)
    whole = score(*set_of_images, Plan())
    parts = [Plan(shards=tmp_path / "shards", world=World(rank, 3, rank)) for rank in (2, 1, 0)]
    written = []
    for plan in parts:  # sequentially, rank 0 last: no process has to wait
        evaluators = score(*set_of_images, plan)
        written.append(len(list((tmp_path / "shards").glob("shard-*.npz"))))
    assert written == [2, 5, 8]
    assert_same(evaluators, whole)
    with pytest.raises(BadInput, match="several processes need a shared folder of shards"):
        score(*set_of_images, Plan(world=World(0, 2)))


def test_shards_of_something_else_are_refused(set_of_images, tmp_path):
    gt, pred = set_of_images
    folder = tmp_path / "shards"
    score(gt, pred, Plan(shards=folder))
    described = re.escape(str(folder / "evaluation.json"))
    with pytest.raises(BadInput, match=rf"holds shards of another evaluation \(protocols differ, see {described}\)"):
        score(gt, pred, Plan(max_dets=(5,), shards=folder))
    pred.write_text(pred.read_text() + " ")
    with pytest.raises(BadInput, match=r"another evaluation \(pred differ, see .*: delete it or choose another"):
        score(gt, pred, Plan(shards=folder))


def test_a_damaged_shard_is_named_and_half_a_shard_is_scored_again(set_of_images, tmp_path, capsys):
    folder = tmp_path / "shards"
    given = ["--gt", str(set_of_images[0]), "--pred", str(set_of_images[1]), "--shards", str(folder)]
    assert main(given) == 0
    expected = capsys.readouterr().out
    (folder / "shard-000000.rows").unlink()
    assert main(given) == 0
    assert capsys.readouterr().out == expected
    whole = (folder / "shard-000000.npz").read_bytes()
    for content in (b"", b"x", whole[: len(whole) // 2]):
        (folder / "shard-000000.npz").write_bytes(content)
        with pytest.raises(SystemExit):
            main(given)
        assert f"{folder}/shard-000000.npz is damaged: delete it, to have" in capsys.readouterr().err


def test_an_empty_shard_is_kept(tmp_path):
    """E.g. of images without annotations, in a file with annotators."""
    shards = Shards(tmp_path, {"mask": Protocol()})
    shards.write(0, [])
    assert shards.has(0)
    stored = StoredEvaluation(shards, 1, "mask")
    assert (list(stored.records()), stored.runs(None)) == ([], [])
    assert stored.summary()["num_images"] == 0


def test_what_is_kept_for_the_time_of_an_evaluation_goes_with_it(set_of_images, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scored = score(*set_of_images, Plan())
    (folder,) = tmp_path.glob("sohes-evaluate-*")
    assert len(list(folder.glob("shard-*"))) == 2
    del scored
    gc.collect()
    assert not folder.exists()


KILLED_IN_THE_MIDDLE = """
import os, signal
from sohes.evaluation import files
files.IMAGES_PER_SHARD = 4
write = files.Shards.write
def write_some(self, number, scored):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, number, scored)
files.Shards.write = write_some
from sohes.evaluate import main
main()
"""
SMALL_SHARDS = "from sohes.evaluation import files; files.IMAGES_PER_SHARD = 4; from sohes.evaluate import main; main()"


def start(program, arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_command_goes_on_in_two_processes(set_of_images, tmp_path, capsys):
    gt, pred = map(str, set_of_images)
    folder = tmp_path / "shards"
    given = ["--gt", gt, "--pred", pred, "--iou-type", "both"]
    assert main([*given, "--out", str(tmp_path / "a.json"), "--per-image", str(tmp_path / "a.csv")]) == 0
    expected = capsys.readouterr().out
    given += ["--shards", str(folder), "--out", str(tmp_path / "b.json"), "--per-image", str(tmp_path / "b.csv")]

    killed = start(KILLED_IN_THE_MIDDLE, given)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    kept = {path: path.read_bytes() for path in folder.glob("shard-*.npz")}
    assert len(kept) == 3
    assert not (tmp_path / "b.json").exists()

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [start(SMALL_SHARDS, given, RANK=str(rank), LOCAL_RANK=str(rank), **meeting) for rank in (0, 1)]
    outputs = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert outputs[0][0] == expected
    assert outputs[1][0] == ""
    for name in ("json", "csv"):
        assert (tmp_path / f"b.{name}").read_bytes() == (tmp_path / f"a.{name}").read_bytes()
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert len(list(folder.glob("shard-*.npz"))) == 8


def test_processes_without_a_folder_are_refused(set_of_images, monkeypatch, capsys):
    monkeypatch.setattr("sohes.evaluate.find_world", lambda: World(0, 2))
    monkeypatch.setattr("sohes.evaluate.process_group", lambda *_: nullcontext())
    with pytest.raises(SystemExit):
        main(["--gt", str(set_of_images[0]), "--pred", str(set_of_images[1])])
    assert "2 processes need --shards, a folder that all can reach" in capsys.readouterr().err
