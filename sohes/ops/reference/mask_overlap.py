# SPDX-License-Identifier: Apache-2.0
"""mask_overlap, defined: the number of pixels that two packed masks share, for every pair."""

import torch
from torch import Tensor

WORDS_AT_A_TIME = 1 << 10  # 65,536 pixels: float32 sums of zeros and ones are exact below 2**24


def mask_overlap(words_a: Tensor, boxes_a: Tensor, words_b: Tensor, boxes_b: Tensor, height: int) -> Tensor:
    """words int64 [N, V] and [M, V], boxes int64 [N, 4] and [M, 4] -> intersections int64 [N, M].

    `out[i, j] = sum_v popcount(a[i, v] & b[j, v])`. The boxes (x0, y0, x1, y1, half-open) promise that no bit lies
    outside, with which faster twins skip pairs; here they, and the height of the masks, are not needed.
    N = 0, M = 0 and V = 0 are legal.
    """
    overlap = words_a.new_zeros((len(words_a), len(words_b)))  # [N, M]
    for start in range(0, words_a.shape[1], WORDS_AT_A_TIME):
        bits_a = _bits(words_a[:, start : start + WORDS_AT_A_TIME])  # [N, 64*v]
        bits_b = _bits(words_b[:, start : start + WORDS_AT_A_TIME])  # [M, 64*v]
        overlap += (bits_a @ bits_b.T).long()  # [N, M]
    return overlap


def _bits(words: Tensor) -> Tensor:
    """words int64 [N, v] -> float32 [N, 64*v] of zeros and ones."""
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)  # [8]
    octets = words.contiguous().view(torch.uint8)  # [N, 8*v]
    return ((octets[:, :, None] >> shifts) & 1).flatten(1).float()  # [N, 64*v]
