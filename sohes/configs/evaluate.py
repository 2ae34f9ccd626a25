# SPDX-License-Identifier: Apache-2.0
"""Settings of `sohes.evaluate` alone; see `sohes/configs/run.py` for the labels that say where a value comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class BaselineConfig:
    """The classical segmenters that stand beside a score as its floor."""

    felzenszwalb_scales: tuple[float, ...] = (50, 100, 200, 400, 800, 1600)
    """Scales of Felzenszwalb and Huttenlocher's segments, each > 0; larger gives larger segments. [ours]"""
    felzenszwalb_sigma: float = 0.8
    """Width in pixels of the smoothing before it, >= 0. [scikit-image, and Felzenszwalb and Huttenlocher 2004]"""
    felzenszwalb_min_size: int = 50
    """Its smallest segment in pixels, >= 1. [ours]"""
    slic_segments: int = 1000
    """SLIC superpixels that the colour tree begins with, about, >= 1. [ours]"""
    slic_compactness: float = 10.0
    """Weight of place against colour in SLIC, > 0. [scikit-image]"""
    box_grid_sides: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10)
    """The photo is tiled by k x k boxes for every k, each >= 1, and again shifted by half a box. [ours]"""
    min_pixels: int = 100
    """Smaller masks are dropped, >= 0. [sibling: phase 1 does at 480 x 480]"""
    nms_iou: float = 0.9
    """Of two masks with a higher IoU only the larger stays, 0..1. [sibling]"""
    max_masks: int = 1000
    """Masks kept per image, the largest first, >= 1. [paper: AR@1000]"""


@dataclass
class CompareConfig:
    """The comparison of several evaluated runs."""

    resamples: int = 2000
    """Bootstrap resamples of the photos, 1 to 100000. [ours]"""
    level: float = 0.95
    """Confidence of the intervals, > 0 and < 1. [ours]"""
    seed: int = 0
    """Of the resamples, >= 0. [ours]"""
    photos: int = 3
    """Photos shown of each kind (gains, losses, best, worst), >= 0. [ours]"""
    misses: int = 6
    """True masks shown that no run finds, of each size, >= 0. [ours]"""
