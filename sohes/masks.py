# SPDX-License-Identifier: Apache-2.0
"""Sets of binary masks of one size, one bit a pixel, and what is asked of them most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sohes.ops.mask_overlap import mask_overlap
from sohes.ops.reference import mask_pack, mask_rle

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """N masks of one size (H, W), 64 pixels a word; any number of masks and any size are legal, zero too.

    words: int64 [N, ceil(H*W/64)]. Pixel (y, x) is flat bit ``i = x*H + y`` (column-major, as COCO RLE), in word ``i // 64``
    at position ``i % 64``; bits past H*W are zero.
    size: (H, W) in pixels.
    """

    words: Tensor
    size: Size

    def __post_init__(self) -> None:
        expected = mask_pack.num_words(self.size)
        if self.words.dtype != torch.int64 or self.words.ndim != 2 or self.words.shape[1] != expected:
            got = f"{str(self.words.dtype).removeprefix('torch.')} {list(self.words.shape)}"
            raise ValueError(f"PackedMasks: expected words int64 [N, {expected}] for size {self.size}, got {got}")

    @classmethod
    def empty(cls, size: Size, device: torch.device | str | None = None) -> PackedMasks:
        """No masks at all, of this size."""
        return cls(torch.zeros((0, mask_pack.num_words(size)), dtype=torch.int64, device=device), tuple(size))

    @classmethod
    def from_dense(cls, masks: Tensor | np.ndarray) -> PackedMasks:
        """bool or uint8 [N, H, W], tensor or array, of any strides; non-zero is inside."""
        dense = torch.from_numpy(masks) if isinstance(masks, np.ndarray) else masks
        if dense.ndim != 3 or dense.dtype not in (torch.bool, torch.uint8):
            got = f"{str(dense.dtype).removeprefix('torch.')} {list(dense.shape)}"
            raise ValueError(f"PackedMasks.from_dense: expected bool or uint8 [N, H, W], got {got}")
        return cls(mask_pack.pack_dense(dense), (dense.shape[1], dense.shape[2]))

    @classmethod
    def from_logits(cls, logits: Tensor, size: Size, threshold: float = 0.0) -> PackedMasks:
        """Logits [N, h, w] -> masks of ``size`` where the bilinear upsampling (align_corners False) is > ``threshold``.

        A chunk of masks is upsampled at a time, so memory does not grow with N. NaN is outside.
        """
        if logits.ndim != 3 or not logits.is_floating_point():
            got = f"{str(logits.dtype).removeprefix('torch.')} {list(logits.shape)}"
            raise ValueError(f"PackedMasks.from_logits: expected floating-point [N, h, w], got {got}")
        return cls(mask_pack.pack_logits(logits.detach(), tuple(size), threshold), tuple(size))

    @classmethod
    def from_label_map(cls, labels: Tensor, ids: Tensor) -> PackedMasks:
        """Labels int [H, W] and ids [N] -> mask n is where the label equals ids[n]."""
        parts = [
            mask_pack.pack_dense(labels[None] == ids[part, None, None])
            for part in mask_pack.chunks(len(ids), tuple(labels.shape))
        ]
        masks = cls.empty(tuple(labels.shape), labels.device)
        return cls(torch.cat([masks.words, *parts]), masks.size)

    @classmethod
    def from_rle(cls, rles: Sequence[Mapping], size: Size | None = None) -> PackedMasks:
        """COCO RLE ({"size": [H, W], "counts": str, bytes or list of run lengths}). ``size`` is needed only for no RLE at all.

        Raises ValueError when the sizes differ or the runs do not add up to H * W.
        """
        if size is None:
            if len(rles) == 0:
                raise ValueError("PackedMasks.from_rle: expected a size when there is no RLE")
            size = rles[0]["size"]
        size = (int(size[0]), int(size[1]))
        for index, rle in enumerate(rles):
            if tuple(rle["size"]) != size:
                raise ValueError(f"PackedMasks.from_rle: expected size {size}, got {tuple(rle['size'])} at {index}")
        return cls(mask_rle.decode_rle([rle["counts"] for rle in rles], size), size)

    @classmethod
    def cat(cls, sets: Sequence[PackedMasks]) -> PackedMasks:
        """One set after the other. At least one set; all of one size."""
        sizes = {masks.size for masks in sets}
        if len(sizes) != 1:
            raise ValueError(f"PackedMasks.cat: expected sets of one size, got {sorted(sizes)}")
        return cls(torch.cat([masks.words for masks in sets]), sets[0].size)

    def to_dense(self) -> Tensor:
        """bool [N, H, W]."""
        return mask_pack.unpack_dense(self.words, self.size)

    def to_rle(self) -> list[dict]:
        """Compressed COCO RLE, ``counts`` as str, equal to pycocotools' to the bit."""
        counts = mask_rle.encode_rle(self.words.cpu(), self.size)
        return [{"size": list(self.size), "counts": one} for one in counts]

    @cached_property
    def areas(self) -> Tensor:
        """Pixels of each mask, int64 [N]."""
        return mask_pack.mask_areas(self.words)

    @cached_property
    def boxes(self) -> Tensor:
        """Boxes int64 [N, 4] in pixels: x0, y0, x1, y1, half-open; zeros for an empty mask."""
        return mask_pack.mask_boxes(self.words, self.size)

    @property
    def device(self) -> torch.device:
        return self.words.device

    def to(self, device: torch.device | str) -> PackedMasks:
        """The same masks on another device."""
        return PackedMasks(self.words.to(device), self.size)

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int | slice | Tensor) -> PackedMasks:
        """Some of the masks, in the order asked for; an int gives a set of one."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"mask {index} of {len(self)}")
            index = slice(index, index + 1 or None)
        return PackedMasks(self.words[index], self.size)


def mask_iou(a: PackedMasks, b: PackedMasks) -> Tensor:
    """Intersection over union of every pair, float32 [N, M]; 0 where both masks are empty."""
    overlap = mask_overlap(a, b).double()  # [N, M]
    union = a.areas[:, None] + b.areas[None, :] - overlap  # [N, M]
    return (overlap / union.clamp(min=1)).float()


def mask_coverage(a: PackedMasks, b: PackedMasks) -> Tensor:
    """Share of mask a_i that lies inside b_j, float32 [N, M]; 0 where a_i is empty."""
    return (mask_overlap(a, b).double() / a.areas[:, None].clamp(min=1)).float()


def nms_masks(masks: PackedMasks, iou_threshold: float = 0.9, scores: Tensor | None = None) -> Tensor:
    """Indices int64 [kept] of the masks that no better one duplicates, best first.

    Better is a higher score, or more pixels where ``scores`` is None; of equals the lower index. A mask is dropped when its
    IoU with a kept one is over ``iou_threshold``. Two empty masks have IoU 0, so none drops the other.
    """
    rank = masks.areas if scores is None else scores
    if rank.shape != (len(masks),):
        raise ValueError(f"nms_masks: expected scores [{len(masks)}], got {list(rank.shape)}")
    order = rank.argsort(descending=True, stable=True).to(masks.device)  # [N]
    ranked = masks[order]
    overlap = mask_overlap(ranked, ranked).double()  # [N, N]
    union = ranked.areas[:, None] + ranked.areas[None, :] - overlap  # [N, N]
    duplicate = (overlap > iou_threshold * union).triu(1).cpu().numpy()  # [N, N], row is the better one
    alive = np.ones(len(masks), bool)
    for index in range(len(masks)):
        if alive[index]:
            alive &= ~duplicate[index]
    return order[torch.from_numpy(alive).to(order.device)]
