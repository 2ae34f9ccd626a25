# SPDX-License-Identifier: Apache-2.0
"""Duplicates and parents among packed masks: operators over words. `sohes.masks` and `sohes.forest` wrap them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import sohes.ops.mask_overlap  # noqa: F401 - the references and the CUDA backend call that operator
from sohes._binary import require_binary
from sohes.ops._cuda import run_cuda
from sohes.ops._library import define_op, why_not_cpp, why_not_cuda
from sohes.ops.reference import mask_select as reference
from sohes.ops.reference.mask_pack import chunks

_SCHEMA = (
    '(Tensor words, Tensor areas, Tensor boxes, Tensor order, float {}, SymInt height, str backend="auto") -> Tensor'
)


def _nms_cpp(words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, threshold: float, height: int) -> Tensor:
    keep = torch.empty(len(words), dtype=torch.bool)
    inputs = (t.contiguous() for t in (words, areas, boxes, order))
    require_binary().mask_nms(*inputs, threshold, height, torch.empty_like(areas), keep)
    return keep


def _parents_cpp(words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, theta: float, height: int) -> Tensor:
    parents = torch.empty(len(words), dtype=torch.int64)
    inputs = (t.contiguous() for t in (words, areas, boxes, order))
    require_binary().mask_parents(*inputs, theta, height, parents, torch.get_num_threads())
    return parents


def _nms_cuda(words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, threshold: float, height: int) -> Tensor:
    num_words = (len(words) + 63) // 64
    duplicates = words.new_empty((len(words), num_words))  # [N, ceil(N / 64)], one bit a pair
    areas, order, rank = areas.contiguous(), order.contiguous(), _ranks(order)
    for part, shared in _rows_of_overlap(words, boxes, height):
        run_cuda("mask_duplicates_cuda", words, shared, part.start, areas, order, rank, threshold, duplicates)
    keep = torch.empty_like(areas, dtype=torch.bool)
    run_cuda("mask_keep_cuda", words, duplicates, order, words.new_zeros(num_words), keep)
    return keep


def _parents_cuda(words: Tensor, areas: Tensor, boxes: Tensor, order: Tensor, theta: float, height: int) -> Tensor:
    parents = torch.empty_like(areas, memory_format=torch.contiguous_format)
    areas, order, rank = areas.contiguous(), order.contiguous(), _ranks(order)
    for part, shared in _rows_of_overlap(words, boxes, height):
        run_cuda("mask_parents_cuda", words, shared, part.start, areas, order, rank, theta, parents)
    return parents


def _ranks(order: Tensor) -> Tensor:
    """The place of each mask in `order`, int64 [N]."""
    ranks = torch.empty_like(order, memory_format=torch.contiguous_format)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks


def _rows_of_overlap(words: Tensor, boxes: Tensor, height: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows [n, N] of the intersections of all pairs, so many at a time that memory follows N and not N * N."""
    for part in chunks(len(words), len(words)):
        yield part, torch.ops.sohes.mask_overlap(words[part], boxes[part], words, boxes, height)


mask_nms = define_op(
    "mask_nms",
    _SCHEMA.format("threshold"),
    reference=reference.mask_nms,
    fake=lambda words, areas, *rest: torch.empty_like(areas, dtype=torch.bool),
)
mask_nms.add_backend("cpp", _nms_cpp, why_not_cpp)
mask_nms.add_backend("cuda", _nms_cuda, why_not_cuda)
mask_parents = define_op(
    "mask_parents",
    _SCHEMA.format("theta"),
    reference=reference.mask_parents,
    fake=lambda words, areas, *rest: torch.empty_like(areas),
)
mask_parents.add_backend("cpp", _parents_cpp, why_not_cpp)
mask_parents.add_backend("cuda", _parents_cuda, why_not_cuda)
