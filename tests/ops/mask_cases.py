# SPDX-License-Identifier: Apache-2.0
"""Masks for tests and benchmarks of the mask operators, in tables of sizes and kinds."""

import numpy as np
import torch

# Nothing, one pixel, one row, one column, a word and its neighbours, more than one block of 64, and a photo's shape.
SIZES = [(0, 5), (5, 0), (1, 1), (1, 70), (70, 1), (8, 8), (13, 5), (63, 65), (64, 64), (65, 130), (130, 33), (480, 3)]


def empty(rng, n, height, width):
    return np.zeros((n, height, width), bool)


def full(rng, n, height, width):
    return np.ones((n, height, width), bool)


def noise(rng, n, height, width):
    return rng.random((n, height, width)) < rng.random((n, 1, 1))


def pixels(rng, n, height, width):
    """One pixel per mask."""
    masks = np.zeros((n, height * width), bool)
    if height * width:
        masks[np.arange(n), rng.integers(height * width, size=n)] = True
    return masks.reshape(n, height, width)


def rectangles(rng, n, height, width):
    y, x = np.arange(height)[:, None], np.arange(width)
    y0, y1 = np.sort(rng.integers(0, height + 1, (2, n, 1, 1)), 0)
    x0, x1 = np.sort(rng.integers(0, width + 1, (2, n, 1, 1)), 0)
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


def stripes(rng, n, height, width):
    y, x = np.arange(height)[:, None], np.arange(width)
    a, b, period = rng.integers(0, 3, (n, 1, 1)), rng.integers(0, 3, (n, 1, 1)), rng.integers(1, 6, (n, 1, 1))
    return (a * y + b * x) // period % 2 == 1


def blobs(rng, n, height, width):
    """Smooth shapes, most about as large as objects in photos."""
    return _waves(rng, n, height, width) > 0


def rings(rng, n, height, width):
    """Shapes with holes and parts."""
    return np.abs(_waves(rng, n, height, width)) < 0.4


KINDS = [empty, full, noise, pixels, rectangles, stripes, blobs, rings]


def mixed(seed: int, height: int, width: int, each: int = 3) -> torch.Tensor:
    """`each` masks of every kind, bool [len(KINDS) * each, H, W]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.concatenate([kind(rng, each, height, width) for kind in KINDS]))


def object_logits(num_masks: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Mask logits like those of a model, float32 [N, h, w]: wavy discs with areas from 0.1 % to 50 % of the image."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    logits = torch.empty(num_masks, height, width)
    for row, (cy, cx, u, v) in zip(logits, torch.rand(num_masks, 4, generator=rng), strict=True):
        radius = 0.02 + 0.36 * u**3
        angle = torch.atan2(y - cy, x - cx)
        row[:] = 20 * (radius * (1 + 0.3 * torch.sin(5 * angle + 6 * v)) - torch.hypot(y - cy, (x - cx) * (0.7 + v)))
    return logits


def _waves(rng, n, height, width):
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    angle, phase = rng.random((2, n, 4, 1, 1)) * 2 * np.pi
    scale = rng.random((n, 4, 1, 1)) * 9
    return np.sin(scale * (np.cos(angle) * y + np.sin(angle) * x) + phase).sum(1) - rng.random((n, 1, 1))
