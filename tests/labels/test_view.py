# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from sohes.labels.color import rgb_to_lab
from sohes.labels.view import assign_pixels, fit_area, make_view


def test_lab_equals_scikit_image():
    image = torch.randint(0, 256, (3, 13, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = rgb2lab(image.permute(1, 2, 0).numpy())
    # Both work from rounded matrix entries of six digits, and scikit-image in float64.
    np.testing.assert_allclose(rgb_to_lab(image).permute(1, 2, 0).numpy(), expected, atol=0.02)


@pytest.mark.parametrize(
    ("size", "multiple", "enlarge", "expected"),
    [
        ((480, 640), 8, True, (416, 552)),
        ((3, 2000), 8, True, (16, 12392)),
        ((1, 1), 16, True, (480, 480)),
        ((1, 1), 1, False, (1, 1)),
        ((320, 480), 1, False, (320, 480)),
        ((960, 960), 1, False, (480, 480)),
    ],
)
def test_fit_area_keeps_the_aspect_ratio(size, multiple, enlarge, expected):
    assert fit_area(size, 480**2, multiple, enlarge) == expected


def test_pixels_move_to_the_patch_they_resemble(two_discs):
    image, outer, _ = two_discs
    lab = rgb_to_lab(image)
    purity = {}
    for rounds in (0, 3):
        patches = assign_pixels(lab, (16, 24), rounds, compactness=5.0)
        inside = torch.bincount(patches[outer], minlength=384)
        counts = torch.bincount(patches.flatten(), minlength=384)
        assert counts.min() > 0
        purity[rounds] = torch.minimum(inside, counts - inside).sum().item()  # pixels on the wrong side
    assert purity[0] > 100
    assert purity[3] < 0.1 * purity[0]


def test_patches_of_the_photo_and_of_the_view_agree():
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = make_view(image, (20, 30), (5, 6), rounds=2, compactness=5.0)
    assert view.photo_size == (60, 90)
    # 3x3 pixels of the photo per pixel of the view
    patches = view.at_photo_size(view.patches)
    torch.testing.assert_close(patches, view.patches.repeat_interleave(3, 0).repeat_interleave(3, 1))


def test_pool_is_the_mean_over_each_patch():
    image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = make_view(image, (12, 12), (3, 3), rounds=2, compactness=5.0)
    pooled = view.pool(view.lab)
    assert view.patch_sizes.sum() == 144
    for patch in range(9):
        torch.testing.assert_close(pooled[patch], view.lab[:, view.patches == patch].mean(1), rtol=1e-4, atol=1e-4)
