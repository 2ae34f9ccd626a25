# SPDX-License-Identifier: Apache-2.0
"""Exact intersections of two sets of packed masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from sohes.ops.reference.mask_overlap import mask_overlap as reference

if TYPE_CHECKING:
    from sohes.masks import PackedMasks


def mask_overlap(a: PackedMasks, b: PackedMasks, backend: str = "auto") -> Tensor:
    """Pixels shared by every pair: int64 [N, M] of N masks ``a`` and M masks ``b`` of one size."""
    if a.size != b.size:
        raise ValueError(f"mask_overlap: expected masks of one size, got {a.size} and {b.size}")
    return reference(a.words, a.boxes, b.words, b.boxes)
