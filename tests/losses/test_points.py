# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from sohes.losses.points import loss_points, match_points, points_near, sample_labels, sample_maps


def box(H: int, W: int, y0: int, y1: int, x0: int, x1: int) -> torch.Tensor:
    mask = torch.zeros(H, W, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_labels_are_the_pixels_under_the_points():
    masks = torch.rand(3, 5, 7) > 0.5
    y, x = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    points = torch.stack(((x + 0.5) / 7, (y + 0.5) / 5), dim=-1).view(1, -1, 2)
    assert torch.equal(sample_labels(masks, points), masks.flatten(1).float())
    assert sample_labels(masks, torch.ones(1, 1, 2))[0, 0] == masks[0, -1, -1]  # the far edge belongs to the last pixel


def test_maps_larger_than_the_image_are_sampled_at_the_right_place():
    # A map of 3 cells of 4 px over an image of 10 px: the centre of the cell 1 is at 6 px.
    maps = torch.tensor([[[[0.0, 1.0, 5.0]]]]).expand(1, 1, 3, 3)
    value = sample_maps(maps, torch.tensor([[[0.6, 0.6]]]), (10 / 12, 10 / 12))
    torch.testing.assert_close(value, torch.ones(1, 1, 1))


def test_points_near_a_mask_are_inside_and_outside():
    masks = torch.stack((box(20, 30, 4, 6, 4, 8), box(20, 30, 0, 20, 0, 30), box(20, 30, 19, 20, 29, 30)))
    which = torch.arange(3).repeat_interleave(400)
    points = points_near(masks, which, torch.Generator().manual_seed(0)).view(3, 400, 2)
    pixels = points * torch.tensor([30.0, 20.0])
    assert pixels[0].min(dim=0).values.round().tolist() == [2, 3]
    assert pixels[0].max(dim=0).values.round().tolist() == [10, 7]
    share = sample_labels(masks, points).mean(dim=1)
    assert 0.2 < share[0] < 0.3  # a quarter of a box of twice the size
    assert share[1] == 1  # never outside the image
    assert 0.3 < share[2] < 0.6


def test_points_near_an_empty_mask_are_anywhere():
    masks = torch.stack((box(8, 8, 0, 0, 0, 0), box(8, 8, 0, 1, 0, 1)))
    points = points_near(masks, torch.zeros(500, dtype=torch.long), None)
    assert points.min() >= 0
    assert points.max() <= 1
    assert points.std(dim=0).min() > 0.2


def test_local_match_points_favour_small_masks():
    masks = torch.stack((box(100, 100, 0, 2, 0, 2), box(100, 100, 0, 100, 0, 50)))
    generator = torch.Generator().manual_seed(0)
    uniform, favoured = (match_points(masks, 400, ratio, generator) for ratio in (0.0, 0.5))
    assert uniform.shape == favoured.shape == (400, 2)
    assert sample_labels(masks, uniform[None])[0].sum() <= 3
    assert sample_labels(masks, favoured[None])[0].sum() >= 20
    assert match_points(masks[:0], 16, 0.5, generator).shape == (16, 2)


def test_loss_points_are_near_the_border_and_repeatable_by_seed():
    x = torch.linspace(-8, 8, 32)
    maps = x.expand(2, 1, 32, 32)  # uncertain only in the middle columns
    masks = torch.ones(2, 32, 32, dtype=torch.bool)
    settings = {"oversample_ratio": 3.0, "importance_ratio": 0.75, "local_ratio": 0.0}
    first, second = (
        loss_points(maps, masks, 200, (1.0, 1.0), generator=torch.Generator().manual_seed(5), **settings)
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert first.shape == (2, 200, 2)
    near = ((first[..., 0] - 0.5).abs() < 0.25).float().mean()
    assert near > 0.75  # a uniform draw has 0.5
