# SPDX-License-Identifier: Apache-2.0
"""Duplicates and parents among packed masks: operators over words. `sohes.masks` and `sohes.forest` wrap them."""

from __future__ import annotations

import torch
from torch import Tensor

import sohes.ops.mask_overlap  # noqa: F401 - the references call that operator
from sohes._binary import require_binary
from sohes.ops._library import define_op, why_not_cpp
from sohes.ops.reference import mask_select as reference

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


mask_nms = define_op(
    "mask_nms",
    _SCHEMA.format("threshold"),
    reference=reference.mask_nms,
    fake=lambda words, areas, *rest: torch.empty_like(areas, dtype=torch.bool),
)
mask_nms.add_backend("cpp", _nms_cpp, why_not_cpp)
mask_parents = define_op(
    "mask_parents",
    _SCHEMA.format("theta"),
    reference=reference.mask_parents,
    fake=lambda words, areas, *rest: torch.empty_like(areas),
)
mask_parents.add_backend("cpp", _parents_cpp, why_not_cpp)
