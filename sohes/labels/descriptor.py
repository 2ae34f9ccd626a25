# SPDX-License-Identifier: Apache-2.0
"""The descriptor: patch features without weights, from colour, texture and position.

Merging compares the cosine of *summed* features, which for raw statistics depends mostly on their signs and scales. So
each statistic s is mapped to random Fourier features (Rahimi and Recht, 2007), whose inner product approximates the
Gaussian kernel exp(-|s - t|^2 / 2 sigma^2). A sum over a region then represents the distribution of s in it, and the
cosine of two sums the overlap of two distributions. The frequencies are drawn from a fixed seed.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.configs.run import ExploreConfig
from sohes.labels.view import View

_NUM_ORIENTATIONS = 4
_COLOR_FREQUENCIES, _TEXTURE_FREQUENCIES, _POSITION_FREQUENCIES = 32, 16, 16
# For colours that are compared one by one, not summed to distributions.
_PLAIN_FREQUENCIES = 16
# Within one surface lightness varies more than hue (shading), so its kernel is wider by this factor.
_LIGHTNESS_WIDTH = 1.5


def describe(view: View, config: ExploreConfig) -> Tensor:
    """Descriptor of each patch, float32 [h, w, C]; in a constant image features differ by position only."""
    h, w = view.grid
    lab = view.pool(view.lab)  # [h*w, 3]
    color = _embed(lab, _color_widths(config), _COLOR_FREQUENCIES, seed=0)  # [h*w, 64]
    spread = (view.pool(view.lab[:1].square()) - lab[:, :1].square()).clamp_min(0).sqrt()  # [h*w, 1]
    texture = torch.cat([spread, view.pool(orientation_energy(view.lab[0]))], 1)  # [h*w, 5]
    widths = texture.new_full((texture.shape[1],), config.texture_width)
    texture = _embed(texture, widths, _TEXTURE_FREQUENCIES, seed=1)  # [h*w, 32]
    features = torch.cat([color, config.texture_weight * texture], 1)  # [h*w, 96]
    features = diffuse(features.T.view(-1, h, w), lab.T.view(-1, h, w), config)  # [96, h, w]
    widths = lab.new_full((2,), config.place_width)
    position = _embed(_positions(view), widths, _POSITION_FREQUENCIES, seed=2)  # [h*w, 32]
    return torch.cat([features.flatten(1).T, config.place_weight * position], 1).view(h, w, -1)


def orientation_energy(lightness: Tensor) -> Tensor:
    """Gradient magnitude of lightness [H, W] split by orientation (cos^2 tuning), float32 [4, H, W]."""
    padded = F.pad(lightness[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]  # [H+2, W+2]
    dx = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2  # [H, W]
    dy = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2  # [H, W]
    magnitude = torch.hypot(dx, dy).clamp_min(1e-6)
    angles = [k * pi / _NUM_ORIENTATIONS for k in range(_NUM_ORIENTATIONS)]
    directions = [(dx.new_tensor(a).cos(), dx.new_tensor(a).sin()) for a in angles]
    return torch.stack([(dx * c + dy * s).square() / magnitude for c, s in directions])


def diffuse(features: Tensor, lab: Tensor, config: ExploreConfig) -> Tensor:
    """Features [C, h, w] smoothed inside surfaces but not across edges (anisotropic diffusion, Perona and Malik, 1990).

    In each step two neighbours exchange exp(-|difference of lab|^2 / diffusion_contrast^2) / 4 of their difference.
    """
    across = _conductance(lab[:, :, 1:] - lab[:, :, :-1], config.diffusion_contrast)  # [h, w-1]
    down = _conductance(lab[:, 1:] - lab[:, :-1], config.diffusion_contrast)  # [h-1, w]
    for _ in range(config.diffusion_steps):
        flow_x = (features[:, :, 1:] - features[:, :, :-1]) * across
        flow_y = (features[:, 1:] - features[:, :-1]) * down
        features = features.clone()
        features[:, :, :-1] += flow_x
        features[:, :, 1:] -= flow_x
        features[:, :-1] += flow_y
        features[:, 1:] -= flow_y
    return features


def embed_color(lab: Tensor, config: ExploreConfig) -> Tensor:
    """Colours in Lab, float32 [P, 3] -> features [P, 32] of norm 1, whose distance grows with that of the colours."""
    return _embed(lab, _color_widths(config), _PLAIN_FREQUENCIES, seed=0)


def _conductance(difference: Tensor, contrast: float) -> Tensor:
    return torch.exp(-difference.square().sum(0) / contrast**2) / 4


def _color_widths(config: ExploreConfig) -> Tensor:
    return config.color_width * torch.tensor([_LIGHTNESS_WIDTH, 1.0, 1.0], dtype=torch.float32, device="cpu")


def _positions(view: View) -> Tensor:
    """(y, x) of patch centres, float32 [h*w, 2], in units of the square root of the image's area."""
    h, w = view.grid
    height, width = view.lab.shape[1:]
    unit = (height * width) ** 0.5
    y = (torch.arange(h, dtype=torch.float32, device=view.lab.device) + 0.5) * (height / h / unit)
    x = (torch.arange(w, dtype=torch.float32, device=view.lab.device) + 0.5) * (width / w / unit)
    return torch.cartesian_prod(y, x).view(-1, 2)


def _embed(values: Tensor, widths: Tensor, num_frequencies: int, seed: int) -> Tensor:
    """Random Fourier features of values [P, S], [P, 2 * num_frequencies] of norm 1; `widths` [S] are the kernels'."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(widths), num_frequencies)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(widths.device)
    frequencies = drawn / widths[:, None]  # [S, D]
    phases = values @ frequencies  # [P, D]
    return torch.cat([phases.cos(), phases.sin()], 1) / num_frequencies**0.5
