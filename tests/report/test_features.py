# SPDX-License-Identifier: Apache-2.0
"""Features as pictures."""

from __future__ import annotations

import base64
import re

import torch

from sohes.configs.run import ExploreConfig
from sohes.data.scenes import draw_scene
from sohes.labels.features import build_extractor
from sohes.report import write_report
from sohes.report.features import features_section, pca_pictures, write_feature_pictures


def test_components_are_shared_and_orthogonal():
    """Two surfaces that differ in one direction only: the same colour channel separates them in both photos."""
    torch.manual_seed(0)
    here, there = torch.randn(16), torch.randn(16)
    left = torch.where(torch.arange(12)[None, :, None] < 5, here, there).expand(10, 12, 16)
    right = here.expand(6, 8, 16)
    noise = [0.01 * torch.randn_like(one) for one in (left, right)]
    first, second = pca_pictures([left + noise[0], right + noise[1]])
    assert first.shape == (3, 10, 12)
    assert second.shape == (3, 6, 8)
    assert first.dtype == torch.uint8
    reds = first[0].float()
    assert (reds[:, :5].mean() - reds[:, 5:].mean()).abs() > 200
    assert (second[0].float().mean() - reds[:, :5].mean()).abs() < 15


def test_few_channels_and_constant_features():
    (picture,) = pca_pictures([torch.ones(4, 5, 2)])
    assert picture.shape == (3, 4, 5)
    assert not picture[2].any()


def test_pictures_go_into_the_report(tmp_path):
    assert features_section(tmp_path) == ""
    photos = [draw_scene(seed, 64).image[:, :48] for seed in range(11)]
    write_feature_pictures(tmp_path, build_extractor(ExploreConfig()), photos)
    html = write_report(tmp_path).read_text()
    uris = re.findall(r'<figure class="pair"><img src="data:image/png;base64,([^"]*)" alt="photo (\d+)">', html)
    assert [int(number) for _, number in uris] == list(range(1, 12))  # by number: 10 comes after 9
    assert base64.b64decode(uris[10][0]) == (tmp_path / "features" / "10-photo.png").read_bytes()
