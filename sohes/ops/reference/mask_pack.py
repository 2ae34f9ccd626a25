# SPDX-License-Identifier: Apache-2.0
"""Packed masks, defined: which pixel sits in which bit, and what is read from the bits alone.

Pixel (y, x) of an H x W mask is flat bit ``i = x * H + y`` (column-major, the order of COCO RLE). Bit ``i`` sits in word
``i // 64`` at position ``i % 64``. Bits past ``H * W`` in the last word are zero. The words are the same on every device;
the byte views below assume a little-endian machine, as every torch platform is.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24  # dense elements alive at a time, so that memory follows the chunk and not the mask count


def num_words(size: tuple[int, int]) -> int:
    """Words of 64 bits that one mask of this (H, W) takes."""
    return (size[0] * size[1] + 63) // 64


def chunks(num_masks: int, size: tuple[int, int]) -> Iterator[slice]:
    """Slices over N masks that hold about CHUNK_ELEMENTS pixels each."""
    step = max(1, CHUNK_ELEMENTS // max(1, size[0] * size[1]))
    return (slice(start, min(start + step, num_masks)) for start in range(0, num_masks, step))


def pack_dense(dense: Tensor) -> Tensor:
    """bool or uint8 [N, H, W] (non-zero is inside) -> words int64 [N, V]."""
    num_masks, height, width = dense.shape
    words = dense.new_zeros((num_masks, num_words((height, width))), dtype=torch.int64)  # [N, V]
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=dense.device)  # [8]
    for part in chunks(num_masks, (height, width)):
        bits = (dense[part] != 0).transpose(1, 2).reshape(part.stop - part.start, -1)  # [n, H*W]
        bits = F.pad(bits.to(torch.uint8), (0, 64 * words.shape[1] - height * width))  # [n, 64*V]
        packed = (bits.unflatten(1, (8 * words.shape[1], 8)) * weights).sum(-1, dtype=torch.uint8)  # [n, 8*V]
        words[part] = packed.view(torch.int64) if packed.numel() else words[part]  # [n, V]
    return words


def unpack_dense(words: Tensor, size: tuple[int, int]) -> Tensor:
    """words int64 [N, V] -> bool [N, H, W], contiguous."""
    height, width = size
    dense = words.new_zeros((len(words), height, width), dtype=torch.bool)  # [N, H, W]
    if dense.numel() == 0:
        return dense
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)  # [8]
    for part in chunks(len(words), size):
        octets = words[part].contiguous().view(torch.uint8)  # [n, 8*V]
        bits = ((octets[:, :, None] >> shifts) & 1).flatten(1)[:, : height * width]  # [n, H*W]
        dense[part] = bits.unflatten(1, (width, height)).transpose(1, 2).bool()  # [n, H, W]
    return dense


def pack_logits(logits: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Logits [N, h, w] -> words of ``bilinear(logits, size) > threshold``, in float32, align_corners False.

    NaN is outside. A chunk of masks is upsampled at a time.
    """
    words = logits.new_zeros((len(logits), num_words(size)), dtype=torch.int64)  # [N, V]
    if words.numel() == 0:
        return words
    for part in chunks(len(logits), size):
        values = logits[part].float()[:, None]  # [n, 1, h, w]
        if tuple(values.shape[-2:]) != tuple(size):
            values = F.interpolate(values, size=size, mode="bilinear", align_corners=False)  # [n, 1, H, W]
        words[part] = pack_dense(values[:, 0] > threshold)  # [n, V]
    return words


def mask_areas(words: Tensor) -> Tensor:
    """words int64 [N, V] -> set bits int64 [N]. Bit counts by halves; a shift of a negative word is masked at once."""
    if words.numel() == 0:
        return words.new_zeros(len(words))
    areas = words.new_zeros(len(words))  # [N]
    for part in chunks(len(words), (words.shape[1], 8)):
        x = words[part]  # [n, V]
        x = x - ((x >> 1) & 0x5555555555555555)
        x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
        x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
        areas[part] = ((x * 0x0101010101010101) >> 56).sum(1)  # [n]
    return areas


def mask_boxes(words: Tensor, size: tuple[int, int]) -> Tensor:
    """words int64 [N, V] -> boxes int64 [N, 4]: x0, y0, x1, y1, half-open; zeros for an empty mask."""
    boxes = words.new_zeros((len(words), 4))  # [N, 4]
    if words.numel() == 0:
        return boxes
    for part in chunks(len(words), size):
        dense = unpack_dense(words[part], size)  # [n, H, W]
        for axis, other in ((0, 1), (1, 2)):  # x from the columns that hold a pixel, y from the rows
            hit = dense.any(other).to(torch.uint8)  # [n, W] then [n, H]
            length = hit.shape[1]
            boxes[part, axis] = hit.argmax(1)  # [n], the first of equal maxima
            boxes[part, axis + 2] = (length - hit.flip(1).argmax(1)) * hit.any(1)  # [n]
    return boxes
