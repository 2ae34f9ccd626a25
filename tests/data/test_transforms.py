# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from numpy.random import PCG64, Generator
from torchvision.transforms.v2 import functional as peer

from sohes.data.transforms import (
    IMAGE_MEAN,
    IMAGE_STD,
    Geometry,
    StrongView,
    _blend,
    _gray,
    draw_geometry,
    normalize,
    strong_view,
    view_image,
    view_masks,
    view_valid,
    visible_masks,
)
from sohes.structures.masks import PackedMasks


def rng(seed=0):
    return Generator(PCG64(seed))


def random_image(height, width, seed=0):
    return torch.from_numpy(rng(seed).integers(0, 256, (3, height, width), np.uint8))


class TestGeometry:
    @pytest.mark.parametrize("source", [(60, 80), (80, 60), (64, 64), (3, 2000), (1, 1)])
    @pytest.mark.parametrize("scale", [(1.0, 1.0), (0.3, 0.6), (1.5, 3.0)])
    def test_aspect_is_kept_and_the_window_lies_inside(self, source, scale):
        for seed in range(20):
            g = draw_geometry(rng(seed), source, 32, scale)
            factor = max(g.resized) / max(source)
            assert scale[0] * 32 / max(source) - 1 <= factor <= scale[1] * 32 / max(source) + 1
            assert all(abs(r - s * factor) <= 1 for r, s in zip(g.resized, source, strict=True))
            assert 0 <= g.top <= max(0, g.resized[0] - 32)
            assert 0 <= g.left <= max(0, g.resized[1] - 32)
            assert g.visible_size == (min(32, g.resized[0]), min(32, g.resized[1]))

    def test_both_mirror_states_and_many_places_are_drawn(self):
        drawn = [draw_geometry(rng(seed), (50, 70), 32, (1.0, 2.0)) for seed in range(60)]
        assert {g.mirrored for g in drawn} == {False, True}
        assert len({(g.top, g.left) for g in drawn}) > 30


class TestViews:
    def test_identity(self):
        image = random_image(16, 16)
        g = Geometry((16, 16), (16, 16), 0, 0, False, 16)
        assert torch.equal(view_image(image, g), image)

    def test_mirror_crop_and_padding_by_hand(self):
        image = torch.arange(12, dtype=torch.uint8).view(1, 3, 4).expand(3, -1, -1)
        g = Geometry(source=(3, 4), resized=(3, 4), top=0, left=1, mirrored=True, size=4)
        expected = [[2, 1, 0, 0], [6, 5, 4, 0], [10, 9, 8, 0], [0, 0, 0, 0]]
        assert view_image(image, g)[0].tolist() == expected
        assert view_valid(g).int().tolist() == [[1, 1, 1, 0]] * 3 + [[0] * 4]
        dense = torch.zeros(1, 3, 4, dtype=torch.bool)
        dense[0, 1, 2] = True
        assert view_masks(PackedMasks.from_dense(dense), g).nonzero().tolist() == [[0, 1, 0]]

    @pytest.mark.parametrize("seed", range(12))
    def test_masks_follow_the_image(self, seed):
        """A disk drawn in the photo is in the view where its mask is."""
        height, width = 70, 100
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        disks = torch.stack([(y - 30) ** 2 + (x - cx) ** 2 < 15**2 for cx in (25, 70)])  # [2, H, W]
        image = (disks.any(0) * 255).to(torch.uint8).expand(3, -1, -1)
        g = draw_geometry(rng(seed), (height, width), 64, (0.5, 2.0))
        masks = view_masks(PackedMasks.from_dense(disks), g)
        seen = view_image(image, g)[0] > 127
        union = masks.any(0)
        assert (union & seen).sum() >= 0.93 * (union | seen).sum()
        assert not (masks & ~view_valid(g)).any()

    def test_nearest_masks_keep_partitions(self):
        """Masks that tile the photo tile its view: no gaps, no overlaps."""
        labels = torch.from_numpy(rng().integers(0, 4, (37, 53)))
        masks = PackedMasks.from_label_map(labels, torch.arange(4))
        for seed in range(10):
            g = draw_geometry(rng(seed), (37, 53), 32, (0.4, 2.5))
            assert torch.equal(view_masks(masks, g).sum(0), view_valid(g).long())

    def test_nearest_masks_by_hand(self):
        """Twice the size: every pixel becomes four; a third and a half: the middle, the later of two."""
        dense = torch.from_numpy(rng().random((7, 21, 30)) < 0.5)
        masks = PackedMasks.from_dense(dense)
        twice = view_masks(masks, Geometry((21, 30), (42, 60), 5, 11, False, 16))
        assert torch.equal(twice, dense.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, 5:21, 11:27])
        half = view_masks(masks, Geometry((21, 30), (7, 15), 0, 0, True, 15))
        assert torch.equal(half[:, :7], dense[:, 1::3, 1::2].flip(2))

    def test_no_masks(self):
        g = draw_geometry(rng(), (20, 30), 16, (1, 1))
        assert view_masks(PackedMasks.empty((20, 30)), g).shape == (0, 16, 16)


class TestVisibleMasks:
    def chain(self):
        """Nested squares of side 6, 4 and 2; ancestors as of a chain."""
        masks = torch.zeros(3, 8, 8, dtype=torch.bool)
        for k, side in enumerate((6, 4, 2)):
            masks[k, :side, :side] = True
        return masks, torch.ones(3, 3).triu(1).bool()

    def test_small_ones_go(self):
        masks, ancestors = self.chain()
        assert visible_masks(masks, ancestors, 4).tolist() == [0, 1, 2]
        assert visible_masks(masks, ancestors, 5).tolist() == [0, 1]
        assert visible_masks(masks, ancestors, 37).tolist() == []

    def test_a_whole_of_which_only_a_part_is_seen_goes(self):
        masks, ancestors = self.chain()
        masks = masks & masks[1]
        assert visible_masks(masks, ancestors, 1).tolist() == [1, 2]

    def test_equal_masks_without_kinship_stay(self):
        masks, ancestors = self.chain()
        assert visible_masks(masks[:1].expand(3, -1, -1), torch.zeros_like(ancestors), 1).tolist() == [0, 1, 2]

    def test_equal_areas_are_not_equal_masks(self):
        masks, ancestors = self.chain()
        masks[1] = masks[0].roll(1, 0)
        assert visible_masks(masks, ancestors, 1).tolist() == [0, 1, 2]


class TestStrongView:
    def test_repeats_with_its_generator_and_differs_without(self):
        image = random_image(24, 24)
        before = image.clone()
        views = [strong_view(rng(seed), image, StrongView()) for seed in (1, 1, 2)]
        assert torch.equal(views[0], views[1])
        assert not torch.equal(views[0], views[2])
        assert torch.equal(image, before)
        assert all(view.shape == image.shape and view.dtype == torch.uint8 for view in views)

    def test_nothing_is_changed_when_all_is_off(self):
        off = StrongView(jitter_probability=0, gray_probability=0, blur_probability=0, max_holes=0)
        image = random_image(24, 24)
        assert torch.equal(strong_view(rng(), image, off), image)

    def test_gray(self):
        gray = StrongView(jitter_probability=0, gray_probability=1, blur_probability=0, max_holes=0)
        view = strong_view(rng(), random_image(8, 8), gray)
        assert torch.equal(view[0], view[1])
        assert torch.equal(view[0], view[2])

    def test_places_stay(self):
        """Except for holes, a strong view of an edge has the edge at the same column."""
        image = torch.zeros(3, 64, 64, dtype=torch.uint8) + 40
        image[:, :, 32:] = 200
        for seed in range(20):
            view = strong_view(rng(seed), image, StrongView(max_holes=0)).float().mean((0, 1))
            assert view.diff().abs().argmax() == 31


def test_normalize():
    image = torch.full((2, 3, 2, 2), 255, dtype=torch.uint8)
    valid = torch.tensor([[[True, False], [True, True]]]).expand(2, -1, -1)
    normal = normalize(image, valid)
    expected = (1 - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal[0, :, 0, 0], expected)
    assert (normal[:, :, 0, 1] == 0).all()
    torch.testing.assert_close(normalize(image)[1, :, 0, 1], expected)


@pytest.mark.parametrize("ratio", [0.6, 0.97, 1.0, 1.4])
def test_colours_change_as_torchvision_has_it(ratio):
    """Bit-identical where torchvision computes in float32, its default."""
    image = torch.randint(0, 256, (3, 40, 37), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    gray = _gray(image)
    assert torch.equal(_blend(image, torch.zeros(()), ratio), peer.adjust_brightness(image, ratio))
    assert torch.equal(_blend(image, gray.mean(), ratio), peer.adjust_contrast(image, ratio))
    assert torch.equal(_blend(image, gray, ratio), peer.adjust_saturation(image, ratio))
    assert torch.equal(gray.to(torch.uint8).expand_as(image), peer.rgb_to_grayscale(image, 3))
