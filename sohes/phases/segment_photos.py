# SPDX-License-Identifier: Apache-2.0
"""The whole job of `sohes.segment`: find the photos, load the weights, segment each photo, write the results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sohes.configs.presets import photo_labels
from sohes.data.images import UnreadableImage, read_image
from sohes.labels.features import build_extractor
from sohes.labels.pipeline import label_image
from sohes.models.segmenter import Segmenter
from sohes.phases.segment_inputs import find_photos
from sohes.phases.segment_output import Format, Output, Photo, SegmentedPhoto, encode_masks
from sohes.structures.forest import Forest
from sohes.utils.console import Progress, RunLog
from sohes.utils.errors import EXIT_FAILURES
from sohes.utils.streams import say
from sohes.utils.workers import available_cpus, map_ahead, worker_pool

Segment = Callable[[Tensor], Forest]
"""A photo, uint8 [3, H, W] -> its masks."""

MODEL_WORKERS = 8
"""Most photos that a model segments at the same time: each needs memory for the model's largest tensors."""


@dataclass(frozen=True)
class SegmentJob:
    """Photos to segment. The fields are options of `sohes.segment` and are described there."""

    photos: tuple[Path, ...]
    out: Path
    weights: str | None = None
    format: Format = "coco"
    depth: int | None = None
    min_score: float | None = None
    max_masks: int | None = None
    tile: int | None = None
    max_failures: int = 0


def segment_photos(job: SegmentJob, device: torch.device) -> int:
    """Segment every photo and write the results. Returns the exit code, 0 or 1.

    Raises SohesError for wrong paths or weights, before any photo is read.
    """
    photos = find_photos(job.photos, job.out)
    output = Output(job.out, job.format)
    segment = load_segmenter(job, device)
    log = RunLog()
    if job.weights is None:
        log("no --weights: photos are clustered, as in phase 1, without a model")
    num_masks = 0
    num_cpus = available_cpus()
    num_workers = min(num_cpus, len(photos), MODEL_WORKERS if job.weights else num_cpus)
    with (
        output,
        Progress(len(photos), "segment", "photos", log=log) as progress,
        worker_pool(num_workers, max(1, num_cpus // num_workers) if job.weights else 1, "segment") as pool,
    ):
        for result in map_ahead(pool, lambda photo: segment_photo(photo, segment, job), photos, 2 * num_workers):
            row = output.add(result)
            if result.reason:
                log(f"{result.photo.path}: failed: {result.reason}")
            num_masks += row.get("num_masks", 0)
            progress.update(1, masks=num_masks)
    counts = output.counts
    say(f"{len(photos)} photos: {', '.join(f'{n} {status}' for status, n in counts.items())}; see {job.out}")
    return EXIT_FAILURES if counts["failed"] > job.max_failures or counts["failed"] == len(photos) else 0


def load_segmenter(job: SegmentJob, device: torch.device) -> Segment:
    """The function photo -> forest, with the weights and limits of the job. Threads may share it.

    Raises WeightsError.
    """
    if job.weights is None:
        return build_clustering(job, device)
    segmenter = Segmenter.from_pretrained(job.weights, device=device)
    infer = segmenter.infer_config
    infer = replace(
        infer,
        min_score=infer.min_score if job.min_score is None else job.min_score,
        max_masks=infer.max_masks if job.max_masks is None else job.max_masks,
        tile=infer.tile if job.tile is None else job.tile,
    )
    limited = Segmenter(segmenter.model, segmenter.model_config, infer)
    # One photo at a time on a GPU, so that its memory does not grow with the number of threads.
    lock: AbstractContextManager[object] = threading.Lock() if device.type == "cuda" else nullcontext()

    def segment(image: Tensor) -> Forest:
        with lock:
            return limited([image])[0]

    return segment


def build_clustering(job: SegmentJob, device: torch.device) -> Segment:
    """The function photo -> forest of phase 1, with the backbone of the package and the limits of the job."""
    config = photo_labels()
    if job.max_masks is not None:
        config = replace(config, max_masks=job.max_masks)
    extractor = build_extractor(config, device)

    def segment(image: Tensor) -> Forest:
        forest = label_image(image, extractor, config)
        return forest if job.min_score is None else forest.select(forest.scores >= job.min_score)

    return segment


def segment_photo(photo: Photo, segment: Segment, job: SegmentJob) -> SegmentedPhoto:
    """The masks of one photo, encoded for their files; or why it failed. Runs in a thread."""
    started = time.perf_counter()
    try:
        image = read_image(photo.path)
        forest = segment(image)
    except UnreadableImage as error:
        return SegmentedPhoto(photo, error.reason)
    except torch.OutOfMemoryError:
        return SegmentedPhoto(photo, f"out of GPU memory at {image.shape[2]}x{image.shape[1]} pixels")
    if job.depth is not None:
        forest = forest.select(forest.levels <= job.depth)
    return encode_masks(photo, image, forest, job.format, started)
