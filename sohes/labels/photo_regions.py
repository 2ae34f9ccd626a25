# SPDX-License-Identifier: Apache-2.0
"""Photos cut into a given number of regions, for training that compares regions: the weight-free tree of phase 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.data.photos import PhotoSet
from sohes.labels.features import build_extractor
from sohes.labels.regions import photo_tree
from sohes.utils.workers import worker_pool

_SHRINK = 2  # regions are kept at this fraction of the canvas: patches are far larger than a pixel


def cut_photos(photos: PhotoSet, counts: Sequence[int], num_threads: int) -> Tensor:
    """Regions of every photo's canvas, uint8 [N, len(counts), S // 2, S // 2]: about counts[k] of them in cut k.

    What lies beyond the photo itself repeats its last row and column, as the canvas does.
    """
    side = photos.images.shape[-1] // _SHRINK
    extractor = build_extractor(ExploreConfig())
    regions = torch.empty((len(photos), len(counts), side, side), dtype=torch.uint8)

    def cut(index: int) -> None:
        tree, leaves = photo_tree(photos.photo(index), extractor)
        height, width = leaves.shape
        place = torch.arange(side) * _SHRINK
        leaves = leaves[place.clamp_max(height - 1)][:, place.clamp_max(width - 1)]
        for k, count in enumerate(counts):
            _, numbered = tree.cut_to(count).flatten().unique(return_inverse=True)  # [N], 0..count - 1
            regions[index, k] = numbered.byte()[leaves]

    with worker_pool(num_threads, 1, "cut") as pool:
        for _ in pool.map(cut, range(len(photos))):
            pass
    return regions
