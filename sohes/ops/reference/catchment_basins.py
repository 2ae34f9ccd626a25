# SPDX-License-Identifier: Apache-2.0
"""Reference of catchment_basins: pointers to the lowest neighbour, doubled until they reach a minimum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def catchment_basins(height: Tensor) -> Tensor:
    """Basin of every pixel of height float32 [H, W], int64 [H, W], numbered 0..N-1 in the order of their minima.

    Each pixel points to the lowest among itself and its 4 neighbours inside the image, and belongs to the basin of the
    minimum that its pointers lead to. Of equal heights the pixel of smaller flat index is the lower one: this excludes
    cycles and gives few basins on a plateau. Heights are finite; an image without pixels has no basins.
    """
    rows, columns = height.shape
    index = torch.arange(rows * columns, device=height.device).view(rows, columns)  # [H, W]
    if height.numel() == 0:
        return index
    padded = F.pad(height[None, None], (1, 1, 1, 1), value=torch.inf)[0, 0]  # [H+2, W+2]
    lowest, target = height, index
    for dy, dx in ((-1, 0), (0, -1), (0, 1), (1, 0)):
        other = padded[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]  # [H, W]
        neighbour = index + dy * columns + dx
        lower = (other < lowest) | ((other == lowest) & (neighbour < target))
        target = torch.where(lower, neighbour, target)
        lowest = torch.minimum(lowest, other)
    target = target.flatten()  # [H*W]
    while True:
        further = target[target]
        if torch.equal(further, target):
            break
        target = further
    is_minimum = target == index.flatten()
    return (is_minimum.cumsum(0) - 1)[target].view(rows, columns)
