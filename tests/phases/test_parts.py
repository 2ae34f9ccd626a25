# SPDX-License-Identifier: Apache-2.0
"""Jobs that make parts of the same labels at the same time, and share only the folder."""

import multiprocessing
import os
import shutil
import sys

import pytest
from micro import MICRO

from sohes.configs.run import ExploreConfig
from sohes.data import scenes
from sohes.data.scenes import write_scenes
from sohes.phases.explore import explore
from sohes.phases.scoring import find_ground_truth, score_phase
from sohes.train import main
from sohes.utils.distributed import World


def files(run):
    """Every file but logs and times, by its path in the run."""
    timed = ("log.txt", "explore.jsonl", "env.json", "report.html", "results.json", "scoring.jsonl")
    found = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.endswith(timed)}


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_all_parts_of_a_new_run_may_start_at_once(tmp_path):
    """Each job draws the scenes and labels its part; the job that finds all parts finished scores and reports."""
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3)
    job = [*MICRO, "--scenes.num-train", "6", "--phases", "explore", "--explore.shard-size", "1"]

    def part(number):
        os.dup2(os.open(tmp_path / f"said-{number}", os.O_WRONLY | os.O_CREAT), 2)
        together.wait()
        sys.exit(main([*job, "--out", str(tmp_path / "run"), "--part", str(number), "3"]))

    processes = [context.Process(target=part, args=(number,)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    said = [(tmp_path / f"said-{number}").read_text() for number in range(3)]
    assert [process.exitcode for process in processes] == [0, 0, 0], said
    assert (tmp_path / "run" / "report.html").is_file()
    assert main([*job, "--out", str(tmp_path / "whole")]) == 0
    ours, theirs = files(tmp_path / "run"), files(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    # A shard says where its photos lie.
    assert all(name.startswith("labels/shard-") for name in ours if ours[name] != theirs[name])
    assert len([name for name in ours if name.startswith("labels/shard-")]) == 6


def test_scenes_that_another_drew_meanwhile_are_kept(tmp_path, monkeypatch):
    """The other job may be reading them, so its folder stays."""
    folder, build, theirs = tmp_path / "scenes", scenes._build_scenes, []

    def slow(building, request):
        build(building, request)
        shutil.copytree(building, folder)
        theirs.append(folder.stat().st_ino)

    monkeypatch.setattr(scenes, "_build_scenes", slow)
    assert write_scenes(folder, 2, 64, 5) == folder
    assert theirs == [folder.stat().st_ino]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scenes"]


def test_scenes_of_another_request_are_replaced(tmp_path):
    write_scenes(tmp_path / "scenes", 2, 64, 5)
    write_scenes(tmp_path / "scenes", 3, 64, 5)
    assert len(list((tmp_path / "scenes" / "images").iterdir())) == 3


def test_a_part_that_starts_late_leaves_the_manifest_that_another_writes(tmp_path, monkeypatch):
    """The other job has finished its last shard just after this one checked."""
    photos = write_scenes(tmp_path / "scenes", 2, 64, 5) / "images"
    theirs = tmp_path / "labels" / ".manifest.jsonl.host.9.tmp"
    theirs.parent.mkdir()
    theirs.write_text("{")
    settings = ExploreConfig(shard_size=1)
    assert not explore(photos, tmp_path, settings, world=World(0, 2), wait=False).is_complete
    assert theirs.is_file()
    assert explore(photos, tmp_path, settings).is_complete
    assert not theirs.exists()


def test_two_jobs_may_score_one_run_at_the_same_time(tmp_path):
    """The second starts, and ends, while the first is at its second photo."""
    from sohes.engine.run import Run
    from sohes.labels.features import build_extractor
    from sohes.labels.pipeline import label_image

    settings = ExploreConfig()
    truth = find_ground_truth(write_scenes(tmp_path / "scenes", 3, 64, 5))
    run, extractor, seen = Run(tmp_path / "run"), build_extractor(settings), []

    def segment(image):
        seen.append(1)
        if len(seen) == 2:
            results.append(score_phase(run, "explore", segment, truth, World(), 1))
        return label_image(image, extractor, settings)

    results = []
    results.append(score_phase(run, "explore", segment, truth, World(), 0))
    assert len(seen) == 6
    assert results[0]["AR@1000"] == results[1]["AR@1000"] > 0
    assert [path.name for path in (tmp_path / "run" / "predictions").iterdir()] == ["explore.json"]
