# SPDX-License-Identifier: Apache-2.0
"""Words of packed masks: read from PackedMasks or tensors, and allocated on the CPU.

Allocating new memory takes as long as packing masks into it. So new memory is zeroed once, by the system, and the
memory of one set of masks is reused for the next set.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections import deque
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from sohes.ops.reference.mask_pack import num_words

KEPT_BYTES = (4 << 20, 40 << 20)  # smallest and largest block that is kept; the largest holds 1000 masks of 480 x 640
LARGEST_MASK = 1 << 20  # bytes of the largest mask that fits the cache of a core

Size = tuple[int, int]


class PackedLike(Protocol):
    """Interface of packed masks as operators use them, implemented by `sohes.structures.masks.PackedMasks`.

    words: int64 [N, V]. size: (H, W). areas: int64 [N]. boxes: int64 [N, 4].
    """

    @property
    def words(self) -> Tensor: ...
    @property
    def size(self) -> Size: ...
    @property
    def areas(self) -> Tensor: ...
    @property
    def boxes(self) -> Tensor: ...


Packed = TypeVar("Packed", bound=PackedLike)

_kept: deque[np.ndarray] = deque(maxlen=1)  # append and popleft are thread-safe


def words_of(op: str, masks: Any, size: Size | None) -> tuple[Tensor, Size]:
    """Words int64 [N, V] and size (H, W) of PackedMasks, or of words and their `size`. Raises TypeError, ValueError."""
    if not isinstance(masks, Tensor):
        if size is not None or not hasattr(masks, "words"):
            raise TypeError(
                f"{op}: expected PackedMasks, or words int64 [N, V] with a size, got {type(masks).__name__}"
                + (" with a size" if size is not None else "")
            )
        return masks.words, masks.size
    if size is None:
        raise TypeError(f"{op}: expected a size (H, W) with words")
    size = (int(size[0]), int(size[1]))
    if masks.dtype != torch.int64 or masks.ndim != 2 or masks.shape[1] != num_words(size):
        got = f"{masks.dtype} {list(masks.shape)}"
        raise ValueError(f"{op}: expected int64 words [N, {num_words(size)}] for {list(size)}, got {got}")
    return masks, size


def like_masks(masks: Any, words: Tensor, size: Size) -> Any:
    """`words` in the type of `masks`: a tensor, or PackedMasks of this size."""
    return words if isinstance(masks, Tensor) else dataclasses.replace(masks, words=words, size=size)


def zero_words(num_masks: int, size: tuple[int, int]) -> Tensor:
    """int64 [N, V] of zeros on the CPU, allocated by `calloc` through numpy.

    Large blocks come zeroed from the system; `torch.zeros` would write the zeros again.
    """
    if num_masks == 0:  # from_numpy drops the strides of an empty array, and later views of it fail
        return torch.zeros((0, num_words(size)), dtype=torch.int64, device="cpu")
    return torch.from_numpy(np.zeros((num_masks, num_words(size)), np.int64))


def reused_words(num_masks: int, size: tuple[int, int]) -> tuple[Tensor, bool]:
    """int64 [N, V] on the CPU, and whether it is zeroed; memory that held other masks before is not.

    The memory is kept for the next call when the last tensor that shares it is deleted, one block at a time. Packing
    1000 masks of 480 x 640 takes 22 ms in reused memory and 27 ms in new memory.
    """
    shape = (num_masks, num_words(size))
    wanted = shape[0] * shape[1]
    if not KEPT_BYTES[0] <= 8 * wanted <= KEPT_BYTES[1] or 8 * shape[1] > LARGEST_MASK:
        return zero_words(num_masks, size), True
    try:
        block = _kept.popleft()
    except IndexError:
        block = np.zeros(0, np.int64)
    is_new = not wanted <= len(block) <= 2 * wanted
    if is_new:
        block = np.zeros(wanted, np.int64)
    view = block[:wanted].reshape(shape)
    weakref.finalize(view, _kept.append, block).atexit = False  # the tensor keeps `view` alive
    return torch.from_numpy(view), is_new
