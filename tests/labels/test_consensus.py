# SPDX-License-Identifier: Apache-2.0
"""The consensus of several looks: order, votes, scores, duplicates."""

from dataclasses import replace

import pytest
import torch

from sohes.configs.run import ExploreConfig
from sohes.data.scenes import draw_scene
from sohes.labels.consensus import join_looks, num_sides, share_of_looks
from sohes.labels.draw import ScoredMasks
from sohes.labels.features import build_extractor
from sohes.labels.pipeline import label_image, label_images
from sohes.structures.masks import PackedMasks, mask_iou

THREE = ExploreConfig(looks=("full", "faded", "vivid"), max_masks=10)


def boxes(*rows, size=(20, 20)):
    """Masks of boxes (y0, y1, x0, x1) with scores: `boxes((0, 4, 0, 4, 0.5))`."""
    dense = torch.zeros((len(rows), *size), dtype=torch.bool)
    for mask, (y0, y1, x0, x1, _) in zip(dense, rows, strict=True):
        mask[y0:y1, x0:x1] = True
    return ScoredMasks(PackedMasks.from_dense(dense), torch.tensor([row[-1] for row in rows]))


def test_share_of_looks_by_hand():
    look = torch.tensor([0, 0, 1, 2])
    pairs = torch.tensor([[0, 2], [0, 1], [2, 3]])
    assert share_of_looks(pairs, look, 4).tolist() == [0.5, 0.25, 0.75, 0.5]


def test_what_more_looks_find_ranks_higher():
    """The first mask of the best score is seen once, the second by all looks."""
    once, thrice = (2, 9, 2, 9, 0.7), (10, 18, 10, 18, 0.66)
    found = [boxes(once, thrice), boxes(thrice), boxes(thrice)]
    masks, scores, votes = join_looks(found, THREE)
    assert masks.boxes.tolist() == [[10, 10, 18, 18], [2, 2, 9, 9]]  # x0, y0, x1, y1
    torch.testing.assert_close(votes, torch.tensor([1.0, 1 / 3]))
    # Three masks of worth s^8, chosen with preference s^2, per look: s^10 again.
    torch.testing.assert_close(scores, torch.tensor([0.66, (0.7**10 / 9) ** (1 / 10)]))


def test_the_middle_of_similar_masks_is_chosen():
    """Of three boxes shifted by one pixel the one in the middle covers the others best."""
    left, middle, right = ((4, 16, x, x + 12, score) for x, score in ((3, 0.52), (4, 0.5), (5, 0.52)))
    masks, _, votes = join_looks([boxes(left), boxes(middle), boxes(right)], THREE)
    assert masks.boxes[0].tolist() == [4, 4, 16, 16]
    assert votes.tolist() == [1, 1, 1]  # IoU 11/13 and 10/14


def test_masks_that_touch_the_frame_rank_lower():
    inside, cut, corner = (4, 12, 4, 12, 0.6), (0, 8, 12, 18, 0.61), (13, 20, 13, 20, 0.6)
    found = [boxes(corner, cut, inside)] * 3
    assert num_sides(found[0].masks).tolist() == [2, 1, 0]
    assert join_looks(found, THREE).masks.boxes[:, 0].tolist() == [4, 12, 13]


def test_near_duplicates_are_dropped():
    found = [boxes((0, 20, 0, 19, 0.6)), boxes((0, 20, 0, 20, 0.6)), boxes((0, 3, 0, 3, 0.1))]
    masks, _, votes = join_looks(found, THREE)
    assert masks.areas.tolist() == [380, 9]  # IoU 0.95 with 400; of equal ones the first
    torch.testing.assert_close(votes, torch.tensor([2 / 3, 1 / 3]))
    assert len(join_looks(found, replace(THREE, nms_iou=1.0)).masks) == 3
    assert len(join_looks(found, replace(THREE, max_masks=1)).masks) == 1


def test_looks_of_any_size_and_empty_looks():
    small = boxes((0, 5, 0, 5, 0.5), size=(10, 10))
    masks, _, votes = join_looks([boxes(), small, boxes((0, 10, 0, 10, 0.5))], THREE)
    assert masks.size == (20, 20)
    assert masks.areas.tolist() == [100]
    torch.testing.assert_close(votes, torch.tensor([2 / 3]))
    assert len(join_looks([boxes(), boxes(), boxes()], THREE).masks) == 0


@pytest.mark.parametrize("start", ["basins", "patches"])
def test_photos_through_all_looks(start):
    config = ExploreConfig(
        looks=("full", "half", "third", "faded", "vivid"), max_masks=40, start=start, nms_iou=0.8, theta_small=0.05
    )
    extractor = build_extractor(config)
    images = [draw_scene(seed, size).image for seed, size in ((0, 96), (1, 64), (2, 96))]
    forests = label_images(images, extractor, config)
    for image, forest in zip(images, forests, strict=True):
        assert forest.masks.size == image.shape[1:]
        assert 0 < len(forest) <= 40
        assert ((forest.votes >= 0.2) & (forest.votes <= 1)).all()
        assert (forest.votes == 1).any()
        assert mask_iou(forest.masks, forest.masks).fill_diagonal_(0).max() <= 0.8
        alone = label_image(image, extractor, config)
        torch.testing.assert_close(alone.masks.words, forest.masks.words)
        torch.testing.assert_close(alone.votes, forest.votes)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (17, 5)])
def test_any_size(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = ExploreConfig(looks=("third", "vivid", "half"), max_masks=20)
    forest = label_image(image, build_extractor(config), config)
    assert forest.masks.size == size


def test_one_look_has_no_votes():
    config = ExploreConfig(looks=("vivid",), max_masks=20)
    assert label_image(draw_scene(0, 64).image, build_extractor(config), config).votes is None
