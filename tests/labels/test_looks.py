# SPDX-License-Identifier: Apache-2.0
"""Looks at a photo: colours, sizes, and what they have in common."""

import pytest
import torch

from sohes.configs.checks import find_conflicts
from sohes.configs.run import Config, ExploreConfig
from sohes.data.scenes import draw_scene
from sohes.labels.features import build_extractor
from sohes.labels.looks import LOOKS, Look, make_looks, recolor


def test_recolor_by_hand():
    image = torch.tensor([200, 100, 0], dtype=torch.uint8)[:, None, None]
    assert recolor(image, Look()) is image
    grey = 0.299 * 200 + 0.587 * 100
    assert recolor(image, Look(saturation=0.0)).flatten().tolist() == [round(grey)] * 3
    halfway = [round(grey + (value - grey) * 0.5) for value in (200, 100, 0)]
    assert recolor(image, Look(saturation=0.5)).flatten().tolist() == halfway
    assert recolor(image, Look(gamma=2.0)).flatten().tolist() == [round(200**2 / 255), round(100**2 / 255), 0]
    assert recolor(image, Look(saturation=9.0)).flatten().tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("photo", "settings", "full"),
    [
        ((40, 80), {}, (40, 80)),  # smaller than the working size: not enlarged
        ((400, 200), {"side": 100}, (141, 71)),
        ((40, 80), {"features": "vit_tiny_patch16_224", "weights": "random", "side": 160}, (112, 224)),
    ],
)
def test_sizes_of_views(photo, settings, full):
    extractor = build_extractor(ExploreConfig(**settings))
    image = torch.zeros((3, *photo), dtype=torch.uint8)
    views = dict(zip(LOOKS, make_looks(image, extractor, tuple(LOOKS)), strict=True))
    assert views["full"].lab.shape[1:] == full
    for name, look in LOOKS.items():
        view = views[name]
        assert view.photo_size == photo  # area limits are those of the photo
        for side, whole in zip(view.lab.shape[1:], full, strict=True):
            assert abs(side - look.scale * whole) <= (8 if "features" in settings else 0.51)


def test_looks_of_one_photo_differ():
    image = draw_scene(0, 64).image
    views = make_looks(image, build_extractor(ExploreConfig()), ("full", "faded", "vivid", "half"))
    torch.testing.assert_close(views[0].image, image)
    chroma = [view.lab[1:].norm(dim=0).mean() for view in views]
    assert chroma[1] < chroma[0] < chroma[2]


@pytest.mark.parametrize("looks", [(), ("full", "full")])
def test_looks_are_named_once(looks):
    shown = "none" if not looks else "full full"
    assert find_conflicts(Config(explore=ExploreConfig(looks=looks))) == [
        f"explore.looks = {shown}, expected at least one look, none of them twice"
    ]
