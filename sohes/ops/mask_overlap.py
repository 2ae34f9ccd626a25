# SPDX-License-Identifier: Apache-2.0
"""mask_overlap: intersections of all pairs of two sets of packed masks."""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.ops._binary import require_binary
from sohes.ops._cuda import run_cuda
from sohes.ops._library import define_op, why_not_cpp, why_not_cuda, why_not_triton
from sohes.ops._words import PackedLike
from sohes.ops.reference import mask_overlap as reference


def mask_overlap(a: PackedLike, b: PackedLike, backend: str = "auto") -> Tensor:
    """Number of pixels in the intersection of each mask of `a` with each mask of `b`: int64 [N, M]. No gradient.

    Args:
        a, b: N and M PackedMasks of one size on one device; N, M and the masks may be empty.
        backend: "auto", "cpp", "cuda", "triton" or "reference".

    Raises:
        TypeError: not PackedMasks. ValueError: sizes or devices differ. BackendUnavailable: see `sohes.ops._library`.
    """
    for masks in (a, b):
        if not hasattr(masks, "words"):
            raise TypeError(f"mask_overlap: expected PackedMasks, got {type(masks).__name__}")
    if a.size != b.size:
        raise ValueError(f"mask_overlap: expected masks of one size, got {a.size} and {b.size}")
    if a.words.device != b.words.device:
        raise ValueError(f"mask_overlap: expected one device, got {a.words.device} and {b.words.device}")
    return _overlap(a.words, a.boxes, b.words, b.boxes, a.size[0], backend)


def _run_cpp(words_a: Tensor, boxes_a: Tensor, words_b: Tensor, boxes_b: Tensor, height: int) -> Tensor:
    out = words_a.new_empty((len(words_a), len(words_b)))
    words_a, boxes_a, words_b, boxes_b = (t.contiguous() for t in (words_a, boxes_a, words_b, boxes_b))
    binary = require_binary()
    scratch = out.new_empty(binary.mask_overlap_scratch(words_a, boxes_a, words_b, boxes_b, height))
    binary.mask_overlap(words_a, boxes_a, words_b, boxes_b, height, scratch, out, torch.get_num_threads())
    return out


def _run_cuda(words_a: Tensor, boxes_a: Tensor, words_b: Tensor, boxes_b: Tensor, height: int) -> Tensor:
    same = words_a.data_ptr() == words_b.data_ptr() and words_a.shape == words_b.shape
    same = same and words_a.stride() == words_b.stride()
    out = words_a.new_zeros((len(words_a), len(words_b)))
    words_a, boxes_a, words_b, boxes_b = (t.contiguous() for t in (words_a, boxes_a, words_b, boxes_b))
    order_a = _spatial_order(boxes_a)
    order_b = order_a if same else _spatial_order(boxes_b)
    words_b = words_a if same else words_b
    run_cuda("mask_overlap_cuda", out, words_a, boxes_a, order_a, words_b, boxes_b, order_b, height, out)
    return out


def _spatial_order(boxes: Tensor) -> Tensor:
    """Permutation int64 [N] that puts nearby masks side by side: narrow boxes from left to right, then wide boxes."""
    if len(boxes) == 0:
        return boxes.new_zeros(0)
    left, right = boxes[:, 0], boxes[:, 2]  # [N] each
    end = right.max()
    return (torch.where(right - left > end // 4, 2 * end, 0) + left + right).argsort()


def _run_triton(words_a: Tensor, boxes_a: Tensor, words_b: Tensor, boxes_b: Tensor, height: int) -> Tensor:
    from sohes.ops.triton import mask_overlap as kernels  # triton may not be installed

    return kernels.mask_overlap(words_a, boxes_a, words_b, boxes_b, height)


def _fake(words_a: Tensor, boxes_a: Tensor, words_b: Tensor, boxes_b: Tensor, height: int) -> Tensor:
    return words_a.new_empty((words_a.shape[0], words_b.shape[0]))


_overlap = define_op(
    "mask_overlap",
    '(Tensor words_a, Tensor boxes_a, Tensor words_b, Tensor boxes_b, SymInt height, str backend="auto") -> Tensor',
    reference=reference.mask_overlap,
    fake=_fake,
)
_overlap.add_backend("cpp", _run_cpp, why_not_cpp)
_overlap.add_backend("cuda", _run_cuda, why_not_cuda)
_overlap.add_backend("triton", _run_triton, why_not_triton)
