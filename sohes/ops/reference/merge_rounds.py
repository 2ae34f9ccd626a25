# SPDX-License-Identifier: Apache-2.0
"""Reference of merge_rounds: all mutually best pairs merge at once. The parallel alternative to the exact greedy order.

Regions, their similarity and the order among pairs (similarity down, lower id up, higher id up) are those of
`sohes/ops/reference/merge_regions.py`. What is different:

Rounds. In a round, every region looks for the best pair that it is in. The pairs that are the best of both their
regions all merge; their new regions get the next ids in the order of their lower ids. The best pair of all is among
them, so every round merges something; rounds follow each other until no pair is left. A pair may therefore merge
before a better one elsewhere has, and what would have become of it by waiting is lost: the tree differs from the
exact one where a merge makes a similarity rise.

Heights. The height of a merge is the lowest similarity among it and all merges below it. The tree lists merges by
falling height, those of one round before those of the next among equals, and ids are given anew in this order. What
comes before the first merge below a threshold is then exactly the merges with heights of at least it: `cut`,
`num_merges` and min_similarity mean for this tree what they mean for the exact one.
"""

from __future__ import annotations

from math import inf

import numpy as np
import torch
from torch import Tensor

from sohes.ops.reference.merge_regions import Merges, cosine, grid_edges


def merge_rounds(
    features: Tensor,
    edges: Tensor | None,
    region_mask: Tensor | None,
    grid_sizes: list[int],
    min_similarity: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `sohes::merge_rounds`; arguments and results as sohes.ops.reference.merge_regions.merge_regions."""
    total = len(features)
    rows = features.float().cpu().numpy()
    mask = None if region_mask is None else region_mask.cpu().numpy()
    merges = np.full((total, 2), -1, dtype=np.int32)
    similarity, heights = np.zeros(total, dtype=np.float32), np.zeros(total, dtype=np.float32)
    num_merges = []
    graphs = [(total, 1)] if edges is not None else list(zip(grid_sizes[::2], grid_sizes[1::2], strict=True))
    start = 0
    for height, width in graphs:
        here = slice(start, start + height * width)
        if edges is not None:
            pairs = edges.cpu().numpy()
        else:
            pairs = grid_edges(height, width, None if mask is None else mask[here].reshape(height, width))
        (found, values), lowest = merge_rounds_loop(rows[here], pairs)
        merges[start : start + len(found)] = found
        similarity[start : start + len(found)] = values
        heights[start : start + len(found)] = lowest
        num_merges.append(len(found))
        start = here.stop
    counts = torch.tensor(num_merges, dtype=torch.int32, device="cpu")
    sizes = [height * width for height, width in graphs]
    made = (torch.from_numpy(array) for array in (merges, similarity, heights))
    return tuple(out.to(features.device) for out in in_order(*made, counts, sizes, min_similarity))


def merge_rounds_loop(features: np.ndarray, edges: np.ndarray) -> tuple[Merges, np.ndarray]:
    """The rounds themselves: merges and similarities in the order in which they were made, and their heights [M]."""
    sums = dict(enumerate(features.astype(np.float32)))
    height = dict.fromkeys(sums, inf)
    merges, similarities = [], []

    def similarity(a: int, b: int) -> float:
        x, y = sums[a].astype(np.float64), sums[b].astype(np.float64)
        with np.errstate(all="ignore"):
            return float(cosine(x @ y, x @ x, y @ y))

    pairs = {(min(a, b), max(a, b)): 0.0 for a, b in edges.tolist()}
    pairs = {pair: similarity(*pair) for pair in pairs}
    while pairs:
        best: dict[int, tuple[int, int]] = {}
        for pair in sorted(pairs, key=lambda pair: (-pairs[pair], pair)):
            for region in pair:
                best.setdefault(region, pair)
        into = {}
        for pair in sorted(pair for pair in pairs if best[pair[0]] == best[pair[1]] == pair):
            new = len(features) + len(merges)
            merges.append(pair)
            similarities.append(pairs[pair])
            height[new] = min(pairs[pair], height[pair[0]], height[pair[1]])
            with np.errstate(all="ignore"):
                sums[new] = sums[pair[0]] + sums[pair[1]]
            into[pair[0]] = into[pair[1]] = new
        remaining = {}
        for (a, b), value in pairs.items():
            pair = tuple(sorted((into.get(a, a), into.get(b, b))))
            if pair[0] != pair[1] and pair not in remaining:
                remaining[pair] = value if pair == (a, b) else similarity(*pair)
        pairs = remaining
    made = np.asarray(merges, dtype=np.int32).reshape(-1, 2), np.asarray(similarities, dtype=np.float32)
    return made, np.asarray([height[len(features) + k] for k in range(len(merges))], dtype=np.float32)


def in_order(
    merges: Tensor, similarity: Tensor, heights: Tensor, num_merges: Tensor, sizes: list[int], min_similarity: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Put the merges of rounds in the order of their heights, and drop those below min_similarity.

    Args:
        merges: int32 [T, 2], by node ids of their image, as made; similarity, heights: float32 [T].
        num_merges: int32 [B]; sizes: the number of starting regions of each image. T is their sum.
        min_similarity: lower stop, rounded to float32.

    Returns:
        merges, similarity and num_merges as the operator returns them.
    """
    device, total = merges.device, len(merges)
    size = torch.tensor(sizes, device=device)  # [B]
    first = torch.cumsum(size, 0) - size  # [B]
    image = torch.repeat_interleave(torch.arange(len(sizes), device=device), size, output_size=total)  # [T]
    place = torch.arange(total, device=device) - first[image]  # [T], within the image
    lowest = torch.tensor(min_similarity, dtype=torch.float32, device=device)
    kept = (place < num_merges[image]) & (heights >= lowest)  # [T]
    order = torch.argsort(-heights, stable=True)  # [T]
    order = order[torch.argsort((2 * image + ~kept)[order], stable=True)]
    rank = torch.empty_like(order)
    rank[order] = place  # [T]: where in its image each merge goes
    leaves = size[image][:, None]  # [T, 1]
    earlier = (merges - leaves + first[image][:, None]).clamp(0, max(total - 1, 0))  # [T, 2]: the merges that made them
    pairs = torch.where(merges < leaves, merges.long(), leaves + rank[earlier])  # [T, 2]
    pairs = torch.where(kept[:, None], pairs.sort(dim=1).values, -1)[order].to(torch.int32)
    counts = torch.zeros(len(sizes), dtype=torch.int32, device=device).index_add_(0, image, kept.int())
    return pairs, torch.where(kept, similarity, 0.0)[order], counts
