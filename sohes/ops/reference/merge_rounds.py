# SPDX-License-Identifier: Apache-2.0
"""Reference of merge_rounds: all mutually best pairs merge at once, a parallel alternative to the exact greedy order.

Regions, similarities and the order of pairs (similarity descending, lower id ascending, higher id ascending) are those
of `sohes/ops/reference/merge_regions.py`. The differences:

Rounds. In each round every region selects its best pair. All pairs that both of their regions selected merge; the new
regions get the next ids in the order of the lower ids. The best pair of all is always among them, so every round
merges at least one pair; rounds repeat until no pair is left. A pair may merge before a better pair elsewhere, so the
tree differs from the exact one where a merge raises a similarity.

Heights. The height of a merge is the lowest similarity of this merge and all merges below it. The tree lists merges by
descending height, equal heights in the order of the rounds, and numbers the nodes again in this order. The merges
before the first one below a threshold are then the merges with at least that height, so `cut`, `num_merges` and
min_similarity have the same meaning as for the exact tree.
"""

from __future__ import annotations

from math import inf

import numpy as np
import torch
from torch import Tensor

from sohes.ops.reference.merge_regions import Merges, cosine, split_graphs


def merge_rounds(
    features: Tensor,
    edges: Tensor | None,
    region_mask: Tensor | None,
    grid_sizes: list[int],
    min_similarity: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges, similarity and num_merges of the operator `sohes::merge_rounds`; arguments as in merge_regions."""
    total = len(features)
    merges = torch.full((total, 2), -1, dtype=torch.int32, device="cpu")
    similarity, heights = (torch.zeros(total, dtype=torch.float32, device="cpu") for _ in range(2))
    num_merges, sizes = [], []
    start = 0
    for rows, pairs in split_graphs(features, edges, region_mask, grid_sizes):
        (found, values), lowest = merge_rounds_loop(rows, pairs)
        merges[start : start + len(found)] = torch.from_numpy(found)
        similarity[start : start + len(found)] = torch.from_numpy(values)
        heights[start : start + len(found)] = torch.from_numpy(lowest)
        num_merges.append(len(found))
        sizes.append(len(rows))
        start += len(rows)
    counts = torch.tensor(num_merges, dtype=torch.int32, device="cpu")
    merges, similarity, counts = sort_merges(merges, similarity, heights, counts, sizes, min_similarity)
    return merges.to(features.device), similarity.to(features.device), counts.to(features.device)


def merge_rounds_loop(features: np.ndarray, edges: np.ndarray) -> tuple[Merges, np.ndarray]:
    """Merges and similarities in the order of the rounds, and their heights, float32 [M]."""
    sums = dict(enumerate(features.astype(np.float32)))
    height = dict.fromkeys(sums, inf)
    merges: list[tuple[int, int]] = []
    similarities: list[float] = []

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
        remaining: dict[tuple[int, int], float] = {}
        for (a, b), value in pairs.items():
            low, high = sorted((into.get(a, a), into.get(b, b)))
            if low != high and (low, high) not in remaining:
                remaining[low, high] = value if (low, high) == (a, b) else similarity(low, high)
        pairs = remaining
    made = np.asarray(merges, dtype=np.int32).reshape(-1, 2), np.asarray(similarities, dtype=np.float32)
    return made, np.asarray([height[len(features) + k] for k in range(len(merges))], dtype=np.float32)


def sort_merges(
    merges: Tensor, similarity: Tensor, heights: Tensor, num_merges: Tensor, sizes: list[int], min_similarity: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The merges of rounds sorted by height, without those below min_similarity.

    Args:
        merges: int32 [T, 2], node ids within the image, in the order of the rounds.
        similarity, heights: float32 [T].
        num_merges: int32 [B].
        sizes: the number of starting regions of each image; T is their sum.
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
    rank[order] = place  # [T]: position of each merge in its image
    leaves = size[image][:, None]  # [T, 1]
    earlier = (merges - leaves + first[image][:, None]).clamp(0, max(total - 1, 0))  # [T, 2]: merges of the nodes
    pairs = torch.where(merges < leaves, merges.long(), leaves + rank[earlier])  # [T, 2]
    pairs = torch.where(kept[:, None], pairs.sort(dim=1).values, -1)[order].to(torch.int32)
    counts = torch.zeros(len(sizes), dtype=torch.int32, device=device).index_add_(0, image, kept.int())
    return pairs, torch.where(kept, similarity, 0.0)[order], counts
