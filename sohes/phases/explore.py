# SPDX-License-Identifier: Apache-2.0
"""Phase 1, self-exploration: photos in, forests of pseudo-labels out. Nothing is learned here."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sohes.configs.run import ExploreConfig
from sohes.data.images import UnreadableImage
from sohes.data.sources import ImageList, list_images
from sohes.labels.features import FeatureExtractor, build_extractor
from sohes.labels.pipeline import StageClock, label_images
from sohes.labels.refine import USES_HUMAN_LABELS, load_cascadepsp
from sohes.labels.shards import LabelledFile, Row, Shards
from sohes.utils.console import Progress, RunLog, format_seconds
from sohes.utils.devices import pick_device
from sohes.utils.distributed import World
from sohes.utils.errors import EXIT_FAILURES, SohesError
from sohes.utils.workers import available_cpus, map_ahead, worker_pool

TIMES_FILE = "explore.jsonl"

# Failures that are told as they happen; the manifest has them all.
_TOLD_FAILURES = 20
# Seconds between two looks for the labels of other processes, until the first line about it, and between later ones.
_LOOK, _TELL_FIRST, _TELL = 0.5, 5.0, 60.0


class TooManyFailures(SohesError, RuntimeError):
    """More images could not be used than the settings allow, or none at all. Everything else is written."""

    exit_code = EXIT_FAILURES


class LabelsTimeout(SohesError, TimeoutError):
    """Other processes of this job have not written their labels for too long."""


@dataclass
class ExploreSummary:
    """What is in the labels, or as long as other processes are at work, what this one has made.

    is_complete: every image is accounted for, and the manifest is written. seconds: per stage, added up over threads,
    of this call only; elapsed: from its start to its end.
    """

    num_images: int = 0
    num_ok: int = 0
    num_empty: int = 0
    num_failed: int = 0
    num_masks: int = 0
    num_resumed: int = 0
    first_failure: str = ""
    is_complete: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    elapsed: float = 0.0

    def count(self, rows: Iterable[Row]) -> None:
        """Add the images of some manifest rows."""
        for row in rows:
            self.num_images += 1
            self.num_ok += row["status"] == "ok"
            self.num_empty += row["status"] == "empty"
            self.num_masks += row["masks"]
            if row["status"].startswith("failed"):
                self.num_failed += 1
                self.first_failure = self.first_failure or f"{row['file_name']}, {row['status']}"

    def __str__(self) -> str:
        counts = f"{self.num_ok} ok, {self.num_empty} empty, {self.num_failed} failed, {self.num_masks} masks"
        total = sum(self.seconds.values())
        shares = (f"{name} {format_seconds(s)} ({100 * s / total:.0f}%)" for name, s in self.seconds.items() if total)
        stages = ", ".join(shares)
        return f"{self.num_images} images: {counts}" + (f"; time over all threads: {stages}" if stages else "")


def prepare(config: ExploreConfig, device: torch.device) -> FeatureExtractor:
    """The extractor, and the refiner's network in memory: now, so that neither fails after hours.

    Raises WeightsError, ConfigError, RefinerMissing.
    """
    extractor = build_extractor(config, device)
    if config.refiner in USES_HUMAN_LABELS:
        load_cascadepsp(device)
    return extractor


def explore(
    images: ImageList | str | os.PathLike | Sequence[str | os.PathLike],
    out: Path,
    config: ExploreConfig,
    *,
    extractor: FeatureExtractor | None = None,
    world: World = World(),  # noqa: B008  (frozen)
    wait: bool = True,
    overwrite: bool = False,
    log: RunLog | None = None,
) -> ExploreSummary:
    """Label every image, into `out`/labels: shards of COCO JSON and manifest.jsonl.

    Finished shards of an earlier call are kept, so that a killed run goes on where it stopped and ends with the same
    bytes. Images with labels are in the shards; every image is in the manifest, as `ok`, `empty` or `failed: reason`.
    `out`/explore.jsonl gets a line per shard: how long it took, and of that every stage.

    Of several processes each makes the shards whose number modulo `world.size` is its rank; they share nothing but the
    folder, and need not run at the same time. Whichever finds all shards done writes the manifest. Labels depend
    neither on the number of processes nor of threads.

    Args:
        images: a list, or the sources that `list_images` takes.
        extractor: what `prepare` gave. Default: it is made here, on the current GPU if there is one.
        wait: for the shards of other processes; without it, the summary says whether they are done.
        overwrite: make everything anew instead of refusing labels of other settings; in a world of one.
        log: takes progress and the summary; None prints them.

    Raises:
        LabelsError: there are labels of other settings or images.
        TooManyFailures: after everything is written. Also where no image at all could be used, whatever the settings.
        DataError, WeightsError, RefinerMissing: no such images, weights or plug-in; before anything is written.
        LabelsTimeout: the other processes have written nothing for `config.patience` seconds.
    """
    if overwrite and world.size > 1:
        raise ValueError("explore: overwrite needs a world of one, other processes may have written already")
    started, log = time.perf_counter(), log or RunLog()
    if not isinstance(images, ImageList):
        images = list_images(images)
    extractor = extractor or prepare(config, pick_device())
    if config.refiner in USES_HUMAN_LABELS:
        log(f"explore: refiner {config.refiner} was trained on human masks: these labels USE HUMAN LABELS")
    shards = Shards(Path(out) / "labels", images, config)
    mine = range(world.rank, len(shards), world.size)
    shards.prepare(mine, alone=world.size == 1, everything=overwrite)
    done = {index: rows for index in mine if (rows := shards.read(index)) is not None}
    summary = ExploreSummary(num_resumed=sum(len(rows) for rows in done.values()))
    for rows in done.values():
        summary.count(rows)
    todo = [index for index in mine if index not in done]

    _label_shards(shards, todo, images, extractor, config, summary, world, log)
    if wait and world.size > 1:
        _wait_for(shards, config.patience, log)
    if not shards.missing():
        shards.write_manifest()
        complete = ExploreSummary(num_resumed=summary.num_resumed, is_complete=True, seconds=summary.seconds)
        complete.count(shards.rows())
        summary = complete
    summary.elapsed = time.perf_counter() - started
    log(f"explore: {summary}")
    if summary.is_complete and summary.num_failed == summary.num_images:
        raise TooManyFailures(
            f"none of {summary.num_images} images could be used; the first: {summary.first_failure}; all are in "
            f"{shards.manifest}"
        )
    if summary.num_failed > config.max_failures:
        raise TooManyFailures(
            f"{summary.num_failed} of {summary.num_images} images could not be used, more than max_failures = "
            f"{config.max_failures}; the first: {summary.first_failure}; all are in {shards.manifest}"
        )
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
    """Make the shards `todo`, and count them. Threads go on with the next shard while one is being written."""
    # Batches end with their shard, so that it does not depend on others.
    batches = [
        shards.places(index)[start : start + config.batch_size]
        for index in todo
        for start in range(0, len(shards.places(index)), config.batch_size)
    ]
    num_cpus = max(1, available_cpus() // world.local_size)
    num_workers = config.num_workers or num_cpus
    total = summary.num_images + sum(len(batch) for batch in batches)
    times = Path(shards.folder).parent / TIMES_FILE
    with (
        Progress(total, "explore", "images", initial=summary.num_images, log=log, enabled=world.is_main) as progress,
        worker_pool(num_workers, max(1, num_cpus // num_workers), "explore") as pool,
    ):
        ready = map_ahead(pool, lambda batch: label_places(images, batch, extractor, config), batches, 2 * num_workers)
        for index in todo:
            start, made = time.perf_counter(), []
            while len(made) < len(shards.places(index)):
                for file in next(ready):
                    made.append(file)
                    progress.update(1)
                    if is_failed(file):
                        _tell_failure(file.row, summary.num_failed + sum(is_failed(f) for f in made), log)
            shards.write(index, made)
            summary.count(file.row for file in made)
            seconds = dict(sum((Counter(file.seconds) for file in made), Counter()))
            for stage, value in seconds.items():
                summary.seconds[stage] = summary.seconds.get(stage, 0.0) + value
            row = {"shard": index, "images": len(made), "rank": world.rank, "threads": num_workers}
            row["elapsed"] = round(time.perf_counter() - start, 4)
            row["seconds"] = {stage: round(value, 4) for stage, value in seconds.items()}
            with times.open("a", encoding="ascii") as file:
                file.write(json.dumps(row) + "\n")


def label_places(
    images: ImageList, places: Sequence[int], extractor: FeatureExtractor, config: ExploreConfig
) -> list[LabelledFile]:
    """Read and label some images of a list together; the id of each is its place, from 1 on."""
    clock, pixels, reasons = StageClock(), {}, {}
    with clock("decode"):
        for place in places:
            try:
                pixels[place] = images.read(place)
            except UnreadableImage as error:
                reasons[place] = error.reason
    forests = dict(zip(pixels, label_images(list(pixels.values()), extractor, config, clock), strict=True))
    files = []
    for place in places:
        image_id, name = place + 1, images.names[place]
        row = {"file_name": name, "image_id": image_id, "masks": 0, "status": "empty"}
        record, annotations = None, []
        if place in reasons:
            row["status"] = f"failed: {reasons[place]}"
        elif len(forests[place]):
            row |= {"masks": len(forests[place]), "status": "ok"}
            height, width = pixels[place].shape[1:]
            record = {"id": image_id, "file_name": name, "width": width, "height": height}
            with clock("encode"):
                # Ids are the same whichever images come before: each image has its own range.
                annotations = forests[place].to_coco(image_id, first_id=(image_id - 1) * config.max_masks + 1)
        files.append(LabelledFile(row, record, annotations))
    return [replace(file, seconds={s: t / len(files) for s, t in clock.seconds.items()}) for file in files]


def is_failed(file: LabelledFile) -> bool:
    return file.row["status"].startswith("failed")


def _tell_failure(row: Row, number: int, log: RunLog) -> None:
    if number <= _TOLD_FAILURES:
        log(f"explore: {row['file_name']}: {row['status']}")
    if number == _TOLD_FAILURES:
        log("explore: further failures are told in the manifest only")


def _wait_for(shards: Shards, patience: float, log: RunLog) -> None:
    """Return when every shard is there. Raises LabelsTimeout when none has come for `patience` seconds."""
    missing = shards.missing()
    last_came = time.monotonic()
    tell_at = last_came + _TELL_FIRST
    while missing:
        now = time.monotonic()
        if now - last_came > patience:
            raise LabelsTimeout(
                f"{len(missing)} shards of other processes are missing, the first {shards.path(missing[0])}; none came "
                f"for {format_seconds(patience)} (explore.patience): run again, finished shards are kept"
            )
        if now > tell_at:
            log(f"explore: waiting for {len(missing)} shards of other processes, the first {missing[0]}")
            tell_at = now + _TELL
        time.sleep(_LOOK)
        still = [index for index in missing if not shards.path(index).exists()]
        if len(still) < len(missing):
            missing, last_came = still, time.monotonic()
