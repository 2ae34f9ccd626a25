# SPDX-License-Identifier: Apache-2.0
"""Options of `sohes.evaluate`. The labels in brackets are explained in `sohes/configs/run.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from sohes.configs.ranges import Range, above, at_least, between
from sohes.configs.run import BaselineName, DataSetName


@dataclass
class BaselineConfig:
    """Settings of the classical segmenters, which serve as lower bounds."""

    felzenszwalb_scales: Annotated[tuple[float, ...], above(0)] = (50, 100, 200, 400, 800, 1600)
    """Scales of Felzenszwalb and Huttenlocher's method; a larger scale gives larger segments. [ours]"""
    felzenszwalb_sigma: Annotated[float, at_least(0)] = 0.8
    """Its smoothing in pixels. [scikit-image, and Felzenszwalb and Huttenlocher 2004]"""
    felzenszwalb_min_size: Annotated[int, at_least(1)] = 50
    """Its smallest segment in pixels. [ours]"""
    slic_segments: Annotated[int, at_least(1)] = 1000
    """Approximate number of SLIC superpixels, the leaves of the colour tree. [ours]"""
    slic_compactness: Annotated[float, above(0)] = 10.0
    """Weight of place against colour in SLIC. [scikit-image]"""
    box_grid_sides: Annotated[tuple[int, ...], at_least(1)] = (1, 2, 3, 4, 5, 6, 8, 10)
    """The photo is divided into k x k boxes for each k, and once more shifted by half a box. [ours]"""
    min_pixels: Annotated[int, at_least(0)] = 100
    """Smaller masks are dropped. [sibling: phase 1 does at 480 x 480]"""
    nms_iou: Annotated[float, between(0, 1)] = 0.9
    """Of two masks with a higher IoU only the larger one is kept. [sibling]"""
    max_masks: Annotated[int, at_least(1)] = 1000
    """Masks kept per image, largest first. [paper: AR@1000]"""


@dataclass
class CompareConfig:
    """The comparison of several evaluated runs."""

    resamples: Annotated[int, between(1, 100000)] = 2000
    """Bootstrap resamples of the photos. [ours]"""
    level: Annotated[float, Range(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals. [ours]"""
    seed: Annotated[int, at_least(0)] = 0
    """Seed of the resamples. [ours]"""
    photos: Annotated[int, at_least(0)] = 3
    """Photos shown of each kind (gains, losses, best, worst). [ours]"""
    misses: Annotated[int, at_least(0)] = 6
    """True masks shown that no run finds, per size. [ours]"""


@dataclass
class EvaluateConfig:
    """Score predicted masks against true ones: class-agnostic average recall and precision as COCO counts them
    (equal to pycocotools), and how well the hierarchy agrees; docs/evaluation.md has the formulas. Prints percentages,
    n/a where a metric is not defined. Under torchrun or srun the processes share the images, see --shards."""

    pred: Path | None = None
    """Predictions with scores: COCO JSON, or a bare list of COCO results. With --baseline they are written here; not
    needed for other-annotators."""
    gt: Path | None = None
    """Ground truth, COCO JSON: RLE or polygons; crowds, annotators and parents are understood."""
    dataset: DataSetName | None = None
    """Instead of --gt: the data set whose official layout is under --root; see docs/datasets.md. It is converted
    once, into a file beside --pred. Predictions of photos that are not in it are ignored."""
    root: Path | None = None
    """Folder of --dataset."""
    num_images: Annotated[int | None, at_least(1)] = None
    """Use only this many images of --dataset, evenly spaced. Default: all."""
    baseline: BaselineName | None = None
    """Predict with a classical segmenter, or with the best nodes of phase 1's merge tree (an oracle that sees the
    truth: the upper bound of phase 1), and score the result. other-annotators is the human line: each annotator of a
    photo is scored against the segments of all others; it needs annotators, in --gt or --dataset, and no photos."""
    explore: Path | None = None
    """Run folder with the phase 1 settings that tree-oracle uses. Default: phase 1's own defaults."""
    compare: tuple[Path, ...] = ()
    """Instead of one file of predictions: several files or run folders, compared in a page with confidence intervals
    and pictures. If no ground truth is given, that of the first run folder is used."""
    bootstrap: CompareConfig = field(default_factory=CompareConfig)
    out: Path | None = None
    """Write the metrics here as JSON: fractions from 0 to 1, null where not defined, and the granularity curve. With
    --compare: the page, by default compare.html."""
    per_image: Path | None = None
    """Write a table with one line per image here: JSON lines if the name ends in .jsonl, else CSV."""
    max_dets: Annotated[tuple[int, ...], between(1, 2**31 - 1)] = (1, 10, 100, 1000)
    """How many of an image's best predictions count: different numbers; AP and AR by size use the largest."""
    iou_type: Literal["mask", "box", "both"] = "mask"
    """What is compared. Names of box metrics begin with box-."""
    class_aware: bool = False
    """Match within categories (category_id), as COCO's detection metrics do, and average over categories. Default:
    categories are ignored."""
    threads: Annotated[int | None, between(1, 1024)] = None
    """Images scored in parallel. Default: as many as torch uses (OMP_NUM_THREADS)."""
    shards: Path | None = None
    """Folder that keeps the scores, 64 images per file: after an interruption the same command continues from there.
    Required for several processes, which must all have access to it."""
