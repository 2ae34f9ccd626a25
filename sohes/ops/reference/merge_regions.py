# SPDX-License-Identifier: Apache-2.0
"""Reference of merge_regions: a literal loop that defines the result, and a heap that returns the same.

The method is the greedy merging of adjacent patches of HASSOD (Cao et al., NeurIPS 2023), with the sum of features as
the feature of a region, as in SOHES. It defines for every backend:

Regions. N starting regions, ids 0..N-1, with one float32 feature [C] each. Merge k joins the best pair of adjacent
regions into region N + k with the neighbours of both and the float32 sum of their features.

Similarity of regions a and b: `<a, b> / sqrt(<a, a> * <b, b>)`, the dot products accumulated in float64 (with
exact products), the result rounded to float32. A feature of zero length has similarity 0 to all others. A result that
is not finite (a NaN or infinite feature, an overflow of the sum) becomes -inf, so such pairs merge last.

Order. The pair with the highest similarity merges first; of equal pairs the one with the lowest smaller id, then the
one with the lowest larger id. Similarities are compared as the float32 numbers of the tree, so that collinear features
tie exactly on every machine, independent of rounding errors in float64.

End. No adjacent pair is left, or the best similarity is below min_similarity (rounded to float32).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import inf

import numpy as np
import torch
from torch import Tensor

Merges = tuple[np.ndarray, np.ndarray]  # int32 [M, 2] (lower id, higher id), float32 [M] similarities


def merge_regions(
    features: Tensor,
    edges: Tensor | None,
    region_mask: Tensor | None,
    grid_sizes: list[int],
    min_similarity: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges, similarity and num_merges of the operator `sohes::merge_regions` for a packed batch of images.

    Args:
        features: float32, float16 or bfloat16 [T, C], the images' regions one image after the other.
        edges: int64 [E, 2] adjacent pairs (a general graph, then one image), or None for 4-neighbours on grids.
        region_mask: bool [T], True for regions that are merged; None means all. Only for grids.
        grid_sizes: h and w of each of the B images; T is the sum of h*w. Ignored if edges are given.
        min_similarity: stop before the first merge below this.

    Returns:
        merges: int32 [T, 2]; the image whose regions begin at row t has its merges from row t on, -1 after the last.
        similarity: float32 [T] in the same rows, 0 after the last.
        num_merges: int32 [B].
    """
    total = len(features)
    merges = np.full((total, 2), -1, dtype=np.int32)
    similarity = np.zeros(total, dtype=np.float32)
    num_merges = []
    start = 0
    for rows, pairs in split_graphs(features, edges, region_mask, grid_sizes):
        found, values = merge_regions_heap(rows, pairs, min_similarity)
        merges[start : start + len(found)] = found
        similarity[start : start + len(found)] = values
        num_merges.append(len(found))
        start += len(rows)
    device = features.device
    return (
        torch.from_numpy(merges).to(device),
        torch.from_numpy(similarity).to(device),
        torch.tensor(num_merges, dtype=torch.int32, device=device),
    )


def split_graphs(
    features: Tensor, edges: Tensor | None, region_mask: Tensor | None, grid_sizes: list[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features float32 [N, C] and adjacent pairs int [E, 2] of each image; arguments as merge_regions."""
    rows = features.float().cpu().numpy()
    if edges is not None:
        yield rows, edges.cpu().numpy()
        return
    mask = None if region_mask is None else region_mask.cpu().numpy()
    start = 0
    for height, width in zip(grid_sizes[::2], grid_sizes[1::2], strict=True):
        stop = start + height * width
        inside = None if mask is None else mask[start:stop].reshape(height, width)
        yield rows[start:stop], grid_edges(height, width, inside)
        start = stop


def grid_edges(height: int, width: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Pairs of 4-neighbours (lower id, higher id) of a grid, int64 [E, 2]; only pairs inside mask (bool [h, w])."""
    ids = np.arange(height * width).reshape(height, width)
    right = np.stack([ids[:, :-1].ravel(), ids[:, 1:].ravel()], axis=1)
    down = np.stack([ids[:-1].ravel(), ids[1:].ravel()], axis=1)
    edges = np.concatenate([right, down])
    if mask is not None:
        edges = edges[mask.ravel()[edges].all(axis=1)]
    return edges


def cosine(dot: np.ndarray, norm_a: np.ndarray, norm_b: np.ndarray) -> np.ndarray:
    """Similarities float32 from dot products and squared norms in float64, with the rules for zero and non-finite."""
    with np.errstate(all="ignore"):
        square = norm_a * norm_b
        similarity = np.where(square == 0, 0.0, dot / np.sqrt(square))
        return np.where(np.isfinite(similarity), similarity, -inf).astype(np.float32)


def merge_regions_loop(features: np.ndarray, edges: np.ndarray, min_similarity: float = -inf) -> Merges:
    """Merges and similarities by definition: the best of all pairs at every merge, O(N^2) comparisons.

    Args:
        features: float32 [N, C].
        edges: int [E, 2], pairs of different adjacent regions, in any order, with or without repetition.
        min_similarity: stop before the first merge below this.
    """
    sums = dict(enumerate(features.astype(np.float32)))

    def similarity(a: int, b: int) -> float:
        x, y = sums[a].astype(np.float64), sums[b].astype(np.float64)
        with np.errstate(all="ignore"):
            return float(cosine(x @ y, x @ x, y @ y))

    pairs = {(min(a, b), max(a, b)): 0.0 for a, b in edges.tolist()}
    pairs = {pair: similarity(*pair) for pair in pairs}
    merges: list[tuple[int, int]] = []
    similarities: list[float] = []
    while pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < np.float32(min_similarity):
            break
        new = len(features) + len(merges)
        merges.append(best)
        similarities.append(pairs[best])
        with np.errstate(all="ignore"):
            sums[new] = sums[best[0]] + sums[best[1]]
        touched = [pair for pair in pairs if best[0] in pair or best[1] in pair]
        neighbours = {region for pair in touched for region in pair} - set(best)
        for pair in touched:
            del pairs[pair]
        for neighbour in neighbours:
            pairs[neighbour, new] = similarity(neighbour, new)
    return _as_arrays(merges, similarities)


def merge_regions_heap(features: np.ndarray, edges: np.ndarray, min_similarity: float = -inf) -> Merges:
    """Merges and similarities equal to merge_regions_loop, by a heap of pairs in which stale pairs are skipped."""
    num_leaves = len(features)
    # float32 numbers, stored as float64 for the dot products. A merged region reuses the row of one of its parts.
    sums = features.astype(np.float32).astype(np.float64)
    row = list(range(num_leaves))
    with np.errstate(all="ignore"):
        norms = np.einsum("nc,nc->n", sums, sums)
        dots = np.einsum("ec,ec->e", sums[edges[:, 0]], sums[edges[:, 1]])
    first = cosine(dots, norms[edges[:, 0]], norms[edges[:, 1]])
    ordered = np.sort(edges, axis=1).tolist()
    neighbours: list[set[int]] = [set() for _ in range(num_leaves)]
    for a, b in ordered:
        neighbours[a].add(b)
        neighbours[b].add(a)
    heap = [(-s, a, b) for s, (a, b) in zip(first.tolist(), ordered, strict=True)]
    heapq.heapify(heap)
    is_alive = [True] * num_leaves
    merges: list[tuple[int, int]] = []
    similarities: list[float] = []
    while heap:
        negated, a, b = heapq.heappop(heap)
        if not (is_alive[a] and is_alive[b]):
            continue
        if -negated < np.float32(min_similarity):
            break
        new = num_leaves + len(merges)
        merges.append((a, b))
        similarities.append(-negated)
        is_alive[a] = is_alive[b] = False
        is_alive.append(True)
        around = (neighbours[a] | neighbours[b]) - {a, b}
        neighbours.append(around)
        others = sorted(around)
        for other in others:
            neighbours[other] -= {a, b}
            neighbours[other].add(new)
        row.append(row[a])
        rows = [row[other] for other in others]
        with np.errstate(all="ignore"):
            merged = (sums[row[a]] + sums[row[b]]).astype(np.float32).astype(np.float64)
            sums[row[new]] = merged
            norms[row[new]] = merged @ merged
            dots = sums[rows] @ merged
        for s, other in zip(cosine(dots, norms[rows], norms[row[new]]).tolist(), others, strict=True):
            heapq.heappush(heap, (-s, other, new))
    return _as_arrays(merges, similarities)


def _as_arrays(merges: list[tuple[int, int]], similarities: list[float]) -> Merges:
    return np.asarray(merges, dtype=np.int32).reshape(-1, 2), np.asarray(similarities, dtype=np.float32)
