# SPDX-License-Identifier: Apache-2.0
"""Looks at a photo: the same photo at several scales and with changed colours, each of which is clustered alone.

A merge tree is one opinion on where regions end. What other looks at the photo find again is more likely an entity; see
`sohes.labels.consensus`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sohes.configs.run import LookName
from sohes.labels.features import FeatureExtractor
from sohes.labels.view import View

# Luma of ITU-R BT.601, the grey that saturation is relative to.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Look:
    """One look at a photo.

    scale: of each side, relative to the working size. gamma: exponent of the RGB values in 0..1. saturation: factor on
    the difference to grey.
    """

    scale: float = 1.0
    gamma: float = 1.0
    saturation: float = 1.0


LOOKS: dict[LookName, Look] = {
    "full": Look(),
    "half": Look(scale=0.5),
    "third": Look(scale=0.35),
    "faded": Look(gamma=1.5, saturation=0.5),
    "vivid": Look(gamma=0.7, saturation=1.6),
}


def recolor(image: Tensor, look: Look) -> Tensor:
    """An image uint8 [3, H, W] with the gamma and the saturation of a look."""
    if look.gamma == 1 and look.saturation == 1:
        return image
    curve = (torch.arange(256, dtype=torch.float32, device=image.device) / 255) ** look.gamma  # [256]
    rgb = curve[image.long()]  # [3, H, W]
    grey = torch.einsum("c,chw->hw", rgb.new_tensor(_LUMA), rgb)  # [H, W]
    return (grey + (rgb - grey) * look.saturation).clamp(0, 1).mul(255).round().byte()


def make_looks(image: Tensor, extractor: FeatureExtractor, names: Sequence[LookName]) -> list[View]:
    """The views of some looks at a photo uint8 [3, H, W]; the area limits of masks are those of the photo in each."""
    full = extractor.view(image)
    views = []
    for look in (LOOKS[name] for name in names):
        if look == Look():
            views.append(full)
        else:
            view = extractor.view(recolor(full.image, look), look.scale)
            views.append(replace(view, photo_size=full.photo_size))
    return views
