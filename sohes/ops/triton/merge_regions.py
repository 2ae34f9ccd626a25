# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN001, ANN202 - Triton tensors have no annotations
"""Triton kernel of merge_regions: the whole greedy loop on the device, one program per image, in the exact order.

For GPUs without nvcc. Every image has a flat list of edges; a region has one row of the sums, and c = a + b reuses the
row of a. One merge takes four passes over the edges of the image (find the best, redirect those of b to a, remove
duplicates, list the rest) and one dot product per neighbour of c. Sums are float32 and dot products float64, as in the
reference, so the partitions are equal.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sohes.ops.reference.merge_regions import grid_edges

_GONE = tl.constexpr(-(2**31))  # below the key of every float32


@triton.jit
def _similarity(dot, norm_a, norm_b):
    """float32 dot / sqrt(norm_a * norm_b); 0 if a norm is 0, -inf if the result is not finite."""
    square = norm_a * norm_b
    value = dot / tl.sqrt(tl.where(square == 0.0, 1.0, square))
    value = tl.where(square == 0.0, 0.0, value)
    is_finite = (value == value) & (tl.abs(value) != float("inf"))
    value = tl.where(is_finite, value, float("-inf")).to(tl.float32)
    return tl.where(value == 0.0, 0.0, value)  # no -0.0: keys compare bits


@triton.jit
def _key(similarity):
    """int32 that sorts like the float32."""
    bits = similarity.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _norms_kernel(sums, norms, total, channels, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """norms[r] = <sums[r], sums[r]>; one program for ROWS rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    mask = (row < total)[:, None] & (c < channels)[None, :]
    x = tl.load(sums + row[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float64)
    tl.store(norms + row, tl.sum(x * x, axis=1), mask=row < total)


@triton.jit
def _first_similarities_kernel(
    sums, norms, ends, similarity, num_edges, channels, ROWS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """similarity[e] of the two rows that edge e joins; one program for ROWS edges."""
    edge = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    is_edge = edge < num_edges
    u = tl.load(ends + 2 * edge, mask=is_edge, other=0).to(tl.int64)
    v = tl.load(ends + 2 * edge + 1, mask=is_edge, other=0).to(tl.int64)
    mask = is_edge[:, None] & (c < channels)[None, :]
    x = tl.load(sums + u[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float64)
    y = tl.load(sums + v[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float64)
    value = _similarity(tl.sum(x * y, axis=1), tl.load(norms + u, mask=is_edge), tl.load(norms + v, mask=is_edge))
    tl.store(similarity + edge, value, mask=is_edge)


@triton.jit
def _merge_kernel(
    sums,  # float32 [T, C], overwritten
    norms,  # float64 [T]
    ids,  # int32 [T], node id (in its image) of the region in a row
    ends,  # int32 [E, 2], rows that an edge joins; -1: the edge is removed
    similarity,  # float32 [E]
    stamp,  # int32 [T], scratch
    todo,  # int32 [E], scratch
    table,  # int64 [B, 4]: first row, rows, first edge, edges of an image
    merges,  # int32 [T, 2]
    values,  # float32 [T]
    num_merges,  # int32 [B]
    min_similarity,  # float32 [1]
    channels,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    image = tl.program_id(0)
    first_row = tl.load(table + 4 * image)
    num_rows = tl.load(table + 4 * image + 1).to(tl.int32)
    first_edge = tl.load(table + 4 * image + 2)
    num_edges = tl.load(table + 4 * image + 3).to(tl.int32)
    sums += first_row * channels
    norms += first_row
    ids += first_row
    stamp += first_row
    ends += 2 * first_edge
    similarity += first_edge
    todo += first_edge
    lowest = _key(tl.load(min_similarity))
    c = tl.arange(0, BLOCK_C)
    lane = tl.arange(0, BLOCK_E)
    count = 0
    going = num_edges > 0
    while going:
        # The best key: similarity, then the lowest smaller id. Removed edges have the lowest possible key.
        best = tl.full([BLOCK_E], -(2**63), tl.int64)
        start = 0
        while start < num_edges:
            edge = start + lane
            u = tl.load(ends + 2 * edge, mask=edge < num_edges, other=-1)
            v = tl.load(ends + 2 * edge + 1, mask=u >= 0, other=0)
            low = tl.minimum(tl.load(ids + u, mask=u >= 0, other=0), tl.load(ids + v, mask=u >= 0, other=0))
            key = _key(tl.load(similarity + edge, mask=u >= 0, other=0.0))
            key = tl.where(u >= 0, key, _GONE).to(tl.int64) * (1 << 32) + (0x7FFFFFFF - low)
            best = tl.maximum(best, key)
            start += BLOCK_E
        best_key = tl.max(best, axis=0)
        going = (best_key >> 32) >= lowest
        if going:
            # Among equal keys the lowest larger id; then any, because they are the same pair.
            choice = tl.full([BLOCK_E], 2**63 - 1, tl.int64)
            start = 0
            while start < num_edges:
                edge = start + lane
                u = tl.load(ends + 2 * edge, mask=edge < num_edges, other=-1)
                v = tl.load(ends + 2 * edge + 1, mask=u >= 0, other=0)
                id_u, id_v = tl.load(ids + u, mask=u >= 0, other=0), tl.load(ids + v, mask=u >= 0, other=0)
                key = _key(tl.load(similarity + edge, mask=u >= 0, other=0.0)).to(tl.int64) * (1 << 32)
                key += 0x7FFFFFFF - tl.minimum(id_u, id_v)
                is_best = (u >= 0) & (key == best_key)
                pair = tl.maximum(id_u, id_v).to(tl.int64) * (1 << 32) + edge
                choice = tl.minimum(choice, tl.where(is_best, pair, 2**63 - 1))
                start += BLOCK_E
            chosen = tl.min(choice, axis=0) & 0xFFFFFFFF
            a, b = tl.load(ends + 2 * chosen), tl.load(ends + 2 * chosen + 1)
            id_a, id_b = tl.load(ids + a), tl.load(ids + b)
            tl.store(merges + 2 * (first_row + count), tl.minimum(id_a, id_b))
            tl.store(merges + 2 * (first_row + count) + 1, tl.maximum(id_a, id_b))
            tl.store(values + first_row + count, tl.load(similarity + chosen))

            # The sum replaces the row of a.
            x = tl.load(sums + a.to(tl.int64) * channels + c, mask=c < channels, other=0.0)
            x += tl.load(sums + b.to(tl.int64) * channels + c, mask=c < channels, other=0.0)
            wide = x.to(tl.float64)
            norm = tl.sum(wide * wide, axis=0)
            tl.debug_barrier()  # all threads have read before this is overwritten
            tl.store(sums + a.to(tl.int64) * channels + c, x, mask=c < channels)
            tl.store(norms + a, norm)
            tl.store(ids + a, num_rows + count)

            # Redirect edges of b to a. Of several edges to one neighbour, the one that wrote its stamp last is kept.
            start = 0
            while start < num_edges:
                edge = start + lane
                u = tl.load(ends + 2 * edge, mask=edge < num_edges, other=-1)
                v = tl.load(ends + 2 * edge + 1, mask=u >= 0, other=-1)
                at_u, at_v = (u == a) | (u == b), (v == a) | (v == b)
                other = tl.where(at_u, v, u)
                is_between = at_u & at_v
                touched = (at_u | at_v) & (u >= 0)
                tl.store(ends + 2 * edge, tl.where(is_between, -1, a), mask=touched)
                tl.store(ends + 2 * edge + 1, other, mask=touched)
                tl.store(stamp + other, edge, mask=touched & ~is_between)
                start += BLOCK_E
            tl.debug_barrier()
            num_todo = 0
            start = 0
            while start < num_edges:
                edge = start + lane
                u = tl.load(ends + 2 * edge, mask=edge < num_edges, other=-1)
                touched = u == a
                other = tl.load(ends + 2 * edge + 1, mask=touched, other=0)
                kept = touched & (tl.load(stamp + other, mask=touched, other=-1) == edge)
                tl.store(ends + 2 * edge, -1, mask=touched & ~kept)
                place = num_todo + tl.cumsum(kept.to(tl.int32), axis=0) - 1
                tl.store(todo + place, edge, mask=kept)
                num_todo += tl.sum(kept.to(tl.int32), axis=0)
                start += BLOCK_E
            tl.debug_barrier()
            start = 0
            while start < num_todo:
                place = start + tl.arange(0, ROWS)
                edge = tl.load(todo + place, mask=place < num_todo, other=0)
                other = tl.load(ends + 2 * edge + 1, mask=place < num_todo, other=0).to(tl.int64)
                mask = (place < num_todo)[:, None] & (c < channels)[None, :]
                y = tl.load(sums + other[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float64)
                value = _similarity(tl.sum(y * wide[None, :], axis=1), tl.load(norms + other), norm)
                tl.store(similarity + edge, value, mask=place < num_todo)
                start += ROWS
            tl.debug_barrier()
            count += 1
    tl.store(num_merges + image, count)


def merge_regions(
    features: Tensor,
    edges: Tensor | None,
    region_mask: Tensor | None,
    grid_sizes: list[int],
    min_similarity: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges, similarity and num_merges; arguments as in `sohes.ops.reference.merge_regions`."""
    device = features.device
    total, channels = features.shape
    sums = features.to(torch.float32, copy=True).contiguous()
    ends, table = _edges_and_table(edges, region_mask, grid_sizes, total, device)
    ids = torch.cat([torch.arange(n, dtype=torch.int32, device=device) for n in table[:, 1].tolist()])
    merges = torch.full((total, 2), -1, dtype=torch.int32, device=device)
    values = torch.zeros(total, dtype=torch.float32, device=device)
    num_merges = torch.empty(len(table), dtype=torch.int32, device=device)
    norms = torch.empty(total, dtype=torch.float64, device=device)
    similarity = torch.empty(len(ends), dtype=torch.float32, device=device)
    stamp, todo = torch.empty_like(ids), torch.empty(len(ends), dtype=torch.int32, device=device)
    lowest = torch.tensor([min_similarity], dtype=torch.float32, device=device)

    rows, block_c = 4, triton.next_power_of_2(channels)
    block_e = min(8192, max(32, triton.next_power_of_2(int(table[:, 3].max()))))
    table_there = table.to(device)
    with torch.cuda.device_of(features):  # Triton launches on the current device, not on that of the tensors
        _norms_kernel[(triton.cdiv(total, rows),)](sums, norms, total, channels, rows, block_c)
        if len(ends):
            grid = (triton.cdiv(len(ends), rows),)
            absolute = ends + torch.repeat_interleave(table[:, 0], table[:, 3]).to(device)[:, None]
            _first_similarities_kernel[grid](sums, norms, absolute, similarity, len(ends), channels, rows, block_c)
        _merge_kernel[(len(table),)](
            sums, norms, ids, ends, similarity, stamp, todo, table_there, merges, values, num_merges, lowest, channels,
            block_e, block_c, rows, num_warps=16 if block_e >= 2048 else 4,
        )  # fmt: skip
    return merges, values, num_merges


def _edges_and_table(
    edges: Tensor | None, region_mask: Tensor | None, grid_sizes: list[int], total: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Edges of all images by row within the image, int32 [E, 2]; first row, rows, first edge, edges, int64 [B, 4]."""
    if edges is not None:
        return edges.int().contiguous(), torch.tensor([[0, total, 0, len(edges)]], device="cpu")
    mask = None if region_mask is None else region_mask.cpu().numpy()
    ends: list[Tensor] = []
    table: list[list[int]] = []
    row = 0
    for height, width in zip(grid_sizes[::2], grid_sizes[1::2], strict=True):
        n = height * width
        pairs = grid_edges(height, width, None if mask is None else mask[row : row + n].reshape(height, width))
        table.append([row, n, sum(len(e) for e in ends), len(pairs)])
        ends.append(torch.from_numpy(pairs).int())
        row += n
    return torch.cat(ends).to(device), torch.tensor(table, device="cpu")
