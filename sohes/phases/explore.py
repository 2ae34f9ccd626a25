# SPDX-License-Identifier: Apache-2.0
"""Phase 1, self-exploration: pseudo-labels of all photos, by clustering. Nothing is learned here.

How one photo is labelled is in `sohes/labels/pipeline.py`. Here: which process labels which shard, threads, progress,
waiting for other processes, and the manifest.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sohes.configs.run import ExploreConfig
from sohes.data.sources import ImageList, list_images
from sohes.labels.features import FeatureExtractor, build_extractor
from sohes.labels.label_files import is_failed, label_files
from sohes.labels.refine import USES_HUMAN_LABELS, load_cascadepsp
from sohes.labels.shards import LabelledFile, Row, Shards
from sohes.phases.explore_summary import ExploreSummary
from sohes.utils.console import Progress, RunLog
from sohes.utils.devices import pick_device
from sohes.utils.distributed import World
from sohes.utils.errors import SohesError
from sohes.utils.estimate import format_seconds
from sohes.utils.workers import available_cpus, map_ahead, worker_pool

TIMES_FILE = "explore.jsonl"

# Failures beyond this number are only in the manifest, not in the log.
_MAX_LOGGED_FAILURES = 20
# Waiting for the shards of other processes: how often to look, and when to log it first and again.
_POLL_SECONDS, _FIRST_LOG_SECONDS, _LOG_INTERVAL_SECONDS = 0.5, 5.0, 60.0


class LabelsTimeout(SohesError, TimeoutError):
    """Other processes have written no labels for `explore.patience` seconds."""


def prepare(config: ExploreConfig, device: torch.device) -> FeatureExtractor:
    """The feature extractor. Also loads the refiner's network, so that a missing one fails before the run starts.

    Raises WeightsError, ConfigError, RefinerMissing.
    """
    extractor = build_extractor(config, device)
    if config.refiner in USES_HUMAN_LABELS:
        load_cascadepsp(device)
    return extractor


def explore(
    images: ImageList | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: Path,
    config: ExploreConfig,
    *,
    extractor: FeatureExtractor | None = None,
    world: World = World(),  # noqa: B008  (frozen)
    wait: bool = True,
    overwrite: bool = False,
    log: RunLog | None = None,
) -> ExploreSummary:
    """Label every image: writes shards of COCO JSON and manifest.jsonl into `out`/labels.

    Finished shards of an earlier call are kept, so that a killed run continues where it stopped, with the same bytes
    as a run without interruption. Shards hold the images with labels; the manifest has every image, as `ok`, `empty`
    or `failed: reason`. `out`/explore.jsonl gets a line per shard with its time, in total and per stage.

    Of several processes, each labels the shards whose index modulo `world.size` is its rank. They share only the
    folder, and may run one after another. The process that finds all shards finished writes the manifest. Labels
    depend neither on the number of processes nor of threads.

    Args:
        images: a list, or the sources that `list_images` takes.
        extractor: from `prepare`. Default: built here, on the current GPU if there is one.
        wait: wait for the shards of other processes. If False, `is_complete` of the summary says if they are finished.
        overwrite: delete existing labels, also those of other settings; for a single process only.
        log: for progress and the summary. Default: they are printed.

    Raises:
        LabelsError: the folder has labels of other settings or images.
        TooManyFailures: more than `config.max_failures` images failed, or all. Raised after everything is written.
        DataError, WeightsError, RefinerMissing: before anything is written.
        LabelsTimeout: the other processes have written nothing for `config.patience` seconds.
    """
    if overwrite and world.size > 1:
        raise ValueError("explore: overwrite needs a single process, others may have written labels already")
    started, log = time.perf_counter(), log or RunLog()
    if not isinstance(images, ImageList):
        images = list_images(images)
    extractor = extractor or prepare(config, pick_device())
    if config.refiner in USES_HUMAN_LABELS:
        log(f"explore: refiner {config.refiner} was trained on human masks: these labels USE HUMAN LABELS")

    shards = Shards(Path(out) / "labels", images, config)
    own = range(world.rank, len(shards), world.size)
    shards.prepare(own, alone=world.size == 1, everything=overwrite)
    finished = {index: rows for index in own if (rows := shards.read(index)) is not None}
    summary = ExploreSummary(num_resumed=sum(len(rows) for rows in finished.values()))
    for rows in finished.values():
        summary.count(rows)
    todo = [index for index in own if index not in finished]

    _label_shards(shards, todo, images, extractor, config, summary, world, log)
    if wait and world.size > 1:
        _wait_for_shards(shards, config.patience, log)
    if not shards.missing():
        shards.write_manifest()
        summary = ExploreSummary(num_resumed=summary.num_resumed, is_complete=True, seconds=summary.seconds)
        summary.count(shards.rows())
    summary.elapsed = time.perf_counter() - started
    log(f"explore: {summary}")
    summary.check_failures(config.max_failures, shards.manifest)
    return summary


def _label_shards(
    shards: Shards,
    todo: Sequence[int],
    images: ImageList,
    extractor: FeatureExtractor,
    config: ExploreConfig,
    summary: ExploreSummary,
    world: World,
    log: RunLog,
) -> None:
    """Label and write the shards `todo`, and count them. Threads start on the next shard while one is written."""
    # A batch never crosses the border of a shard, so that a shard does not depend on others.
    batches = [
        shards.places(index)[start : start + config.batch_size]
        for index in todo
        for start in range(0, len(shards.places(index)), config.batch_size)
    ]
    num_cpus = max(1, available_cpus() // world.local_size)
    num_workers = config.num_workers or num_cpus
    total = summary.num_images + sum(len(batch) for batch in batches)
    with (
        Progress(total, "explore", "images", initial=summary.num_images, log=log, enabled=world.is_main) as progress,
        worker_pool(num_workers, max(1, num_cpus // num_workers), "explore") as pool,
    ):
        results = map_ahead(pool, lambda batch: label_files(images, batch, extractor, config), batches, 2 * num_workers)
        num_failed = summary.num_failed
        for index in todo:
            start = time.perf_counter()
            files: list[LabelledFile] = []
            while len(files) < len(shards.places(index)):
                for file in next(results):
                    files.append(file)
                    progress.update(1)
                    if is_failed(file.row):
                        num_failed += 1
                        _log_failure(file.row, num_failed, log)
            shards.write(index, files)
            summary.count(file.row for file in files)
            seconds = _sum_seconds(files)
            for stage, value in seconds.items():
                summary.seconds[stage] = summary.seconds.get(stage, 0.0) + value
            times = {
                "shard": index,
                "images": len(files),
                "rank": world.rank,
                "threads": num_workers,
                "elapsed": round(time.perf_counter() - start, 4),
                "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
            }
            with (shards.folder.parent / TIMES_FILE).open("a", encoding="ascii") as lines:
                lines.write(json.dumps(times) + "\n")


def _sum_seconds(files: Sequence[LabelledFile]) -> dict[str, float]:
    """Seconds per stage, summed over images; stages that took no time are left out."""
    seconds: dict[str, float] = {}
    for file in files:
        for stage, value in file.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + value
    return {stage: value for stage, value in seconds.items() if value > 0}


def _log_failure(row: Row, number: int, log: RunLog) -> None:
    if number <= _MAX_LOGGED_FAILURES:
        log(f"explore: {row['file_name']}: {row['status']}")
    if number == _MAX_LOGGED_FAILURES:
        log("explore: further failures are only listed in the manifest")


def _wait_for_shards(shards: Shards, patience: float, log: RunLog) -> None:
    """Return when every shard exists. Raises LabelsTimeout if no new one appears for `patience` seconds."""
    missing = shards.missing()
    last_change = time.monotonic()
    next_log = last_change + _FIRST_LOG_SECONDS
    while missing:
        now = time.monotonic()
        if now - last_change > patience:
            raise LabelsTimeout(
                f"{len(missing)} shards of other processes are missing, the first {shards.path(missing[0])}; no new "
                f"one for {format_seconds(patience)} (explore.patience): run again, finished shards are kept"
            )
        if now > next_log:
            log(f"explore: waiting for {len(missing)} shards of other processes, the first {missing[0]}")
            next_log = now + _LOG_INTERVAL_SECONDS
        time.sleep(_POLL_SECONDS)
        still_missing = [index for index in missing if not shards.path(index).exists()]
        if len(still_missing) < len(missing):
            missing, last_change = still_missing, time.monotonic()
