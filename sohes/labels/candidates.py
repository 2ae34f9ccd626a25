# SPDX-License-Identifier: Apache-2.0
"""Candidates: scored nodes of a merge tree, and the limits of size and overlap that apply before any mask is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.ops.merge_tree import MergeTree

# Later filters remove some of the drawn masks, so this many times max_masks are drawn.
_SPARE = 1.5


@dataclass(frozen=True, eq=False)
class Candidates:
    """Nodes of one tree to draw as masks, best first. ids: int64 [n]. scores: float32 [n] in (0, 1]."""

    tree: MergeTree
    ids: Tensor
    scores: Tensor


def num_drawn(config: ExploreConfig) -> int:
    """Number of candidates to draw: more than are kept, since later filters remove some of them."""
    return int(config.max_masks * _SPARE) + 1


def area_limits(size: tuple[int, int], config: ExploreConfig) -> tuple[float, float]:
    """Smallest and largest allowed mask area, in pixels of a photo of `size` (H, W)."""
    pixels = size[0] * size[1]
    return max(config.min_pixels, config.min_area * pixels / 480**2), config.max_area * pixels


def has_allowed_area(
    areas: np.ndarray, size: tuple[int, int], photo_size: tuple[int, int], config: ExploreConfig
) -> np.ndarray:
    """bool, shape of `areas`: which areas, in pixels of an image of `size`, are allowed in a photo of `photo_size`."""
    smallest, largest = area_limits(photo_size, config)
    scaled = areas * (photo_size[0] * photo_size[1] / (size[0] * size[1]))
    return (scaled >= smallest) & (scaled <= largest)


def geometric_mean(factors: Sequence[np.ndarray], exponents: Sequence[float]) -> np.ndarray:
    """Weighted geometric mean of factors [R] in 0..1, float64 [R]; factors below 0.001 count as that."""
    logarithm = sum(e * np.log(np.clip(f, 1e-3, 1)) for e, f in zip(exponents, factors, strict=True))
    return np.exp(logarithm / sum(exponents))


def best_candidates(tree: MergeTree, ids: np.ndarray, scores: np.ndarray, config: ExploreConfig) -> Candidates:
    """The best of the nodes `ids` [n], ascending, without nested duplicates, at most `num_drawn`.

    scores: float64 [R], of all nodes; of equal ones the lower id is first.
    """
    ids = ids[np.argsort(-scores[ids], kind="stable")]
    kept = tree.distinct(ids, config.nms_iou, limit=num_drawn(config))
    return Candidates(tree, torch.from_numpy(kept), torch.from_numpy(scores[kept].astype(np.float32)))
