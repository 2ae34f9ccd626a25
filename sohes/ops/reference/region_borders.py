# SPDX-License-Identifier: Apache-2.0
"""Reference of region_borders: the pixel sides between two regions, grouped by pair."""

from __future__ import annotations

import torch
from torch import Tensor


def region_borders(labels: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """Adjacent pairs of regions, int64 [E, 2], (lower, higher), sorted, and their borders, float32 [E, 2].

    labels: int64 [H, W], 0..N-1. strength: of an edge at each pixel, float32 [H, W]. A border is the number of pixel
    sides between the two regions, and the sum of their strengths: of a side, the larger one of its two pixels, NaN if
    one of them is. Sums are float64, first over sides in rows, then over sides in columns. One region, or no pixel, has
    no pairs.
    """
    a = torch.cat([labels[:, :-1].flatten(), labels[:-1].flatten()])
    b = torch.cat([labels[:, 1:].flatten(), labels[1:].flatten()])
    right = torch.maximum(strength[:, :-1], strength[:, 1:]).flatten()
    down = torch.maximum(strength[:-1], strength[1:]).flatten()
    across = (a != b).nonzero()[:, 0]  # [S]
    a, b, sides = a[across], b[across], torch.cat([right, down])[across]  # [S] each
    num_regions = int(labels.max()) + 1 if labels.numel() else 0
    keys, place = torch.unique(torch.minimum(a, b) * num_regions + torch.maximum(a, b), return_inverse=True)  # [E], [S]
    edges = torch.stack([keys // max(num_regions, 1), keys % max(num_regions, 1)], 1)
    sums = torch.bincount(place, sides.double(), minlength=len(keys))
    borders = torch.stack([torch.bincount(place, minlength=len(keys)).double(), sums], 1)
    return edges, borders.float()
