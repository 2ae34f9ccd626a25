# SPDX-License-Identifier: Apache-2.0
"""Reference of facility_location: greedy maximization of a sparse facility-location function."""

import numpy as np
import torch
from torch import Tensor


def facility_location(
    pairs: Tensor, similarity: Tensor, weights: Tensor, factors: Tensor, num: int
) -> tuple[Tensor, Tensor]:
    """Items order int64 [K], K = min(num, N), and their gains float32 [K], chosen one by one.

    gain(j) = factors[j] * sum_i weights[i] * max(0, sim(i, j) - max_{s chosen} sim(i, s))

    The next item is the one with the largest gain, of equal ones the smallest index; the maximum over no item is 0.
    sim(i, i) = 1, and 0 for two items that are no pair. Sums are float64 over i in increasing order, each product and
    sum rounded once, so that kernels agree exactly. Gains do not increase: the rounding is monotone as well.

    Args:
        pairs: int64 [E, 2], i < j, sorted, each once. similarity: float32 [E] in [0, 1].
        weights: float32 [N], >= 0. factors: float32 [N], > 0.
        num: of items to choose.
    """
    N, K = len(weights), min(num, len(weights))
    first, second = pairs.cpu().numpy().T  # [E] each
    own = np.arange(N)
    i = np.concatenate([first, second, own])  # [2*E + N], the item whose value is covered
    j = np.concatenate([second, first, own])  # [2*E + N], the item that covers it
    place = np.lexsort((i, j))  # [2*E + N], by j, then i
    i, j = i[place], j[place]
    alike = similarity.double().cpu().numpy()  # [E]
    alike = np.concatenate([alike, alike, np.ones(N)])[place]  # [2*E + N]
    start = np.searchsorted(j, np.arange(N + 1))  # [N + 1], of the entries of each j
    weight, factor = weights.double().cpu().numpy(), factors.double().cpu().numpy()  # [N] each
    covered, is_open = np.zeros(N), np.ones(N, bool)  # [N] each
    order, gains = np.zeros(K, np.int64), np.zeros(K, np.float32)  # [K] each
    for step in range(K):
        # bincount adds one by one, in order; sums of numpy are pairwise.
        sums = np.bincount(j, weight[i] * np.maximum(0, alike - covered[i]), minlength=N)  # [N]
        best = int(np.where(is_open, factor * sums, -1).argmax())
        order[step], gains[step], is_open[best] = best, factor[best] * sums[best], False
        near = slice(start[best], start[best + 1])
        covered[i[near]] = np.maximum(covered[i[near]], alike[near])
    return torch.from_numpy(order).to(weights.device), torch.from_numpy(gains).to(weights.device)
