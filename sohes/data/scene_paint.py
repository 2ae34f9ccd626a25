# SPDX-License-Identifier: Apache-2.0
"""Colours and textures of drawn scenes. Colours are RGB, float32 in 0..1."""

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

PATTERNS = ("flat", "gradient", "stripes", "checks", "dots", "noise")


@dataclass(frozen=True)
class Look:
    """How a surface is painted: `colour` plus `pattern` in -1..1 times `contrast`, per channel [3]."""

    colour: np.ndarray
    contrast: np.ndarray
    pattern: str
    angle: float
    period: float


def random_colours(rng: Generator, count: int) -> np.ndarray:
    """`count` colours [count, 3] of any hue, neither black nor white."""
    hsv = rng.uniform((0, 0.15, 0.25), (1, 0.95, 0.97), (count, 3))
    return np.array([colorsys.hsv_to_rgb(*row) for row in hsv], dtype=np.float32)


def contrasting(candidates: np.ndarray, avoid: list[np.ndarray]) -> np.ndarray:
    """The candidate colour [3] whose nearest colour in `avoid` is farthest away; the first when `avoid` is empty."""
    if not avoid:
        return candidates[0]
    gaps = np.linalg.norm(candidates[:, None] - np.stack(avoid)[None], axis=-1)  # [candidates, avoid]
    return candidates[gaps.min(axis=1).argmax()]


def shifted(rng: Generator, colour: np.ndarray, distance: float, count: int) -> np.ndarray:
    """`count` colours [count, 3] about `distance` away from `colour`."""
    step = rng.standard_normal((count, 3))
    step *= distance / np.linalg.norm(step, axis=1, keepdims=True)
    return np.clip(colour + step, 0.04, 0.96).astype(np.float32)


def random_look(rng: Generator, colour: np.ndarray, scale: float, strength: float) -> Look:
    """A look around `colour`; `scale` in pixels sets the period of its pattern, `strength` its contrast."""
    tint = rng.uniform(0.5, 1, 3) * rng.uniform(0.4, 1) * strength
    pattern = str(rng.choice(PATTERNS, p=(0.34, 0.2, 0.14, 0.08, 0.08, 0.16)))
    period = max(3.0, scale * rng.uniform(0.2, 0.5))
    return Look(colour, tint.astype(np.float32), pattern, float(rng.uniform(0, np.pi)), period)


def paint(rng: Generator, look: Look, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The colours [h, w, 3] of a surface at pixel coordinates x [1, w] and y [h, 1], relative to its own centre."""
    if look.pattern == "flat":
        return np.broadcast_to(look.colour, (y.shape[0], x.shape[1], 3))
    u = x * np.float32(np.cos(look.angle)) + y * np.float32(np.sin(look.angle))  # [h, w], along the pattern
    wave = np.float32(2 * np.pi / look.period)
    if look.pattern == "gradient":
        value = u * np.float32(1.4 / max(u.max() - u.min(), 1.0))
    elif look.pattern == "noise":
        value = smooth_noise(rng, u.shape, look.period)
    elif look.pattern == "stripes":
        value = np.clip(3 * np.sin(u * wave), -1, 1)
    else:
        v = y * np.float32(np.cos(look.angle)) - x * np.float32(np.sin(look.angle))  # [h, w], across it
        value = np.sin(u * wave) * np.sin(v * wave)
        value = np.clip(4 * value, -1, 1) if look.pattern == "checks" else np.clip(6 * value - 2, -0.3, 1)
    return look.colour + value[..., None] * look.contrast


def smooth_noise(rng: Generator, shape: tuple[int, int], period: float) -> np.ndarray:
    """Noise [h, w] of two octaves, features about `period` pixels wide, mostly in -1..1."""
    height, width = shape
    total = np.zeros(shape, dtype=np.float32)
    for octave, weight in ((1, 0.7), (3, 0.35)):
        cells = (int(height * octave / period) + 2, int(width * octave / period) + 2)
        grid = Image.fromarray(rng.standard_normal(cells, dtype=np.float32))
        total += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
    return total
