# SPDX-License-Identifier: Apache-2.0
"""Reference of mask_from_nodes: nodes of merge trees drawn as packed masks."""

import torch
from torch import Tensor

from sohes.ops.reference.mask_pack import mask_stats, num_words
from sohes.ops.reference.mask_regions import mask_fill_holes

# Pixels written at a time, which bounds the memory for any number of masks.
_CHUNK = 1 << 22


def mask_from_nodes(
    leaves: Tensor, orders: Tensor, nodes: Tensor, fill_holes: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Words int64 [N, V], areas int64 [N] and boxes int64 [N, 4] of nodes of T merge trees over the same L leaves.

    Mask n has the pixels whose leaf is one of `orders[tree, start:stop]`, for `(tree, start, stop) = nodes[n]`. With
    the pixels in the order of the leaves every node is one slice, so the cost is the total area of the masks.

    Args:
        leaves: int64 [H, W], the leaf of every pixel, from 0 to L - 1; a leaf may have no pixels.
        orders: int64 [T, L], the leaves of each tree depth first: each row a permutation.
        nodes: int64 [N, 3]; a node with start == stop is empty.
        fill_holes: whether holes are filled, as `mask_fill_holes` fills them.
    """
    height, width = leaves.shape
    words = torch.zeros((len(nodes), num_words((height, width))), dtype=torch.int64, device=leaves.device)  # [N, V]
    for tree, order in enumerate(orders):
        chosen = (nodes[:, 0] == tree).nonzero()[:, 0]  # [n]
        words[chosen] = _draw(leaves, order, nodes[chosen, 1], nodes[chosen, 2])
    if fill_holes:
        words = mask_fill_holes(words, height, width)
    return words, *mask_stats(words, height, width)


def _draw(leaves: Tensor, order: Tensor, starts: Tensor, stops: Tensor) -> Tensor:
    """Words int64 [n, V] of nodes of one tree: leaves order[start:stop]."""
    places = torch.arange(len(order) + 1, device=order.device)  # [L + 1]
    position = torch.empty_like(order).index_copy_(0, order, places[:-1])  # [L], of each leaf
    rank, bits = position[leaves.T.flatten()].sort(stable=True)  # [H*W]: bits of packed masks, column by column
    begin = torch.searchsorted(rank, places)  # [L + 1]
    first, last = begin[starts], begin[stops]  # [n]
    words = leaves.new_zeros((len(starts), num_words((leaves.shape[0], leaves.shape[1]))))  # [n, V]
    chunks = ((last - first).cumsum(0) // _CHUNK).tolist()
    for chunk in sorted(set(chunks)):
        chosen = [i for i, of in enumerate(chunks) if of == chunk]
        inside = torch.cat([bits[first[i] : last[i]] for i in chosen])
        owner = torch.repeat_interleave(torch.tensor(chosen, device=first.device), (last - first)[chosen])
        # Every bit is added once, which sets it.
        words.view(-1).index_add_(0, owner * words.shape[1] + inside // 64, torch.ones_like(inside) << (inside % 64))
    return words
