# SPDX-License-Identifier: Apache-2.0
"""One photo through phase 1: any size, with the descriptor and with a ViT."""

import pytest
import torch

from sohes.configs.run import ExploreConfig
from sohes.data.scenes import draw_scene
from sohes.labels.features import build_extractor
from sohes.labels.pipeline import label_image
from sohes.structures.masks import mask_iou

CONFIG = ExploreConfig(max_masks=20)


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (17, 5)])
@pytest.mark.parametrize("constant", [True, False])
def test_any_size(size, constant):
    image = torch.full((3, *size), 60, dtype=torch.uint8)
    if not constant:
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    forest = label_image(image, build_extractor(CONFIG), CONFIG)
    assert forest.masks.size == size
    assert len(forest) <= CONFIG.max_masks


@pytest.mark.parametrize(("start", "step"), [("basins", 1), ("patches", 6)])
def test_every_size_through_the_vit(start, step):
    config = ExploreConfig(features="vit_tiny_patch16_224", weights="random", side=32, max_masks=5, start=start)
    extractor = build_extractor(config)
    extractor.vit.blocks = extractor.vit.blocks[-2:]
    generator = torch.Generator().manual_seed(0)
    for height in range(1, 131, step):
        size = (height, 131 - height)
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        forest = label_image(image, extractor, config)
        assert forest.masks.size == size
        assert (forest.masks.areas >= config.min_pixels).all()


def test_vit_features_end_to_end():
    config = ExploreConfig(features="vit_tiny_patch16_224", weights="random", side=96, max_masks=10)
    scene = draw_scene(1, 96)
    forest = label_image(scene.image, build_extractor(config), config)
    assert forest.masks.size == (96, 96)
    assert len(forest) > 0


def test_labels_find_scenes():
    config = ExploreConfig()
    extractor = build_extractor(config)
    best = []
    for seed in range(4):
        scene = draw_scene(seed, 96)
        forest = label_image(scene.image, extractor, config)
        best.append(mask_iou(scene.forest.masks, forest.masks).max(1).values)
    assert (torch.cat(best) > 0.5).float().mean() > 0.4
