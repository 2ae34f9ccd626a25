# SPDX-License-Identifier: Apache-2.0
"""Reference of non-maximum suppression and parents of packed masks, from the intersections of all pairs.

It compares exact integers with products in float64 that are rounded once, so kernels agree exactly.
"""

import torch
from torch import Tensor

from sohes.ops.reference.mask_pack import chunks


def mask_nms(words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, threshold: float, height: int) -> Tensor:
    """Masks that are kept, bool [N], from words int64 [N, V], areas int64 [N] and boxes int64 [N, 4].

    In `order` (int64 [K], distinct, best first) a mask is dropped if `shared > threshold * union` with a mask kept
    before it. Masks that are not in `order` are not kept.
    """
    keep = torch.zeros(len(words), dtype=torch.bool, device=words.device)  # [N]
    words, areas, boxes = words[order], areas[order], boxes[order]
    alive = torch.ones(len(words), dtype=torch.bool, device="cpu")  # [K], in order
    for chunk in chunks(len(words), len(words)):
        shared = torch.ops.sohes.mask_overlap(words[chunk], boxes[chunk], words, boxes, height)  # [n, K]
        union = areas[chunk, None] + areas - shared  # [n, K]
        duplicate = (shared > threshold * union.double()).cpu()  # [n, K]
        for index in range(chunk.start, chunk.stop):
            if alive[index]:
                alive[index + 1 :] &= ~duplicate[index - chunk.start, index + 1 :]
    keep[order] = alive.to(words.device)
    return keep


def mask_parents(words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, theta: float, height: int) -> Tensor:
    """Parents int64 [N], -1 for none, from words int64 [N, V], areas int64 [N] and boxes int64 [N, 4].

    The parent of i is the first j in `order` (int64 [N], smallest area first) with `shared >= theta * |i|` and
    `shared < theta * |j|`. An empty mask has no parent.
    """
    parents = torch.full_like(areas, -1)  # [N]
    needed = theta * areas.double()  # [N]
    for chunk in chunks(len(words), len(words)):
        shared = torch.ops.sohes.mask_overlap(words[chunk], boxes[chunk], words, boxes, height).double()  # [n, N]
        inside = (shared >= needed[chunk, None]) & (shared < needed) & (areas[chunk, None] > 0)  # [n, N]
        first = inside[:, order].to(torch.uint8).argmax(1)  # [n], the first in order
        parents[chunk] = torch.where(inside.any(1), order[first], -1)  # [n]
    return parents
