# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of mask_overlap: out[i, j] = sum_v popcount(a[i, v] & b[j, v]).

One program computes TILE x TILE pairs. It reads the words of the columns that both sides of the tile reach, BLOCK at a
time: 2 * TILE * BLOCK words of 8 bytes for TILE**2 * BLOCK counts. Triton has no portable popcount, so bits are counted
with integer arithmetic, which also runs under the interpreter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE, BLOCK = 16, 16


@triton.jit
def _popcount(x):  # noqa: ANN001, ANN202 - Triton tensors have no annotations
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    x = x + (x >> 8)
    x = x + (x >> 16)
    x = x + (x >> 32)
    return x & 127


@triton.jit
def _overlap_kernel(a, b, spans_a, spans_b, out, num_a, num_b, num_words, TILE: tl.constexpr, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202
    tile_a, tile_b = tl.program_id(0), tl.program_id(1)
    rows = (tile_a * TILE + tl.arange(0, TILE)).to(tl.int64)  # [TILE]
    columns = (tile_b * TILE + tl.arange(0, TILE)).to(tl.int64)  # [TILE]
    begin = tl.maximum(tl.load(spans_a + 2 * tile_a), tl.load(spans_b + 2 * tile_b))
    end = tl.minimum(tl.load(spans_a + 2 * tile_a + 1), tl.load(spans_b + 2 * tile_b + 1))
    sums = tl.zeros((TILE, TILE), tl.int64)
    for start in range(begin, end, BLOCK):
        words = start + tl.arange(0, BLOCK)  # [BLOCK]
        inside = (words < end)[None, :]
        of_a = tl.load(a + rows[:, None] * num_words + words[None, :], inside & (rows < num_a)[:, None], 0)
        of_b = tl.load(b + columns[:, None] * num_words + words[None, :], inside & (columns < num_b)[:, None], 0)
        sums += tl.sum(_popcount(of_a[:, None, :] & of_b[None, :, :]), 2)
    inside = (rows < num_a)[:, None] & (columns < num_b)[None, :]
    tl.store(out + rows[:, None] * num_b + columns[None, :], sums, inside)


def mask_overlap(words_a: Tensor, boxes_a: Tensor, words_b: Tensor, boxes_b: Tensor, height: int) -> Tensor:
    """Intersections int64 [N, M]; arguments as in `sohes.ops.reference.mask_overlap`."""
    num_a, num_b = len(words_a), len(words_b)
    out = words_a.new_zeros((num_a, num_b))  # [N, M]
    if out.numel() and words_a.shape[1]:
        grid = (triton.cdiv(num_a, TILE), triton.cdiv(num_b, TILE))
        spans = (_spans(boxes_a, height), _spans(boxes_b, height))  # [tiles, 2]
        args = (words_a.contiguous(), words_b.contiguous(), *spans, out, num_a, num_b, words_a.shape[1])
        with torch.cuda.device_of(out):  # Triton launches on the current device, not on that of the tensors
            _overlap_kernel[grid](*args, TILE=TILE, BLOCK=BLOCK)
    return out


def _spans(boxes: Tensor, height: int) -> Tensor:
    """Range of words [begin, end) that the masks of each tile reach, int64 [tiles, 2], from boxes int64 [N, 4]."""
    x0, y0, x1, y1 = boxes.unbind(1)  # [N] each
    nothing = torch.iinfo(torch.int64).max
    begin = torch.where(x0 < x1, (x0 * height + y0) // 64, nothing)  # [N]
    end = torch.where(x0 < x1, ((x1 - 1) * height + y1 - 1) // 64 + 1, 0)  # [N]
    missing = -len(boxes) % TILE
    begin = torch.cat((begin, begin.new_full((missing,), nothing))).unflatten(0, (-1, TILE)).amin(1)  # [tiles]
    end = torch.cat((end, end.new_zeros(missing))).unflatten(0, (-1, TILE)).amax(1)  # [tiles]
    return torch.stack((begin, end), 1).contiguous()
