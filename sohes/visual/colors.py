# SPDX-License-Identifier: Apache-2.0
"""Colours for a forest of masks: descendants share the hue of their root, siblings differ.

Roots have hues that colour-blind readers can distinguish (the set of Okabe and Ito, "Color Universal Design", 2008).
A child varies the hue of its parent a little and the lightness more, so that siblings differ in lightness too.
Colours depend on the forest alone: a mask has the same colour in every picture.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sohes.structures.forest import Forest

# The colours of Okabe and Ito without black, which is invisible on a dark photo; neighbours in the list differ most.
_ROOT_COLORS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)
_LIGHTNESS_CYCLE = (0.0, -0.13, 0.10)  # added for roots beyond the seven colours, per cycle of the list
_GOLDEN = (math.sqrt(5) - 1) / 2
_GAMUT_STEPS = 21


def forest_colors(forest: Forest) -> Tensor:
    """Colour of every mask: uint8 [N, 3], sRGB. Masks are ranked by score, then area, then index."""
    parents, areas, scores = forest.parents.tolist(), forest.masks.areas.tolist(), forest.scores.tolist()
    children: dict[int, list[int]] = {}
    for mask in sorted(range(len(forest)), key=lambda i: (-scores[i], -areas[i], i)):
        children.setdefault(parents[mask], []).append(mask)

    anchors = [srgb_to_oklch(color) for color in _ROOT_COLORS]
    lch: dict[int, tuple[float, float, float]] = {}
    for rank, root in enumerate(children.get(-1, [])):
        cycle, slot = divmod(rank, len(anchors))
        lightness, chroma, hue = anchors[slot]
        # Hues of each cycle lie between those of earlier cycles (golden ratio of the mean gap).
        hue += 360 / len(anchors) * ((cycle * _GOLDEN) % 1)
        lch[root] = (lightness + _LIGHTNESS_CYCLE[cycle % len(_LIGHTNESS_CYCLE)], chroma, hue)

    stack = [(root, 1) for root in children.get(-1, [])]
    while stack:
        parent, depth = stack.pop()
        family = children.get(parent, [])
        lightness, chroma, hue = lch[parent]
        spread = 56 / 2**depth if len(family) > 1 else 0.0
        for rank, child in enumerate(family):
            offset = 2 * rank / max(len(family) - 1, 1) - 1  # -1 .. 1 over the siblings
            step = (0.14, -0.14, 0.07)[rank % 3]
            # A step out of the visible range is reversed; clipped, the child would look like its parent.
            step = -step if not 0.32 <= lightness + step <= 0.93 else step
            lch[child] = (lightness + step, chroma * 0.95, hue + spread * offset)
            stack.append((child, depth + 1))

    colors = [oklch_to_srgb(*lch[mask]) for mask in range(len(forest))]
    return torch.tensor(colors, dtype=torch.uint8, device="cpu").reshape(-1, 3)


# Colour space: Oklab (B. Ottosson, 2020), in which equal steps of lightness look equal for every hue.
_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_LMS_TO_RGB, _LAB_TO_LMS = np.linalg.inv(_RGB_TO_LMS), np.linalg.inv(_LMS_TO_LAB)


def srgb_to_oklch(color: Sequence[int]) -> tuple[float, float, float]:
    """sRGB 0..255 -> lightness 0..1, chroma, hue in degrees."""
    srgb = np.asarray(color, dtype=np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lightness, a, b = _LMS_TO_LAB @ np.cbrt(_RGB_TO_LMS @ linear)
    return float(lightness), float(np.hypot(a, b)), float(np.degrees(np.arctan2(b, a)))


def oklch_to_srgb(lightness: float, chroma: float, hue: float) -> tuple[int, int, int]:
    """Inverse of `srgb_to_oklch`; outside sRGB the chroma, not lightness or hue, is reduced until the colour fits."""
    lightness = min(max(lightness, 0.0), 1.0)
    for share in np.linspace(1, 0, _GAMUT_STEPS):
        angle = math.radians(hue)
        lab = np.array([lightness, share * chroma * math.cos(angle), share * chroma * math.sin(angle)])
        linear = _LMS_TO_RGB @ (_LAB_TO_LMS @ lab) ** 3
        if linear.min() >= -1e-4 and linear.max() <= 1 + 1e-4:
            break
    linear = linear.clip(0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(float(value) * 255) for value in srgb)
    return red, green, blue
