# SPDX-License-Identifier: Apache-2.0
"""Scores a phase on photos with ground truth: segment each, write the predictions, measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sohes.config import Phase
from sohes.data.coco import LabelSet, write_coco
from sohes.data.images import read_image
from sohes.engine.console import Progress
from sohes.engine.run import Run, RunError
from sohes.evaluation import evaluate_files
from sohes.forest import Forest


@dataclass(frozen=True)
class GroundTruth:
    """A COCO JSON file and the folder its file names are relative to."""

    annotations: Path
    image_root: Path


def find_ground_truth(path: Path) -> GroundTruth:
    """`path` is a folder with annotations.json (images in images/ or beside it), or the JSON file itself.

    Raises RunError naming what was looked for.
    """
    annotations = path / "annotations.json" if path.is_dir() else path
    if not annotations.is_file():
        raise RunError(f"--eval {path}: no ground truth there (expected {annotations}, COCO JSON)")
    beside = annotations.parent
    return GroundTruth(annotations, beside / "images" if (beside / "images").is_dir() else beside)


def score_phase(
    run: Run, phase: Phase, segment: Callable[[Tensor], Forest], ground_truth: GroundTruth
) -> dict[str, float]:
    """Apply `segment` (uint8 [3, H, W] -> Forest) to every photo; writes predictions/<phase>.json and results.json."""
    labels = LabelSet(ground_truth.annotations, ground_truth.image_root)
    images, annotations = [], []
    with Progress(len(labels), title=f"evaluate {phase}", unit="images", log=run.log) as progress:
        for labelled in labels:
            image = read_image(labelled.path)
            forest = segment(image)
            height, width = image.shape[-2:]
            name = labelled.path.relative_to(ground_truth.image_root).as_posix()
            images.append({"id": labelled.image_id, "file_name": name, "width": width, "height": height})
            annotations += forest.to_coco(labelled.image_id, first_id=len(annotations) + 1)
            progress.update(1)
    write_coco(run.predictions(phase), images, annotations)
    scores = evaluate_files(ground_truth.annotations, run.predictions(phase))
    run.add_result(phase, scores)
    return scores
