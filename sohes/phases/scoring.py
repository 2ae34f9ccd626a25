# SPDX-License-Identifier: Apache-2.0
"""Scores of a phase on photos with ground truth: segment each photo, write the predictions, compute the metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sohes.configs.run import Config, Phase
from sohes.data.coco import write_coco
from sohes.data.images import read_annotated
from sohes.engine.run import Run, RunError
from sohes.evaluation import score_files
from sohes.evaluation.coco_index import CocoIndex, ImageId
from sohes.evaluation.datasets.base import DataSet
from sohes.evaluation.datasets.registry import open_dataset
from sohes.evaluation.tables import none_for_nan
from sohes.structures.forest import Forest
from sohes.utils.console import Progress
from sohes.utils.distributed import World, barrier, on_main


@dataclass(frozen=True)
class GroundTruth:
    """A COCO JSON file and the folder that its file names are relative to. dataset: the source of a conversion."""

    annotations: Path
    image_root: Path
    dataset: DataSet | None = None

    def read_photo(self, name: str) -> Tensor:
        """The photo as stored, uint8 [3, H, W], without rotation by EXIF: masks are annotated on these pixels."""
        return read_annotated(self.image_root / name) if self.dataset is None else self.dataset.read_image(name)


def find_ground_truth(path: Path) -> GroundTruth:
    """The ground truth in `path`: a folder with annotations.json, or the JSON file. Photos are in images/ or beside it.

    Raises RunError with the path that was expected.
    """
    annotations = path / "annotations.json" if path.is_dir() else path
    if not annotations.is_file():
        raise RunError(f"--eval {path}: no ground truth there (expected {annotations}, COCO JSON)")
    beside = annotations.parent
    return GroundTruth(annotations, beside / "images" if (beside / "images").is_dir() else beside)


def open_eval_dataset(config: Config) -> DataSet | None:
    """The data set of `eval_dataset` in the folder `eval`, None if none is named. Raises RunError or LayoutError."""
    if config.eval_dataset is None:
        return None
    if config.eval is None:
        raise RunError(f"--eval-dataset {config.eval_dataset} goes with --eval, the folder it lies in")
    return open_dataset(config.eval_dataset, config.eval)


def score_phase(
    run: Run, phase: Phase, segment: Callable[[Tensor], Forest], ground_truth: GroundTruth, world: World, job: int = 0
) -> dict[str, float]:
    """The scores of `segment` (uint8 [3, H, W] -> Forest); writes predictions/<phase>.json and results.json.

    Each process segments its share of the photos into a JSON-lines file; the main process joins the files in the order
    of the photos and computes the metrics. Returns the scores in all processes.

    job: number of this job, >= 0, different for each of several jobs that may score the same run at the same time.
    """
    started = time.monotonic()
    photos = list_photos(ground_truth)
    share = world.share(len(photos))
    own_file = _part_path(run, phase, job, world.rank)
    own_file.parent.mkdir(parents=True, exist_ok=True)
    with (
        own_file.open("w", encoding="ascii") as lines,
        Progress(len(share), f"evaluate {phase}", "images", log=run.log, enabled=world.is_main) as progress,
    ):
        for index in share:
            image_id, name = photos[index]
            image = ground_truth.read_photo(name)
            forest = segment(image)
            height, width = image.shape[-2:]
            record = {"id": image_id, "file_name": name, "width": width, "height": height}
            lines.write(json.dumps({"image": record, "annotations": forest.to_coco(image_id)}) + "\n")
            progress.update(1)
    barrier()

    def join_and_score() -> dict[str, float]:
        parts = [_part_path(run, phase, job, rank) for rank in range(world.size)]
        images = (record["image"] for record in _records(parts))
        write_coco(run.predictions(phase), images, _renumbered(parts))
        for part in parts:
            part.unlink()
        evaluator = score_files(ground_truth.annotations, run.predictions(phase))
        scores = evaluator.summary()
        run.add_result(phase, none_for_nan(scores | {"granularity": evaluator.granularity()}))
        run.add_scoring_time(phase, len(photos), time.monotonic() - started)
        return scores

    return on_main(join_and_score)


def list_photos(ground_truth: GroundTruth) -> list[tuple[ImageId, str]]:
    """(id, file name) of every image, in the order of the file; masks are not read.

    Raises RunError if there are no images, or one has no file name.
    """
    images = CocoIndex(ground_truth.annotations).images or {}
    names = {image_id: record.get("file_name") for image_id, record in images.items()}
    photos = [(image_id, name) for image_id, name in names.items() if isinstance(name, str)]
    if not photos or len(photos) < len(names):
        raise RunError(f"{ground_truth.annotations}: expected COCO JSON with images that have a file_name")
    return photos


def _part_path(run: Run, phase: Phase, job: int, rank: int) -> Path:
    return run.predictions(phase).with_suffix(f".part-{job}-{rank}.jsonl")


def _records(parts: list[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        with part.open(encoding="ascii") as lines:
            yield from map(json.loads, lines)


def _renumbered(parts: list[Path]) -> Iterator[dict[str, Any]]:
    """The annotations of all parts, with ids and parents, which start at 1 in each image, made unique."""
    done = 0
    for record in _records(parts):
        for annotation in record["annotations"]:
            parent = annotation["parent"]
            yield annotation | {"id": annotation["id"] + done, "parent": None if parent is None else parent + done}
        done += len(record["annotations"])
