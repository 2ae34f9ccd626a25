# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression and overlaps of the masks of large photos, in chunks, without a second copy of all masks.

1000 masks of 4000 x 3000 pixels take 1.4 GiB packed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sohes.ops._words import zero_words
from sohes.ops.mask_overlap import mask_overlap
from sohes.ops.mask_pack import mask_take
from sohes.ops.mask_select import mask_nms
from sohes.ops.reference.mask_pack import num_words
from sohes.structures.masks import PackedMasks

CHUNK_BYTES = 2**25
"""Of packed masks in a chunk."""


def masks_per_chunk(size: tuple[int, int]) -> int:
    """Number of packed masks of a size (H, W) that fit into CHUNK_BYTES, at least 1."""
    return max(1, CHUNK_BYTES // (8 * max(1, num_words(size))))


class DistinctMasks:
    """NMS of masks that are added in chunks, the best first: a mask is kept unless it duplicates one kept before.

    Keeps the first `capacity` masks of those that `nms_masks` would keep, in one array of words. On the CPU, pages of
    this array that no mask touches take no memory.
    """

    def __init__(self, size: tuple[int, int], capacity: int, iou_threshold: float, device: torch.device) -> None:
        self.size, self.capacity, self.iou_threshold = size, capacity, iou_threshold
        rows = capacity + masks_per_chunk(size)  # kept masks, and a chunk to compare with them
        if device.type == "cpu":
            self._words = zero_words(rows, size)
        else:
            self._words = torch.zeros((rows, num_words(size)), dtype=torch.int64, device=device)
        self._areas = self._words.new_zeros(rows)
        self._boxes = self._words.new_zeros((rows, 4))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def masks(self) -> PackedMasks:
        """The masks that are kept, best first."""
        return PackedMasks(self._words[: self._count], self.size)

    def add(self, masks: PackedMasks) -> Tensor:
        """Add masks, best first, none of them better than those added before.

        Args:
            masks: at most `masks_per_chunk`, on the device of this set.

        Returns:
            int64 [k] on the CPU, increasing: indices of the masks that are kept.
        """
        count, end = self._count, self._count + len(masks)
        self._append(masks, torch.arange(len(masks), device="cpu"))
        # The masks kept before are no duplicates of each other: NMS keeps all of them again.
        order = torch.arange(end, device=self._words.device)
        found = (self._words[:end], self._areas[:end], self._boxes[:end], order)
        keep = mask_nms(*found, float(self.iou_threshold), self.size[0], "auto")
        kept = keep[count:].nonzero().flatten().cpu()[: self.capacity - count]  # [k]
        for row, (x0, _, x1, _) in enumerate(masks.boxes.tolist(), start=count):
            self._words[row, x0 * self.size[0] // 64 : x1 * self.size[0] // 64 + 1] = 0
        self._append(masks, kept)
        self._count += len(kept)
        return kept

    def _append(self, masks: PackedMasks, which: Tensor) -> None:
        """Copy the masks `which` into the rows after the kept masks."""
        rows, which = slice(self._count, self._count + len(which)), which.to(self._words.device)
        mask_take(masks.words, masks.boxes, self.size[0], which, out=self._words[rows])
        self._areas[rows], self._boxes[rows] = masks.areas[which], masks.boxes[which]


def pairwise_overlap(masks: PackedMasks) -> Tensor:
    """Number of pixels that each pair of masks shares, int64 [N, N], exact: `mask_overlap(masks, masks)`.

    The operator copies the words in the masks' boxes; in chunks, it copies at most 2 * CHUNK_BYTES at once.
    """
    chunks = list(_chunks_by_box(masks.boxes))
    if len(chunks) <= 1:
        return mask_overlap(masks, masks)
    shared = torch.zeros((len(masks), len(masks)), dtype=torch.int64, device=masks.device)  # [N, N]
    for index, a in enumerate(chunks):
        for b in chunks[index:]:
            block = mask_overlap(masks[a], masks[b])
            shared[a, b], shared[b, a] = block, block.T
    return shared


def _chunks_by_box(boxes: Tensor) -> Iterator[slice]:
    """Slices of masks whose boxes, at one bit per pixel, take at most CHUNK_BYTES; at least one mask each."""
    start, used = 0, 0
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        need = (x1 - x0) * ((y1 - y0) // 64 + 2) * 8
        if used and used + need > CHUNK_BYTES:
            yield slice(start, index)
            start, used = index, 0
        used += need
    if start < len(boxes):
        yield slice(start, len(boxes))
