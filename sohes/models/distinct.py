# SPDX-License-Identifier: Apache-2.0
"""Masks of large photos, a few at a time: those that stay, and what is compared of them, never exist twice.

1000 masks of 4000 x 3000 are 1.4 GiB packed: one copy too many, and memory has doubled.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sohes.ops._words import num_words, zero_words
from sohes.ops.mask_overlap import mask_overlap
from sohes.ops.mask_pack import mask_take
from sohes.ops.mask_select import mask_nms
from sohes.structures.masks import PackedMasks

CHUNK_BYTES = 2**25
"""Of packed masks that exist beside those that stay."""


def masks_per_chunk(size: tuple[int, int]) -> int:
    """Packed masks of a size (H, W) that fit into CHUNK_BYTES, at least 1."""
    return max(1, CHUNK_BYTES // (8 * max(1, num_words(size))))


class DistinctMasks:
    """Masks that come best first, a chunk at a time; each stays unless it duplicates one that stayed before it.

    What stays is what `nms_masks` keeps of all of them, the first `capacity`, in one block of words: on the CPU, pages
    of it that no mask reaches take no memory.
    """

    def __init__(self, size: tuple[int, int], capacity: int, iou_threshold: float, device: torch.device) -> None:
        self.size, self.capacity, self.iou_threshold = size, capacity, iou_threshold
        rows = capacity + masks_per_chunk(size)  # a chunk is compared with what stays in one block with it
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
        """What stays, best first."""
        return PackedMasks(self._words[: self._count], self.size)

    def add(self, masks: PackedMasks) -> Tensor:
        """Offer masks none of which is better than one offered before, best first.

        masks: at most `masks_per_chunk` of them, on the device of this set.

        Returns the indices of those that stay, int64 [k] on the CPU, increasing.
        """
        count, end = self._count, self._count + len(masks)
        self._put(masks, torch.arange(len(masks), device="cpu"))
        # Those that stay duplicate none of each other, and do so again.
        order = torch.arange(end, device=self._words.device)
        found = (self._words[:end], self._areas[:end], self._boxes[:end], order)
        keep = mask_nms(*found, float(self.iou_threshold), self.size[0], "auto")
        kept = keep[count:].nonzero().flatten().cpu()[: self.capacity - count]  # [k]
        for row, (x0, _, x1, _) in enumerate(masks.boxes.tolist(), start=count):
            self._words[row, x0 * self.size[0] // 64 : x1 * self.size[0] // 64 + 1] = 0
        self._put(masks, kept)
        self._count += len(kept)
        return kept

    def _put(self, masks: PackedMasks, which: Tensor) -> None:
        """Some of the masks into the empty rows behind those that stay."""
        rows, which = slice(self._count, self._count + len(which)), which.to(self._words.device)
        mask_take(masks.words, masks.boxes, self.size[0], which, out=self._words[rows])
        self._areas[rows], self._boxes[rows] = masks.areas[which], masks.boxes[which]


def pairwise_overlap(masks: PackedMasks) -> Tensor:
    """Pixels that each pair of masks shares, int64 [N, N], exact: `mask_overlap` of the masks with themselves.

    That operator copies what lies in the boxes; here no more than CHUNK_BYTES at a time, twice.
    """
    parts = list(_parts_by_box(masks.boxes))
    if len(parts) <= 1:
        return mask_overlap(masks, masks)
    shared = torch.zeros((len(masks), len(masks)), dtype=torch.int64, device=masks.device)  # [N, N]
    for index, a in enumerate(parts):
        for b in parts[index:]:
            part = mask_overlap(masks[a], masks[b])
            shared[a, b], shared[b, a] = part, part.T
    return shared


def _parts_by_box(boxes: Tensor) -> Iterator[slice]:
    """Slices over masks whose boxes, a bit a pixel, come to CHUNK_BYTES at most, or over a single one."""
    start, used = 0, 0
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        need = (x1 - x0) * ((y1 - y0) // 64 + 2) * 8
        if used and used + need > CHUNK_BYTES:
            yield slice(start, index)
            start, used = index, 0
        used += need
    if start < len(boxes):
        yield slice(start, len(boxes))
