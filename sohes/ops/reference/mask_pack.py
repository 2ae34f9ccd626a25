# SPDX-License-Identifier: Apache-2.0
"""Reference of packed masks: the layout of the bits, and conversion from and to dense masks.

Pixel (y, x) of an H x W mask is flat bit `i = x * H + y` (column-major, the order of COCO RLE), at position `i % 64` of
word `i // 64`. Bits after H * W in the last word are zero. V = ceil(H * W / 64). The words are equal on every device;
views as bytes assume a little-endian machine, as torch does.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24  # dense elements in memory at a time, for any number of masks
NEAR, FAR = 1e-30, 1e30  # smaller distances of a logit from its threshold become 0, larger ones become FAR


def num_words(size: tuple[int, int]) -> int:
    """Number of 64-bit words of one mask of size (H, W)."""
    return (size[0] * size[1] + 63) // 64


def chunks(num_masks: int, elements: int) -> Iterator[slice]:
    """Slices of N masks with `elements` elements each, about CHUNK_ELEMENTS elements per slice."""
    step = max(1, CHUNK_ELEMENTS // max(1, elements))
    return (slice(start, min(start + step, num_masks)) for start in range(0, num_masks, step))


def mask_pack(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Words int64 [N, V], areas int64 [N], boxes int64 [N, 4] of bool or uint8 [N, H, W] (non-zero is inside)."""
    N, H, W = dense.shape
    words = torch.zeros((N, num_words((H, W))), dtype=torch.int64, device=dense.device)  # [N, V]
    place = 1 << torch.arange(8, dtype=torch.uint8, device=dense.device)  # [8]
    for chunk in chunks(N, H * W):
        bits = (dense[chunk] != 0).transpose(1, 2).flatten(1).to(torch.uint8)  # [n, H*W]
        bits = F.pad(bits, (0, 64 * words.shape[1] - H * W)).unflatten(1, (8 * words.shape[1], 8))  # [n, 8*V, 8]
        words[chunk].view(torch.uint8).copy_((bits * place).sum(-1, dtype=torch.uint8))  # [n, 8*V]
    return words, *mask_stats(words, H, W)


def mask_unpack(words: Tensor, height: int, width: int) -> Tensor:
    """Dense masks bool [N, H, W], contiguous, from words int64 [N, V]."""
    dense = words.new_zeros((len(words), height, width), dtype=torch.bool)  # [N, H, W]
    if dense.numel() == 0:
        return dense
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)  # [8]
    for chunk in chunks(len(words), height * width):
        octets = words[chunk].contiguous().view(torch.uint8)  # [n, 8*V]
        bits = ((octets[:, :, None] >> shifts) & 1).flatten(1)[:, : height * width]  # [n, H*W]
        dense[chunk] = bits.unflatten(1, (width, height)).transpose(1, 2).bool()  # [n, H, W]
    return dense


def bilinear_table(source: int, target: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation of `source` pixels to `target` pixels: lower index int64, weight of the next pixel float32.

    As align_corners=False; the border is replicated beyond the first and last centre.
    """
    position = (torch.arange(target, dtype=torch.float64, device="cpu") + 0.5) * source / target - 0.5  # [target]
    index = position.clamp(min=0).floor().long().clamp(max=max(source - 1, 0))  # [target]
    return index, (position.clamp(min=0) - index).float()


def mask_pack_logits(logits: Tensor, height: int, width: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Words, areas and boxes of `bilinear(logits - threshold) > 0` at H x W, in float32, from logits [N, h, w].

    Columns are interpolated first, then rows, as `a * (1 - weight) + b * weight` with every product and sum rounded
    once, so that kernels can agree bit by bit. NaN counts as -1e30, infinities as +-1e30, and values above the
    threshold by less than 1e-30 as 0, so that the interpolation of values of one sign keeps the sign.
    """
    N, h, w = logits.shape
    words = torch.zeros((N, num_words((height, width))), dtype=torch.int64, device=logits.device)  # [N, V]
    if words.numel():
        columns, column_weight = (t.to(logits.device) for t in bilinear_table(w, width))  # [W], [W]
        rows, row_weight = (t.to(logits.device)[:, None] for t in bilinear_table(h, height))  # [H, 1], [H, 1]
        rows = rows[:, 0]  # [H]
        for chunk in chunks(N, height * width):
            d = torch.nan_to_num(logits[chunk].float() - threshold, nan=-FAR).clamp(-FAR, FAR)  # [n, h, w]
            d = torch.where((d > 0) & (d < NEAR), 0.0, d)  # [n, h, w]
            left, right = d[:, :, columns], d[:, :, (columns + 1).clamp(max=w - 1)]  # [n, h, W]
            c = left * (1 - column_weight) + right * column_weight  # [n, h, W]
            upper, lower = c[:, rows], c[:, (rows + 1).clamp(max=h - 1)]  # [n, H, W]
            words[chunk] = mask_pack(upper * (1 - row_weight) + lower * row_weight > 0)[0]  # [n, V]
    return words, *mask_stats(words, height, width)


def mask_from_index(index: Tensor, num_masks: int) -> Tensor:
    """Words int64 [N, V] from the index of the mask at each pixel, int64 [H, W], -1 for none."""
    shape = (num_masks, num_words((index.shape[0], index.shape[1])))
    words = torch.zeros(shape, dtype=torch.int64, device=index.device)  # [N, V]
    for chunk in chunks(num_masks, index.numel()):
        ids = torch.arange(chunk.start, chunk.stop, device=index.device)  # [n]
        words[chunk] = mask_pack(index == ids[:, None, None])[0]  # [n, V]
    return words


def mask_stats(words: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Areas int64 [N] and boxes int64 [N, 4] (x0, y0, x1, y1, half-open, zeros for an empty mask)."""
    areas, boxes = words.new_zeros(len(words)), words.new_zeros((len(words), 4))  # [N], [N, 4]
    if words.numel() == 0:
        return areas, boxes
    for chunk in chunks(len(words), height * width):
        dense = mask_unpack(words[chunk], height, width)  # [n, H, W]
        areas[chunk] = dense.sum((1, 2))  # [n]
        for axis, across in ((0, 1), (1, 2)):  # x from the columns with pixels, y from the rows
            hit = dense.any(across).to(torch.uint8)  # [n, W], then [n, H]
            boxes[chunk, axis] = hit.argmax(1)  # [n], the first
            boxes[chunk, axis + 2] = (hit.shape[1] - hit.flip(1).argmax(1)) * hit.any(1)  # [n]
    return areas, boxes
