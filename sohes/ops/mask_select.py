# SPDX-License-Identifier: Apache-2.0
"""Operators that relate packed masks of one image: non-maximum suppression and parents by coverage."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import sohes.ops.mask_overlap  # noqa: F401 - registers the operator that the references and the CUDA backend call
from sohes.ops._binary import require_binary
from sohes.ops._cuda import run_cuda
from sohes.ops._library import define_op, why_not_cpp, why_not_cuda
from sohes.ops.reference import mask_select as reference
from sohes.ops.reference.mask_pack import chunks

_SCHEMA = (
    '(Tensor words, Tensor areas, Tensor boxes, Tensor order, float {}, SymInt height, str backend="auto") -> Tensor'
)


def _nms_cpp(words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, threshold: float, height: int) -> Tensor:
    keep = torch.empty(len(words), dtype=torch.bool, device="cpu")
    inputs = (t.contiguous() for t in (words, areas, boxes, order))
    require_binary().mask_nms(*inputs, threshold, height, torch.empty_like(order), keep)
    return keep


def _parents_cpp(words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, theta: float, height: int) -> Tensor:
    parents = torch.empty(len(words), dtype=torch.int64, device="cpu")
    inputs = (t.contiguous() for t in (words, areas, boxes, order))
    require_binary().mask_parents(*inputs, theta, height, parents, torch.get_num_threads())
    return parents


def _nms_cuda(words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, threshold: float, height: int) -> Tensor:
    if len(order) < len(words):
        keep = torch.zeros_like(areas, dtype=torch.bool)
        ranks = torch.arange(len(order), device=order.device)
        keep[order] = _nms_cuda(words[order], areas[order], boxes[order], ranks, threshold, height)
        return keep
    num_words = (len(words) + 63) // 64
    duplicates = words.new_empty((len(words), num_words))  # [N, ceil(N / 64)], one bit per pair
    areas, order, rank = areas.contiguous(), order.contiguous(), _ranks(order)
    for rows, shared in _rows_of_overlap(words, boxes, height):
        run_cuda("mask_duplicates_cuda", words, shared, rows.start, areas, order, rank, threshold, duplicates)
    keep = torch.empty_like(areas, dtype=torch.bool)
    run_cuda("mask_keep_cuda", words, duplicates, order, words.new_zeros(num_words), keep)
    return keep


def _parents_cuda(words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, theta: float, height: int) -> Tensor:
    parents = torch.empty_like(areas, memory_format=torch.contiguous_format)
    areas, order, rank = areas.contiguous(), order.contiguous(), _ranks(order)
    for rows, shared in _rows_of_overlap(words, boxes, height):
        run_cuda("mask_parents_cuda", words, shared, rows.start, areas, order, rank, theta, parents)
    return parents


def _ranks(order: Tensor) -> Tensor:
    """The rank of each mask in `order`, int64 [N]."""
    ranks = torch.empty_like(order, memory_format=torch.contiguous_format)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks


def _rows_of_overlap(words: Tensor, boxes: Tensor, height: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows [n, N] of the matrix of intersections, a chunk at a time, so that memory grows with N and not with N * N."""
    for rows in chunks(len(words), len(words)):
        yield rows, torch.ops.sohes.mask_overlap(words[rows], boxes[rows], words, boxes, height)


def mask_nms(
    words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, threshold: float, height: int, backend: str = "auto"
) -> Tensor:
    """Masks kept by greedy non-maximum suppression, bool [N]; `sohes.structures.masks.nms_masks` takes PackedMasks.

    Args:
        words, areas, boxes: int64 [N, V], [N] and [N, 4], as of PackedMasks.
        order: int64 [K], indices of different masks, best first; masks that are not in it are not kept.
        threshold: a mask is dropped if its IoU with a better kept mask is above this.
        height: of the masks in pixels.
    """
    return _nms(words, areas, boxes, order, float(threshold), height, backend)


def mask_parents(
    words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, theta: float, height: int, backend: str = "auto"
) -> Tensor:
    """Parent of each mask by coverage, int64 [N], -1 for none; `structures.forest.build_forest` takes PackedMasks.

    Args as `mask_nms`, except:
        order: int64 [N], indices of all masks, smallest area first.
        theta: least share of a mask that lies in its parent.
    """
    return _parents(words, areas, boxes, order, float(theta), height, backend)


_nms = define_op(
    "mask_nms",
    _SCHEMA.format("threshold"),
    reference=reference.mask_nms,
    fake=lambda words, areas, *rest: torch.empty_like(areas, dtype=torch.bool),
)
_nms.add_backend("cpp", _nms_cpp, why_not_cpp)
_nms.add_backend("cuda", _nms_cuda, why_not_cuda)
_parents = define_op(
    "mask_parents",
    _SCHEMA.format("theta"),
    reference=reference.mask_parents,
    fake=lambda words, areas, *rest: torch.empty_like(areas),
)
_parents.add_backend("cpp", _parents_cpp, why_not_cpp)
_parents.add_backend("cuda", _parents_cuda, why_not_cuda)
