# SPDX-License-Identifier: Apache-2.0
"""Reference of mask_pairs: the pairs of packed masks with a large IoU, from the intersections of all pairs.

It compares exact integers with products in float64 that are rounded once, so kernels agree exactly.
"""

import torch
from torch import Tensor

from sohes.ops.reference.mask_pack import chunks


def mask_pairs(words: Tensor, areas: Tensor, boxes: Tensor, min_iou: float, height: int) -> tuple[Tensor, Tensor]:
    """Pairs int64 [E, 2] (i < j, sorted) and IoU float32 [E], from words int64 [N, V], areas [N] and boxes [N, 4].

    A pair counts if `shared > 0` and `shared >= min_iou * union`; two empty masks do not. The IoU is the quotient in
    float64, rounded to float32. Memory grows with N + E, not with N * N.
    """
    pairs, ious = [areas.new_zeros((0, 2))], [areas.new_zeros(0, dtype=torch.float32)]  # [e, 2] and [e] each
    for chunk in chunks(len(words), len(words)):
        start = chunk.start
        shared = torch.ops.sohes.mask_overlap(
            words[chunk], boxes[chunk], words[start:], boxes[start:], height
        )  # [n, M]
        union = areas[chunk, None] + areas[start:] - shared  # [n, M]
        enough = (shared > 0) & (shared >= min_iou * union.double())  # [n, M]
        found = enough.triu(1).nonzero()  # [e, 2]
        i, j = found.unbind(1)  # [e] each
        pairs.append(found + chunk.start)
        ious.append((shared[i, j].double() / union[i, j].double()).float())
    return torch.cat(pairs), torch.cat(ious)
