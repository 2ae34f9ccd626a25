# SPDX-License-Identifier: Apache-2.0
"""From photos to forests of pseudo-labels, the steps of phase 1 in order:

1. features: the photo at working size (a view), and one feature per patch of it (`features`, `descriptor`).
2. clustering: the most similar adjacent regions are merged until one is left; the nodes of the merge tree are the
   candidates, the best of which are drawn as masks (`basins`, `basin_candidates`, `patch_candidates`, `draw`).
3. refinement: masks are sharpened to the pixel (`refine`), and those of bad size or shape removed.
4. duplicates: of two masks that overlap too much the better one stays (`draw.select_masks`).
5. consensus: steps 1 to 4 for several looks at the photo, at other scales and with other colours, whose masks are
   joined: what more looks find ranks higher (`looks`, `consensus`).
6. local re-clustering: steps 1 to 4 again in enlarged crops around small masks (`recluster`).
7. hierarchy: the parent of a mask is the smallest mask that covers it (`draw.make_forest`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.labels.basin_candidates import find_basin_candidates
from sohes.labels.basins import find_basins
from sohes.labels.consensus import join_looks
from sohes.labels.draw import ScoredMasks, draw_candidates, make_forest, select_masks
from sohes.labels.features import FeatureExtractor
from sohes.labels.looks import make_looks
from sohes.labels.patch_candidates import find_patch_candidates
from sohes.labels.recluster import recluster_small_masks
from sohes.labels.refine import refine_masks
from sohes.labels.view import View
from sohes.ops.merge_regions import merge_regions
from sohes.structures.forest import Forest


class StageClock:
    """Seconds per stage of labelling, added up: `with clock("merge"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start


def label_image(
    image: Tensor, extractor: FeatureExtractor, config: ExploreConfig, clock: StageClock | None = None
) -> Forest:
    """The pseudo-labels of one photo, uint8 [3, H, W], as a forest: best masks first, scores in (0, 1]."""
    return label_images([image], extractor, config, clock)[0]


def label_images(
    images: Sequence[Tensor], extractor: FeatureExtractor, config: ExploreConfig, clock: StageClock | None = None
) -> list[Forest]:
    """The pseudo-labels of several photos, the same as `label_image` of each.

    All photos go through the network in one batch per grid, and so do the crops of all photos.
    """
    clock = clock or StageClock()
    found = find_masks(images, extractor, config, clock)
    with clock("masks"):
        found = [one.resize((image.shape[1], image.shape[2])) for one, image in zip(found, images, strict=True)]
    if config.theta_small > 0:
        with clock("local"):  # everything done for crops counts as local

            def find_in_crops(crops: Sequence[Tensor], crop_config: ExploreConfig) -> list[ScoredMasks]:
                return find_masks(crops, extractor, crop_config, StageClock())

            found = recluster_small_masks(images, found, find_in_crops, config)
        with clock("masks"):
            # Masks from crops may be smaller than those of the whole photo.
            finer = replace(config, min_area=config.min_area / config.local_min_area)
            found = [select_masks(one.fill_holes(), one.masks.size, finer) for one in found]
    with clock("forest"):
        return [make_forest(one, config) for one in found]


def find_masks(
    images: Sequence[Tensor], extractor: FeatureExtractor, config: ExploreConfig, clock: StageClock
) -> list[ScoredMasks]:
    """Steps 1 to 5: the masks of each image uint8 [3, H, W] at its working size, best first.

    The views of all images and looks go through the network in one batch per grid.
    """
    with clock("features"):
        views = [view for image in images for view in make_looks(image, extractor, config.looks)]
        needs_features = config.start == "patches" or config.features != "descriptor"  # basins have their own colours
        features: Sequence[Tensor | None] = extractor(views) if needs_features else [None] * len(views)
    found = []
    for view, feature in zip(views, features, strict=True):
        one = _cluster(view, feature, config, clock)
        if config.refiner != "none":
            with clock("refine"):
                masks, is_kept = refine_masks(one.masks, view, config, extractor.device)
                refined = one._replace(masks=masks).take(is_kept).fill_holes()
                one = select_masks(refined, view.photo_size, config)
        found.append(one)
    looks = len(config.looks)
    if looks == 1:
        return found
    with clock("consensus"):
        return [join_looks(found[i : i + looks], config) for i in range(0, len(found), looks)]


def _cluster(view: View, features: Tensor | None, config: ExploreConfig, clock: StageClock) -> ScoredMasks:
    """Step 2, and the selection of masks, for one view. features: float32 [h, w, C]; None only for basins."""
    with clock("merge"):
        if config.start == "basins":
            basins = find_basins(view, features, config)
            candidates, leaves = find_basin_candidates(basins, view.photo_size, config), basins.labels
        else:
            assert features is not None
            (tree,) = merge_regions(features, schedule=config.schedule)
            candidates, leaves = [find_patch_candidates(tree, view, config)], view.patches
    with clock("masks"):
        return select_masks(draw_candidates(candidates, leaves), view.photo_size, config)
