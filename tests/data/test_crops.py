# SPDX-License-Identifier: Apache-2.0
"""Multi-crop views: boxes inside photos, crops with the content of their box, colour changes as configured."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as peer

from sohes.configs.pretrain import CropConfig, DistortConfig
from sohes.data.crops import cut_crops, distort, draw_boxes, draw_patch_masks, gaussian_blur


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_boxes_lie_inside_and_have_the_areas_asked_for():
    sizes = torch.tensor([[96, 128], [128, 40], [7, 128], [128, 128]]).repeat(300, 1)
    boxes = draw_boxes(sizes, (0.2, 0.6), CropConfig(), generator())
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= sizes[:, 1] + 1e-3).all()
    assert (boxes[:, 3] <= sizes[:, 0] + 1e-3).all()
    share = (width * height / sizes.prod(1)).view(-1, 4)
    assert (share <= 0.6 + 1e-5).all()
    assert (share[:, [0, 3]] >= 0.2 - 1e-5).all()  # these boxes fit, so none was shortened
    assert 0.38 < share[:, 3].mean() < 0.42
    aspect = (width / height).view(-1, 4)[:, 3]
    assert aspect.min() >= 0.75 - 1e-5
    assert aspect.max() <= 4 / 3 + 1e-5


def test_a_crop_of_the_whole_photo_is_the_photo():
    canvas = torch.rand((2, 3, 16, 16), generator=generator())
    whole = torch.tensor([[0.0, 0.0, 16.0, 16.0]] * 2)
    crops = cut_crops(canvas, whole, torch.tensor([False, True]), 16)
    torch.testing.assert_close(crops[0], canvas[0])
    torch.testing.assert_close(crops[1], canvas[1].flip(-1))


def test_a_box_shows_its_pixels_enlarged():
    canvas = torch.rand((1, 3, 32, 32), generator=generator())
    box = torch.tensor([[4.0, 8.0, 20.0, 24.0]])
    crop = cut_crops(canvas, box, torch.tensor([False]), 32)
    window = canvas[:, :, 8:24, 4:20]
    expected = F.interpolate(window, (32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(crop[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])  # the rim sees past the box


def test_shrunk_crops_do_not_alias():
    stripes = (torch.arange(128) % 2).float().expand(1, 3, 128, 128)
    crop = cut_crops(stripes, torch.tensor([[0.0, 0.0, 128.0, 128.0]]), torch.tensor([False]), 32)
    torch.testing.assert_close(crop, torch.full_like(crop, 0.5))


def test_blur_is_the_gaussian_of_each_crop():
    crops = torch.rand((3, 3, 24, 20), generator=generator())
    sigma = torch.tensor([0.4, 1.0, 1.2])
    blurred = gaussian_blur(crops, sigma, max_sigma=1.2)
    padded = F.pad(crops, (3, 3, 3, 3), mode="replicate")
    for crop, s, result in zip(padded, sigma.tolist(), blurred, strict=True):
        expected = peer.gaussian_blur(crop, [7, 7], [s, s])[:, 3:-3, 3:-3]
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_distortions_are_those_asked_for():
    crops = torch.rand((64, 3, 8, 8), generator=generator())
    off = DistortConfig(jitter_probability=0, gray_probability=0)
    assert torch.equal(distort(crops, off, 0.0, 0.0, generator()), crops)
    gray = distort(crops, DistortConfig(jitter_probability=0, gray_probability=1), 0.0, 0.0, generator())
    torch.testing.assert_close(gray[:, 0], gray[:, 2])
    solar = distort(crops, off, 0.0, 1.0, generator())
    torch.testing.assert_close(solar, torch.where(crops >= 0.5, 1 - crops, crops))
    hue = DistortConfig(jitter_probability=1, brightness=0, contrast=0, saturation=0, hue=0.1, gray_probability=0)
    muted = 0.4 + 0.2 * crops  # far from the edges of the colour cube, where a turn would be cut off
    turned = distort(muted, hue, 0.0, 0.0, generator())
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close((turned * luma).sum(1), (muted * luma).sum(1), atol=2e-4, rtol=0)
    assert (turned - muted).abs().mean() > 0.005
    full = distort(crops, DistortConfig(), 0.5, 0.5, generator(3))
    assert full.min() >= 0
    assert full.max() <= 1
    assert torch.equal(full, distort(crops, DistortConfig(), 0.5, 0.5, generator(3)))
    assert not torch.equal(full, distort(crops, DistortConfig(), 0.5, 0.5, generator(4)))


def test_patch_masks_have_the_shares_asked_for():
    masks = draw_patch_masks(400, (12, 16), (0.1, 0.5), 0.5, generator())
    share = masks.flatten(1).float().mean(1)
    masked = share > 0
    assert 0.4 < masked.float().mean() < 0.6
    assert share[masked].min() >= 0.1 - 1 / 192
    assert share[masked].max() <= 0.5 + 1 / 192
    assert 0.27 < share[masked].mean() < 0.33
    # Blobs: a hidden patch has far more hidden neighbours than the share of hidden patches.
    pairs = (masks[masked][:, :, 1:] & masks[masked][:, :, :-1]).float().mean()
    assert pairs > 1.8 * (share[masked] ** 2).mean()


@pytest.mark.parametrize("share", [(0.0, 0.0), (1.0, 1.0)])
def test_patch_masks_at_the_ends(share):
    masks = draw_patch_masks(3, (4, 4), share, 1.0, generator())
    assert masks.float().mean() == share[0]
