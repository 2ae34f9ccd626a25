# SPDX-License-Identifier: Apache-2.0
"""Settings of `sohes.evaluate` alone; see `sohes/configs/run.py` for the labels that say where a value comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sohes.configs.ranges import Range, above, at_least, between


@dataclass
class BaselineConfig:
    """The classical segmenters that stand beside a score as its floor."""

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
