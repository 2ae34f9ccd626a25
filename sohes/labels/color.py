# SPDX-License-Identifier: Apache-2.0
"""RGB to CIE Lab, where the distance of two colours is close to the difference that humans see."""

from __future__ import annotations

import torch
from torch import Tensor

# Linear sRGB -> CIE XYZ for the white point D65 (IEC 61966-2-1), rows divided by the white's own X, Y, Z.
_RGB_TO_XYZ = (
    (0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754),
)


def rgb_to_lab(image: Tensor) -> Tensor:
    """uint8 [3, H, W], sRGB -> float32 [3, H, W]: L in 0..100, a and b about -110..110 (CIE 1976, white D65)."""
    levels = torch.arange(256, dtype=torch.float32, device=image.device) / 255  # [256]
    linear = torch.where(levels > 0.04045, ((levels + 0.055) / 1.055) ** 2.4, levels / 12.92)  # [256]
    rgb = linear.index_select(0, image.flatten().int()).view(image.shape)  # [3, H, W]
    matrix = torch.tensor(_RGB_TO_XYZ, dtype=torch.float32, device=image.device)  # [3, 3]
    xyz = (matrix @ rgb.flatten(1)).view_as(rgb)  # [3, H, W]
    light, dark = xyz.clamp_min(0.008856).pow_(1 / 3), xyz.mul(7.787).add_(16 / 116)  # [3, H, W] each
    root = torch.where(xyz > 0.008856, light, dark)  # [3, H, W]
    x, y, z = root
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])  # [3, H, W]
