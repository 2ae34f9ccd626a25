# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import torch

from sohes.configs.run import ExploreConfig
from sohes.labels.draw import ScoredMasks
from sohes.labels.features import build_extractor
from sohes.labels.pipeline import label_image
from sohes.labels.recluster import make_crops, recluster_small_masks
from sohes.structures.masks import PackedMasks, mask_coverage, mask_iou


def test_crops_surround_small_candidates_only(two_discs):
    image, outer, inner = two_discs
    masks = PackedMasks.from_dense(torch.stack([outer, inner, torch.ones_like(outer), inner]))
    crops = make_crops(image, masks, ExploreConfig(theta_small=0.2, local_side=64))
    assert [crop.index for crop in crops] == [1]  # the whole is large, the last lies in an earlier crop
    y0, x0, y1, x1 = crops[0].box
    rows, columns = inner.any(1).nonzero()[:, 0], inner.any(0).nonzero()[:, 0]
    assert (y0 < rows.min(), x0 < columns.min(), y1 > rows.max() + 1, x1 > columns.max() + 1) == (True,) * 4
    assert abs(crops[0].image.shape[1] * crops[0].image.shape[2] - 64**2) < 200
    assert make_crops(image, masks, ExploreConfig(theta_small=0.2, local_regions=1))[0].index == 1


def test_masks_of_a_crop_are_placed_and_filtered(two_discs):
    image, _, inner = two_discs
    masks, scores = PackedMasks.from_dense(inner[None]), torch.tensor([0.5])
    config = ExploreConfig(theta_small=0.2, local_side=128, looks=("half", "vivid"))
    (crop,) = make_crops(image, masks, config)
    y0, x0, y1, x1 = crop.box

    def find_masks(images, inner_config):
        assert (inner_config.max_masks, inner_config.looks) == (config.local_masks, ("full",))
        size = (images[0].shape[1], images[0].shape[2])
        upper = inner.clone()
        upper[32:] = False
        local = PackedMasks.from_dense(torch.stack([upper, ~inner])[:, y0:y1, x0:x1]).resize(size)
        return [ScoredMasks(local, torch.tensor([0.8, 0.9]))]

    found = [ScoredMasks(masks, scores, torch.tensor([0.6]))]
    ((joined, joined_scores, votes),) = recluster_small_masks([image], found, find_masks, config)
    # The best mask of the crop lies outside of the small mask and is dropped; it would have scored 0.5.
    torch.testing.assert_close(joined_scores, torch.tensor([0.5, 0.5 * 0.8 / 0.9]))
    torch.testing.assert_close(votes, torch.tensor([0.6, 0.5]))  # a crop is seen by one of the two looks
    upper = inner.clone()
    upper[32:] = False
    assert mask_iou(joined[1:], PackedMasks.from_dense(upper[None])) > 0.9


def test_crops_of_several_photos_are_one_call(two_discs):
    image, outer, inner = two_discs
    config = ExploreConfig(theta_small=0.2, local_side=64)
    whole = torch.ones_like(outer)
    photos = [image, image.flip(2), image]
    found = [
        ScoredMasks(PackedMasks.from_dense(torch.stack(masks)), torch.tensor([0.5, 0.25])[: len(masks)])
        for masks in ([whole, inner], [whole], [outer & ~inner, inner.flip(1)])
    ]
    numbers = [len(make_crops(photo, masks, config)) for photo, (masks, *_) in zip(photos, found, strict=True)]
    assert numbers == [1, 0, 1]
    calls = []

    def find_masks(images, _):
        calls.append(len(images))
        return [
            ScoredMasks(
                PackedMasks.from_dense(torch.ones(1, *crop.shape[1:], dtype=torch.bool)), torch.tensor([0.25 * (i + 1)])
            )
            for i, crop in enumerate(images)
        ]

    joined = recluster_small_masks(photos, found, find_masks, replace(config, local_cover=0.0))
    assert calls == [sum(numbers)]
    assert [len(one.masks) for one in joined] == [3, 1, 3]
    torch.testing.assert_close(joined[0][1], torch.tensor([0.5, 0.25, 0.25]))
    torch.testing.assert_close(joined[2][1], torch.tensor([0.5, 0.25, 0.25]))


def test_reclustering_finds_parts_that_are_too_small_without(two_discs):
    image = torch.full((3, 480, 480), 120, dtype=torch.uint8)
    image[0, 200:230, 200:240] = 220
    image[2, 210:217, 210:218] = 250  # 56 pixels, less than min_area
    part = torch.zeros(1, 480, 480, dtype=torch.bool)
    part[0, 210:217, 210:218] = True
    truth = PackedMasks.from_dense(part)
    best = {}
    for theta_small in (0.0, 0.05):
        config = ExploreConfig(max_masks=30, theta_small=theta_small, min_area=100.0, min_pixels=16)
        forest = label_image(image, build_extractor(config), config)
        best[theta_small] = mask_iou(truth, forest.masks).max().item()
        assert (mask_coverage(forest.masks, forest.masks).diagonal() == 1).all()
    assert best[0.0] < 0.5 < best[0.05]
