# SPDX-License-Identifier: Apache-2.0
"""Patch features as pictures: their first three principal components over some photos as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sohes.labels.features import FeatureExtractor
from sohes.report.photos import data_uri
from sohes.utils.files import whole_file

FOLDER = "features"


def pca_pictures(features: Sequence[Tensor]) -> list[Tensor]:
    """Pictures uint8 [3, h, w] of the features [h, w, C] of several photos, by principal components over all photos.

    The 2nd and 98th percentile of each component map to 0 and 255. With fewer than three channels the last colours
    are black.
    """
    rows = torch.cat([one.flatten(0, 1) for one in features]).double()  # [M, C]
    rows = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(rows.T @ rows)  # columns, by ascending eigenvalue
    axes = vectors[:, -3:].flip(1)  # [C, 3]
    axes = axes * torch.where(axes.sum(0) < 0, -1.0, 1.0)  # the sign of an eigenvector is arbitrary
    parts = rows @ axes  # [M, 3]
    low, high = torch.quantile(parts, 0.02, dim=0), torch.quantile(parts, 0.98, dim=0)
    scaled = ((parts - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).mul(255).round().to(torch.uint8)
    pictures = []
    for one, colors in zip(features, scaled.split([one.shape[0] * one.shape[1] for one in features]), strict=True):
        colors = F.pad(colors, (0, 3 - colors.shape[1]))
        pictures.append(colors.view(*one.shape[:2], 3).permute(2, 0, 1).contiguous())
    return pictures


def write_feature_pictures(run: Path, extractor: FeatureExtractor, photos: Sequence[Tensor]) -> None:
    """Write photos, uint8 [3, H, W] each, and pictures of their features into `features/` of a run."""
    pictures = pca_pictures(extractor([extractor.view(photo) for photo in photos]))
    folder = run / FOLDER
    for index, (photo, picture) in enumerate(zip(photos, pictures, strict=True)):
        size = (photo.shape[2], photo.shape[1])
        components = Image.fromarray(picture.permute(1, 2, 0).numpy())
        original = Image.fromarray(photo.permute(1, 2, 0).contiguous().numpy())
        for name, image in (("pca", components.resize(size, Image.Resampling.NEAREST)), ("photo", original)):
            with whole_file(folder / f"{index}-{name}.png", "wb") as file:
                image.save(file, "png")


def features_section(run: Path) -> str:
    """The pictures in `features/` as pairs of photo and components; "" if there are none."""
    figures = []
    for path in sorted((run / FOLDER).glob("*-photo.png"), key=lambda path: int(path.name.partition("-")[0])):
        number = path.name.partition("-")[0]
        pair = (path, path.with_name(f"{number}-pca.png"))
        names = (f"photo {int(number) + 1}", f"principal components of the features of photo {int(number) + 1}")
        images = "".join(
            f'<img src="{data_uri(one.read_bytes(), "png")}" alt="{name}">'
            for one, name in zip(pair, names, strict=True)
            if one.is_file()
        )
        figures.append(f'<figure class="pair">{images}</figure>')
    if not figures:
        return ""
    note = "Photos, and the first three principal components of their patches' features as red, green and blue."
    return f'<section><h2>Features</h2><p class="note">{note}</p><div class="row">{"".join(figures)}</div></section>'
