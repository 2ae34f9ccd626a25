# SPDX-License-Identifier: Apache-2.0
"""From photos to forests of pseudo-labels: features, a merge tree, masks, a closer look at small ones, a forest."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.labels.basins import find_basins
from sohes.labels.candidates import find_candidates
from sohes.labels.draw import draw_candidates, make_forest, select_masks
from sohes.labels.features import FeatureExtractor
from sohes.labels.local import look_closer
from sohes.labels.refine import refine_masks
from sohes.labels.regions import draw_regions, find_regions
from sohes.labels.view import View
from sohes.ops.merge_regions import merge_regions
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks


class StageClock:
    """The seconds spent in each stage of labelling one image."""

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
    """The pseudo-labels of several photos, each as of `label_image`.

    They go through the network together, and so do the crops of all of them.
    """
    clock = clock or StageClock()
    found = find_masks(images, extractor, config, clock)
    with clock("masks"):
        found = [
            (masks if masks.size == image.shape[1:] else masks.resize((image.shape[1], image.shape[2])), scores)
            for image, (masks, scores) in zip(images, found, strict=True)
        ]
    if config.theta_small > 0:
        with clock("local"):  # all that is done for crops counts as local
            found = look_closer(
                images, found, lambda crops, inner: find_masks(crops, extractor, inner, StageClock()), config
            )
        with clock("masks"):
            # What was seen enlarged may be smaller than what was not.
            finer = replace(config, min_area=config.min_area / config.local_min_area)
            found = [select_masks(masks, scores, masks.size, finer) for masks, scores in found]
    with clock("forest"):
        return [make_forest(masks, scores, config) for masks, scores in found]


def find_masks(
    images: Sequence[Tensor], extractor: FeatureExtractor, config: ExploreConfig, clock: StageClock
) -> list[tuple[PackedMasks, Tensor]]:
    """Masks of each image at its working size, and their scores, best first.

    The images, uint8 [3, H, W] each, go through the network together.
    """
    with clock("features"):
        views = [extractor.view(image) for image in images]
        pooled_only = config.start == "basins" and config.features == "descriptor"
        features = [None] * len(views) if pooled_only else extractor(views)  # [h, w, C] each
    return [
        _cluster(view, feature, config, clock, extractor.device) for view, feature in zip(views, features, strict=True)
    ]


def _cluster(
    view: View, features: Tensor | None, config: ExploreConfig, clock: StageClock, device: torch.device
) -> tuple[PackedMasks, Tensor]:
    if config.start == "basins":
        with clock("merge"):
            basins = find_basins(view, features, config)
            regions = find_regions(basins, view.photo_size, config)
        with clock("masks"):
            masks, scores = select_masks(*draw_regions(regions, basins.labels), view.photo_size, config)
    else:
        with clock("merge"):
            (tree,) = merge_regions(features, schedule=config.schedule)
            candidates = find_candidates(tree, view, config)
        with clock("masks"):
            masks, scores = draw_candidates(tree, candidates, view.patches, view.photo_size, config)
    if config.refiner != "none":
        with clock("refine"):
            masks, kept = refine_masks(masks, view, config, device)
            masks, scores = select_masks(masks[kept], scores[kept], view.photo_size, config)
    return masks, scores
