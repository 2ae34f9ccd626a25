# SPDX-License-Identifier: Apache-2.0
"""Phase 1, self-exploration: photos in, forests of pseudo-labels out. Nothing is learned here."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from torch import Tensor

from sohes.config import ExploreConfig
from sohes.data.images import UnreadableImage, list_images, read_image
from sohes.engine.console import Progress, RunLog, format_seconds
from sohes.errors import SohesError
from sohes.forest import Forest
from sohes.labels.candidates import find_candidates
from sohes.labels.draw import draw_candidates, make_forest
from sohes.labels.features import FeatureExtractor, build_extractor
from sohes.labels.shards import (
    LabelledFile,
    clear_labels,
    format_row,
    labels_digest,
    read_finished,
    shard_path,
    write_manifest,
    write_shard,
)
from sohes.ops.merge_regions import merge_regions


class TooManyFailures(SohesError, RuntimeError):
    """More images could not be used than the settings allow. Everything else is written."""


@dataclass
class ExploreSummary:
    """What a call of `explore` did. seconds: per stage, added up over threads, of this call only."""

    num_images: int = 0
    num_ok: int = 0
    num_empty: int = 0
    num_failed: int = 0
    num_masks: int = 0
    num_resumed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def count(self, rows: list[dict]) -> None:
        """Add the images of some manifest rows."""
        for row in rows:
            self.num_images += 1
            self.num_ok += row["status"] == "ok"
            self.num_empty += row["status"] == "empty"
            self.num_failed += row["status"].startswith("failed")
            self.num_masks += row["masks"]

    def __str__(self) -> str:
        counts = f"{self.num_ok} ok, {self.num_empty} empty, {self.num_failed} failed, {self.num_masks} masks"
        stages = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in self.seconds.items())
        return f"{self.num_images} images: {counts}" + (f"; time {stages}" if stages else "")


class StageClock:
    """Adds up the time spent in each stage, from any number of threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        elapsed = time.perf_counter() - start
        with self._lock:
            self.seconds[stage] += elapsed


def label_image(
    image: Tensor, extractor: FeatureExtractor, config: ExploreConfig, clock: StageClock | None = None
) -> Forest:
    """The pseudo-labels of one photo, uint8 [3, H, W], as a forest: best masks first, scores in (0, 1]."""
    clock = clock or StageClock()
    with clock("features"):
        view = extractor.view(image)
        (features,) = extractor([view])  # [h, w, C]
    with clock("merge"):
        (tree,) = merge_regions(features)
        candidates = find_candidates(tree, view, config)
    with clock("masks"):
        masks, scores = draw_candidates(tree, candidates, view.photo_patches(), config)
    with clock("forest"):
        return make_forest(masks, scores, config)


def explore(
    images_root: Path,
    out: Path,
    config: ExploreConfig,
    *,
    image_root: Path | None = None,
    overwrite: bool = False,
    log: RunLog | None = None,
    num_threads: int | None = None,
) -> ExploreSummary:
    """Label every image of a folder or list, into `out`/labels: shards of COCO JSON and manifest.jsonl.

    Finished shards of an earlier call are kept, so that a killed run goes on where it stopped and ends with the same
    bytes. Images with labels are in the shards; every image is in the manifest, as `ok`, `empty` or `failed: reason`.

    Args:
        images_root: what `list_images` takes: a folder, one image, or a .txt list.
        image_root: folder that file names in the labels are relative to; the folder itself, or the list's, if None.
        overwrite: make everything anew instead of refusing labels of other settings.
        log: takes progress and the summary; None prints them.
        num_threads: images worked on at a time; None means one per CPU.

    Raises:
        LabelsError: there are labels of other settings or images. TooManyFailures: after everything is written.
        DataError, WeightsError: no such images or weights; before anything is written.
    """
    images_root, log = Path(images_root), log or RunLog()
    paths = list_images(images_root)
    root = Path(image_root) if image_root is not None else images_root if images_root.is_dir() else images_root.parent
    names = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    extractor = build_extractor(config)
    folder = Path(out) / "labels"
    folder.mkdir(parents=True, exist_ok=True)
    clear_labels(folder, everything=overwrite)

    starts = range(0, len(paths), config.shard_size)
    digests = [labels_digest(config, names[start : start + config.shard_size]) for start in starts]
    finished = [read_finished(shard_path(folder, i), digest) for i, digest in enumerate(digests)]
    rows = [row for shard in finished for row in shard or []]
    summary, clock = ExploreSummary(num_resumed=len(rows)), StageClock()
    summary.count(rows)

    def label_file(index: int) -> LabelledFile:
        return label_path(paths[index], names[index], index + 1, extractor, config, clock)

    with (
        Progress(len(paths), "explore", "images", initial=len(rows), log=log) as progress,
        ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool,
        ManifestWriter(folder / "manifest.jsonl") as manifest,
    ):
        for index, start in enumerate(starts):
            if finished[index] is None:
                files = []
                for file in pool.map(label_file, range(start, min(start + config.shard_size, len(paths)))):
                    files.append(file)
                    progress.update(1)
                write_shard(shard_path(folder, index), files, str(root), digests[index], config)
                finished[index] = [file.row for file in files]
                summary.count(finished[index])
            manifest.add(finished[index])
    summary.seconds = dict(clock.seconds)
    log(f"explore: {summary}")
    if summary.num_failed > config.max_failures:
        first = next(row for shard in finished for row in shard if row["status"].startswith("failed"))
        raise TooManyFailures(
            f"{summary.num_failed} of {summary.num_images} images could not be used, more than max_failures = "
            f"{config.max_failures}; the first: {first['file_name']}, {first['status']}; all are in "
            f"{folder / 'manifest.jsonl'}"
        )
    return summary


def label_path(
    path: Path, name: str, image_id: int, extractor: FeatureExtractor, config: ExploreConfig, clock: StageClock
) -> LabelledFile:
    """Read and label one image file."""
    row = {"file_name": name, "image_id": image_id, "masks": 0, "status": "empty"}
    try:
        with clock("decode"):
            image = read_image(path)
    except UnreadableImage as error:
        return LabelledFile({**row, "status": f"failed: {error.reason}"}, None, [])
    forest = label_image(image, extractor, config, clock)
    if len(forest) == 0:
        return LabelledFile(row, None, [])
    with clock("encode"):
        # Ids are the same whichever images come before: each image has its own range.
        annotations = forest.to_coco(image_id, first_id=(image_id - 1) * config.max_masks + 1)
    record = {"id": image_id, "file_name": name, "width": image.shape[2], "height": image.shape[1]}
    return LabelledFile({**row, "status": "ok", "masks": len(forest)}, record, annotations)


class ManifestWriter:
    """Writes rows as shards finish. What an earlier call wrote is written again, from its shards."""

    def __init__(self, path: Path) -> None:
        write_manifest(path, [])
        self._file = path.open("a", encoding="ascii")

    def add(self, rows: list[dict]) -> None:
        self._file.writelines(format_row(row) for row in rows)
        self._file.flush()

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
