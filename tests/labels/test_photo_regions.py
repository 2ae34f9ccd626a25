# SPDX-License-Identifier: Apache-2.0
import torch
from PIL import Image

from sohes.data.photos import PhotoSet
from sohes.data.sources import list_images
from sohes.labels.photo_regions import cut_photos


def test_photos_are_cut_into_regions(two_discs, tmp_path):
    image, outer, inner = two_discs
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "discs.png")
    photos = PhotoSet(list_images(tmp_path), image.shape[2], 1, 1.0)
    regions = cut_photos(photos, (2, 3), 1)
    side, height = image.shape[2] // 2, image.shape[1] // 2
    assert regions.shape == (1, 2, side, side)
    two, three = regions[0, :, :height]
    assert two.unique().tolist() == [0, 1]
    assert three.unique().tolist() == [0, 1, 2]
    kinds = (outer.int() + inner.int())[::2, ::2]
    agree = sum((kinds[three == region] == kinds[three == region].mode().values).sum() for region in range(3))
    assert agree / kinds.numel() > 0.97
    assert torch.equal(regions[0, :, side - 1], regions[0, :, height - 1])  # the canvas repeats the photo's edge
