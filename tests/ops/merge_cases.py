# SPDX-License-Identifier: Apache-2.0
"""Feature maps for merge_regions, shared by its tests and benchmarks."""

import numpy as np

EDGE_CASES = ("single", "row", "column", "one_channel", "equal", "zeros", "zero_norm", "nan", "infinite", "opposite")
KINDS = ("ties", "binary", "noise", "shifted", "collinear", "cancelling", "huge_range", "stripes")


def edge_case(name: str) -> np.ndarray:
    """A feature map for an edge case, float32 [h, w, C]."""
    rng = np.random.default_rng(0)
    if name in ("single", "row", "column"):
        height, width = {"single": (1, 1), "row": (1, 9), "column": (9, 1)}[name]
        return rng.normal(size=(height, width, 5)).astype(np.float32)
    features = rng.normal(size=(5, 6, 7)).astype(np.float32)
    if name == "one_channel":
        return features[..., :1]
    if name == "equal":
        features[:] = features[0, 0]
    elif name == "zeros":
        features[:] = 0
    elif name == "zero_norm":
        features[1, 2] = features[3, 3] = features[3, 4] = 0
    elif name == "nan":
        features[2, 2, 0] = np.nan
        features[4, 5] = np.nan
    elif name == "infinite":
        features[0, 0, 1] = np.inf
        features[3, 1] *= 1e38
        features[3, 2] *= 1e38
    elif name == "opposite":  # every sum of two neighbours is exactly zero
        features[:] = features[0, 0]
        features[(np.arange(5)[:, None] + np.arange(6)) % 2 == 1] *= -1
    return features


def random_map(kind: str, seed: int, most: int = 8) -> np.ndarray:
    """A feature map with ties, rounding or loose bounds, float32 [h, w, C], up to `most` patches per side."""
    rng = np.random.default_rng(seed)
    height, width, channels = rng.integers(1, most + 1), rng.integers(1, most + 1), rng.integers(1, 35)
    shape = (height, width, channels)
    if kind == "ties":
        features = rng.integers(-2, 3, shape)
    elif kind == "binary":
        features = rng.integers(0, 2, shape)
    elif kind == "noise":
        features = rng.normal(size=shape)
    elif kind == "shifted":  # one direction and little else: similarities are close together
        features = rng.normal(size=shape) * 0.1 + rng.normal(size=channels)
    elif kind == "collinear":  # equal similarities up to the last bits
        features = rng.normal(size=channels) * rng.uniform(0.1, 10, (height, width, 1))
    elif kind == "cancelling":  # neighbours that nearly cancel each other
        sign = np.where((np.arange(height)[:, None] + np.arange(width)) % 2, 1, -1)[..., None]
        features = sign * rng.normal(size=channels) + 1e-4 * rng.normal(size=shape)
    elif kind == "huge_range":
        features = rng.normal(size=shape) * 10.0 ** rng.uniform(-20, 18, (height, width, 1))
    elif kind == "stripes":
        features = np.zeros(shape)
        features[np.arange(height), :, np.arange(height) % channels] = 1
        features += rng.integers(0, 2, shape) * 0.25
    return features.astype(np.float32)


def scene_map(side: int, channels: int = 768, seed: int = 0, noise: float = 0.6) -> np.ndarray:
    """A feature map like the keys of a ViT, float32 [side, side, channels]: nested objects, slow drift, patch noise.

    Cosines of neighbours are about 0.87 inside an object, and around 0.4 when the last regions merge.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:side, 0:side] / side
    label = np.zeros((side, side), dtype=int)
    num_objects = 40
    for k in range(1, num_objects):
        y, x = rng.random(2)
        height, width = rng.uniform(0.03, 0.25, 2)
        label[((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1] = k
    objects = rng.normal(size=(num_objects, channels))
    waves = rng.uniform(0, 20, size=(24, 3))
    drift = np.cos(waves[:, 0, None, None] * rows + waves[:, 1, None, None] * columns + waves[:, 2, None, None])
    features = objects[label] + 0.7 * rng.normal(size=channels)
    features += 0.6 * np.tensordot(drift, rng.normal(size=(24, channels)), axes=(0, 0)) / np.sqrt(12)
    return (features + noise * rng.normal(size=features.shape)).astype(np.float32)
