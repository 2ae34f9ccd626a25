# SPDX-License-Identifier: Apache-2.0
"""PackedMasks: binary masks of one size with one bit per pixel, and IoU, coverage and non-maximum suppression."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sohes.ops import mask_regions, mask_rle
from sohes.ops.mask_nodes import mask_from_nodes
from sohes.ops.mask_overlap import mask_overlap
from sohes.ops.mask_pack import (
    mask_cat,
    mask_from_index,
    mask_pack,
    mask_pack_logits,
    mask_stats,
    mask_take,
    mask_unpack,
)
from sohes.ops.mask_select import mask_nms
from sohes.ops.reference.mask_pack import num_words

Size = tuple[int, int]
Index = int | np.integer | slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]
_INDEX = "an integer, a slice, or a vector of integers or bools"


@dataclass(frozen=True, eq=False, repr=False)
class PackedMasks:
    """N masks of one size (H, W), 64 pixels per word; N, H and W may be 0.

    words: int64 [N, ceil(H*W/64)]. Pixel (y, x) is flat bit `i = x*H + y` (column-major, as in COCO RLE), at position
        `i % 64` of word `i // 64`; bits after H*W are zero.
    size: (H, W) in pixels.
    """

    words: Tensor
    size: Size

    def __post_init__(self) -> None:
        if not isinstance(self.words, Tensor):
            raise TypeError(
                f"PackedMasks: expected int64 words [N, V], got {type(self.words).__name__}; "
                "use PackedMasks.from_dense for dense masks"
            )
        object.__setattr__(self, "size", as_size(self.size))  # also accepts lists and numpy integers
        expected = num_words(self.size)
        if self.words.dtype != torch.int64 or self.words.ndim != 2 or self.words.shape[1] != expected:
            got = f"{self.words.dtype} {list(self.words.shape)}"
            raise ValueError(f"PackedMasks: expected int64 words [N, {expected}] for {self.size}, got {got}")

    @classmethod
    def empty(cls, size: Size, device: torch.device | str | None = None) -> PackedMasks:
        """Zero masks of this size, on the CPU unless `device` is given."""
        size = as_size(size)
        return cls(torch.zeros((0, num_words(size)), dtype=torch.int64, device=device or "cpu"), size)

    @classmethod
    def from_dense(cls, masks: Tensor | np.ndarray) -> PackedMasks:
        """Masks from bool or uint8 [N, H, W], a tensor or an array of any strides; non-zero is inside."""
        dense = _as_tensor(masks, "from_dense: expected bool or uint8 [N, H, W]")
        packed = mask_pack(dense)
        return _with_stats(cls(packed[0], (dense.shape[1], dense.shape[2])), *packed[1:])

    @classmethod
    def from_logits(cls, logits: Tensor | np.ndarray, size: Size, threshold: float = 0.0) -> PackedMasks:
        """Masks of `size` where logits [N, h, w], upsampled bilinearly (align_corners=False), are > `threshold`.

        The upsampled logits are never stored in full, so memory does not grow with N. NaN is outside.
        """
        size = as_size(size)
        packed = mask_pack_logits(_as_tensor(logits, "from_logits: expected [N, h, w]"), size, threshold)
        return _with_stats(cls(packed[0], size), *packed[1:])

    @classmethod
    def from_label_map(cls, labels: Tensor | np.ndarray, ids: Tensor | np.ndarray | Sequence[int]) -> PackedMasks:
        """N masks from integer labels [H, W] and ids [N]: mask n contains the pixels with label ids[n]."""
        labels = _as_tensor(labels, "from_label_map: expected integer [H, W]")
        ids = torch.as_tensor(ids, dtype=torch.int64, device=labels.device)
        if labels.ndim != 2 or labels.is_floating_point():
            raise ValueError(f"from_label_map: expected integer [H, W], got {labels.dtype} {list(labels.shape)}")
        distinct, place = torch.unique(ids, return_inverse=True)  # [ids], [N]
        size = (labels.shape[0], labels.shape[1])
        if len(distinct) == 0:
            return cls.empty(size, labels.device)
        index = torch.searchsorted(distinct, labels.long().contiguous()).clamp(max=len(distinct) - 1)  # [H, W]
        index = torch.where(distinct[index] == labels, index, -1)  # [H, W]
        masks = cls(mask_from_index(index, len(distinct)), size)
        return masks if torch.equal(place, torch.arange(len(distinct), device=place.device)) else masks[place]

    @classmethod
    def from_nodes(cls, leaves: Tensor, orders: Tensor, nodes: Tensor, fill_holes: bool = False) -> PackedMasks:
        """Masks of nodes of merge trees: arguments and errors of `sohes.ops.mask_from_nodes`."""
        packed = mask_from_nodes(leaves, orders, nodes, fill_holes)
        return _with_stats(cls(packed[0], (leaves.shape[0], leaves.shape[1])), *packed[1:])

    @classmethod
    def from_rle(cls, rles: Sequence[Mapping], size: Size | None = None) -> PackedMasks:
        """Masks from COCO RLE: {"size": [H, W], "counts": str, bytes or list of run lengths}.

        An empty list needs a `size`. Raises ValueError if sizes differ, a string is not RLE, or the runs do not sum to
        H * W.
        """
        if size is None and len(rles) == 0:
            raise ValueError("PackedMasks.from_rle: expected a size with an empty list")
        height, width = rles[0]["size"] if size is None else size
        size = (int(height), int(width))
        for index, rle in enumerate(rles):
            if tuple(rle["size"]) != size:
                raise ValueError(f"PackedMasks.from_rle: expected size {size}, got {tuple(rle['size'])} at {index}")
        return cls(mask_rle.decode_rle([rle["counts"] for rle in rles], size[0] * size[1]), size)

    @classmethod
    def cat(cls, sets: Sequence[PackedMasks]) -> PackedMasks:
        """Concatenation of at least one set, all of one size and device."""
        sizes = {masks.size for masks in sets}
        if len(sizes) != 1:
            raise ValueError(f"PackedMasks.cat: expected sets of one size, got {sorted(sizes)}")
        joined = cls(mask_cat(sets), sets[0].size)
        if all("_stats" in masks.__dict__ for masks in sets):
            _with_stats(joined, torch.cat([masks.areas for masks in sets]), torch.cat([masks.boxes for masks in sets]))
        return joined

    def to_dense(self) -> Tensor:
        """Dense masks, bool [N, H, W]."""
        return mask_unpack(self.words, self.size)

    def to_rle(self) -> list[dict]:
        """Compressed COCO RLE with `counts` as str, equal to that of pycocotools."""
        boxes = self.boxes if "_stats" in self.__dict__ else None  # computing boxes would read all words
        counts = mask_rle.encode_rle(self.words, self.size[0] * self.size[1], boxes, self.size[0])
        return [{"size": list(self.size), "counts": one} for one in counts]

    @cached_property
    def _stats(self) -> tuple[Tensor, Tensor]:
        return mask_stats(self.words, self.size)

    @property
    def areas(self) -> Tensor:
        """Number of pixels of each mask, int64 [N]."""
        return self._stats[0]

    @property
    def boxes(self) -> Tensor:
        """Boxes int64 [N, 4] in pixels: x0, y0, x1, y1, half-open; zeros for an empty mask."""
        return self._stats[1]

    @property
    def device(self) -> torch.device:
        return self.words.device

    def to(self, device: torch.device | str) -> PackedMasks:
        """The same masks on another device."""
        masks = PackedMasks(self.words.to(device), self.size)
        return _with_stats(masks, self.areas.to(device), self.boxes.to(device))

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        where = "" if self.words.is_cpu else f", {self.words.device}"
        return f"PackedMasks({len(self)} masks of {self.size[0]} x {self.size[1]}{where})"

    def __getitem__(self, index: Index) -> PackedMasks:
        """The selected masks, in the order of the index; a single integer gives a set of one mask.

        index: in a form that `as_indices` accepts; raises the same errors. A slice with a positive step is a view.
        """
        if isinstance(index, slice) and (index.step is None or index.step > 0):
            chosen: slice | Tensor = slice(*index.indices(len(self)))
            words = self.words[chosen]
        else:
            chosen = as_indices(index, len(self), self.words.device)
            words = mask_take(self.words, self.boxes, self.size[0], chosen)
        return _with_stats(PackedMasks(words, self.size), self.areas[chosen], self.boxes[chosen])

    def fill_holes(self) -> PackedMasks:
        """Masks with holes filled: background regions (4-connected) that do not touch the border of the image."""
        return mask_regions.mask_fill_holes(self)

    def largest_component(self) -> PackedMasks:
        """The largest component (8-connected) of each mask; of equal ones the first, column by column."""
        return mask_regions.mask_largest_component(self)

    def components(self) -> tuple[PackedMasks, Tensor]:
        """All R components (8-connected) of all masks, and the index of the mask of each, int64 [R]."""
        return mask_regions.mask_components(self)

    def boundary(self) -> PackedMasks:
        """The pixels of each mask with a 4-neighbour outside the mask or the image."""
        return mask_regions.mask_boundary(self)

    def resize(self, size: Size) -> PackedMasks:
        """Masks resized by nearest neighbour at pixel centres; of their own size, these masks themselves."""
        size = as_size(size)
        return self if size == self.size else mask_regions.mask_resize(self, size)

    def num_corners(self) -> Tensor:
        """Number of the four corner pixels of the image in each mask, int64 [N]."""
        height, width = self.size
        if height * width == 0:
            return self.words.new_zeros(len(self))
        corners = [0, height - 1, (width - 1) * height, width * height - 1]  # flat bits
        return torch.stack([(self.words[:, i // 64] >> (i % 64)) & 1 for i in corners]).sum(0)


def _with_stats(masks: PackedMasks, areas: Tensor, boxes: Tensor) -> PackedMasks:
    """`masks` with areas and boxes cached."""
    masks.__dict__["_stats"] = (areas, boxes)
    return masks


def as_indices(index: Index, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Indices int64 [kept] from 0 to count - 1, on `device`, from any kind of index.

    Args:
        index: an integer of Python, numpy or a 0-d tensor; a slice; or a vector (tensor, array, list, range) of
            integers, or of `count` bools. Negative integers count from the end.

    Raises:
        IndexError: an integer out of range, or a number of bools other than `count`.
        TypeError: any other index.
    """
    if isinstance(index, slice):
        return torch.tensor(range(*index.indices(count)), dtype=torch.int64, device=device)
    if isinstance(index, Tensor):
        chosen = index.detach()
    else:
        chosen = torch.from_numpy(_as_integers(index))
    if chosen.dtype.is_floating_point or chosen.dtype.is_complex or chosen.ndim > 1:
        raise TypeError(f"expected {_INDEX}, got {chosen.dtype} {list(chosen.shape)}")
    if chosen.dtype == torch.bool:
        if chosen.ndim == 0:
            raise TypeError(f"expected {_INDEX}, got a single bool")
        if len(chosen) != count:
            raise IndexError(f"expected {count} bools, one for each, got {len(chosen)}")
        return chosen.nonzero().flatten().to(device)
    chosen = chosen.to(device, torch.int64).reshape(-1)  # [kept]
    if len(chosen):
        low, high = (int(value) for value in chosen.aminmax())
        if low < -count or high >= count:
            raise IndexError(f"index {low if low < -count else high} is out of range for {count}")
    return torch.where(chosen < 0, chosen + count, chosen)


def _as_integers(index: object) -> np.ndarray:
    array = np.asarray(index)
    if array.size == 0 and array.ndim == 1 and not isinstance(index, np.ndarray):
        return np.zeros(0, np.int64)  # numpy makes floats of an empty list
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        return array.astype(bool if array.dtype == bool else np.int64)
    got = type(index).__name__ if array.dtype == object or array.dtype.kind in "US" else f"{array.dtype}"
    raise TypeError(f"expected {_INDEX}, got {got}")


def as_size(size: Sequence[int]) -> Size:
    """(H, W) as Python integers. Raises ValueError for anything but two integers >= 0."""
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise ValueError(f"expected a size (H, W) of integers, got {size!r}") from None
    if height < 0 or width < 0:
        raise ValueError(f"expected a size (H, W) of at least 0 x 0, got {size!r}")
    return height, width


def _as_tensor(array: Tensor | np.ndarray, expected: str) -> Tensor:
    if isinstance(array, Tensor):
        return array
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{expected}, a tensor or an array, got {type(array).__name__}")
    # torch cannot share an array with negative strides, and warns about a read-only one.
    shareable = array.flags.writeable and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if shareable else array.copy())


def mask_iou(a: PackedMasks, b: PackedMasks) -> Tensor:
    """Intersection over union of every pair, float32 [N, M]; 0 where both masks are empty."""
    overlap = mask_overlap(a, b)  # [N, M]
    union = a.areas[:, None] + b.areas[None, :] - overlap  # [N, M]
    return (overlap.double() / union.clamp(min=1)).float()


def mask_coverage(a: PackedMasks, b: PackedMasks) -> Tensor:
    """Share of mask a_i inside mask b_j, float32 [N, M]; 0 where a_i is empty."""
    return (mask_overlap(a, b).double() / a.areas[:, None].clamp(min=1)).float()


def nms_masks(
    masks: PackedMasks,
    iou_threshold: float = 0.9,
    scores: Tensor | np.ndarray | Sequence[float] | None = None,
    backend: str = "auto",
    *,
    among: Tensor | None = None,
) -> Tensor:
    """Indices int64 [kept] of the masks kept by greedy non-maximum suppression, best first.

    Masks are ordered by score, or by area if `scores` is None; of equal ones the lower index is better. A mask is
    dropped if its IoU with a better kept mask is above `iou_threshold`. Two empty masks have IoU 0. With `among`, bool
    [N], the other masks are left out: neither kept nor compared with.
    """
    rank = masks.areas if scores is None else torch.as_tensor(scores, device=getattr(scores, "device", "cpu"))
    if rank.shape != (len(masks),):
        raise ValueError(f"nms_masks: expected scores [{len(masks)}], got {list(rank.shape)}")
    order = rank.argsort(descending=True, stable=True).to(masks.device)  # [N]
    if among is not None:
        if among.shape != (len(masks),) or among.dtype != torch.bool:
            raise ValueError(f"nms_masks: expected among bool [{len(masks)}], got {among.dtype} {list(among.shape)}")
        order = order[among.to(order.device)[order]]  # [K]
    keep = mask_nms(masks.words, masks.areas, masks.boxes, order, float(iou_threshold), masks.size[0], backend)  # [N]
    return order[keep[order]]
