# SPDX-License-Identifier: Apache-2.0
"""The merge tree of one photo, and photos cut into a given number of regions, for pretraining on regions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.data.photos import PhotoSet
from sohes.labels.basin_candidates import grow_tree, has_feature_tree
from sohes.labels.basins import find_basins
from sohes.labels.features import FeatureExtractor, build_extractor
from sohes.ops.merge_regions import merge_regions
from sohes.ops.merge_tree import MergeTree
from sohes.utils.workers import worker_pool

_SHRINK = 2  # regions are stored at 1 / _SHRINK of the canvas size, as patches are far larger than a pixel


def photo_tree(image: Tensor, extractor: FeatureExtractor) -> tuple[MergeTree, Tensor]:
    """The (first) merge tree of a photo uint8 [3, H, W], and the leaf of every pixel, int64 [H, W]."""
    config = extractor.config
    view = extractor.view(image)
    if config.start == "patches":
        return merge_regions(extractor([view]), schedule=config.schedule)[0], view.at_photo_size(view.patches)
    # Basins have colours of their own: only the features of a network are pooled into them.
    features = None if config.features == "descriptor" else extractor([view])[0]
    basins = find_basins(view, features, config)
    border_weight = config.feature_border_weight if has_feature_tree(config) else config.border_weight
    return grow_tree(basins, border_weight, config.size_exponent)[0], view.at_photo_size(basins.labels)


def cut_photos(photos: PhotoSet, counts: Sequence[int], num_threads: int) -> Tensor:
    """Region number of every pixel of each photo's canvas, uint8 [N, len(counts), S // 2, S // 2].

    Cut k has about counts[k] regions. Padding repeats the last row and column of the photo, as in the canvas.
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
