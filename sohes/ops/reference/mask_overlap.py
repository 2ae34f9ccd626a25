# SPDX-License-Identifier: Apache-2.0
"""Reference of mask_overlap: the number of pixels in the intersection of every pair of packed masks."""

import torch
from torch import Tensor

WORDS_AT_A_TIME = 1 << 10  # 65,536 pixels: float32 sums of zeros and ones are exact below 2**24


def mask_overlap(words_a: Tensor, boxes_a: Tensor, words_b: Tensor, boxes_b: Tensor, height: int) -> Tensor:
    """Intersections int64 [N, M]: `out[i, j] = sum_v popcount(a[i, v] & b[j, v])`.

    Args:
        words_a, words_b: int64 [N, V] and [M, V]; N, M and V may be 0.
        boxes_a, boxes_b: int64 [N, 4] and [M, 4], (x0, y0, x1, y1), half-open. No pixel is outside its box, so kernels
            skip pairs of disjoint boxes; not used here.
        height: of the masks; not used here.
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
