# SPDX-License-Identifier: Apache-2.0
"""Reference of merge_borders: merging by the features of regions and the edge strength along their borders."""

from __future__ import annotations

import heapq

import numpy as np
import torch
from torch import Tensor


def merge_borders(
    means: Tensor, sizes: Tensor, edges: Tensor, borders: Tensor, border_weight: float, size_exponent: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merges, costs, borders and number of merges when the cheapest adjacent pair is merged until none is left.

    cost(a, b) = (|mean_a - mean_b| + border_weight * strength / length) * (n_a n_b / ((n_a + n_b) n))^size_exponent

    n_a is the size of a and n that of all regions; the mean of a merged region is weighted by size; lengths and
    strengths of joined borders are added. With border_weight 0 and size_exponent 0.5 this is the square root of
    Ward's criterion (1963); with size_exponent 0 and a border weight alone, the mean-boundary merging of ultrametric
    contour maps (Arbelaez et al., 2011). Of equal costs the pair with the lower ids merges first.

    Args:
        means: float32 [N, C]. sizes: int64 [N], at least 1. edges: int32 [E, 2], each adjacent pair once.
        borders: float32 [E, 2], length (> 0) and summed strength of each border.

    Returns:
        merges int32 [N, 2], -1 after the last one; cost float32 [N]; shared float32 [N, 2], length and strength of the
        border when the pair was merged; num_merges int32 [1], N - 1 if the graph is connected.

    Sums are float32 as in the kernel, costs float64; the kernel may round products differently.
    """
    num_regions = len(means)
    mean = list(means.numpy())  # [C] each
    size = sizes.double().tolist()
    total = sum(size)
    around: list[dict[int, np.ndarray]] = [{} for _ in range(num_regions)]
    heap: list[tuple[float, int, int]] = []

    def push(a: int, b: int) -> None:
        length, strength = around[a][b].tolist()
        distance = float(np.sqrt(np.square((mean[a] - mean[b]).astype(np.float64)).sum()))
        harmonic = size[a] * size[b] / (size[a] + size[b]) / total
        cost = (distance + border_weight * strength / length) * harmonic**size_exponent
        heapq.heappush(heap, (cost, min(a, b), max(a, b)))

    for (a, b), border in zip(edges.tolist(), borders.numpy(), strict=True):
        around[a][b] = around[b][a] = border
        push(a, b)
    merges = torch.full((num_regions, 2), -1, dtype=torch.int32, device="cpu")
    costs = torch.zeros(num_regions, dtype=torch.float32, device="cpu")
    shared = torch.zeros(num_regions, 2, dtype=torch.float32, device="cpu")
    done = 0
    alive = set(range(num_regions))
    while heap:
        cost, a, b = heapq.heappop(heap)
        if a not in alive or b not in alive:
            continue
        merges[done], costs[done] = torch.tensor([a, b], device="cpu"), cost
        shared[done] = torch.from_numpy(around[a][b].copy())
        node = num_regions + done
        size.append(size[a] + size[b])
        weights = np.float32(size[a] / size[node]), np.float32(size[b] / size[node])
        mean.append(weights[0] * mean[a] + weights[1] * mean[b])
        joined: dict[int, np.ndarray] = {}
        for part in (a, b):
            for other, border in around[part].items():
                if other not in (a, b):
                    joined[other] = joined[other] + border if other in joined else border
        around.append(joined)
        alive -= {a, b}
        alive.add(node)
        for other, border in joined.items():
            around[other].pop(a, None)
            around[other].pop(b, None)
            around[other][node] = border
            push(other, node)
        done += 1
    return merges, costs, shared, torch.tensor([done], dtype=torch.int32, device="cpu")
