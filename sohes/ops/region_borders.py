# SPDX-License-Identifier: Apache-2.0
"""region_borders: which regions of a label map are adjacent, and the edge strength along their borders."""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.ops._binary import require_binary
from sohes.ops._library import define_op, refuse_tangents, why_not_cpp
from sohes.ops.reference import region_borders as reference


def region_borders(labels: Tensor, strength: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Adjacent pairs of regions, int64 [E, 2], lower label first, sorted, and their borders, float32 [E, 2].

    A border is the number of pixel sides between the two regions and the sum of edge strength over these sides, each
    with the larger strength of its two pixels, as `merge_borders` takes them. Sums are float64 in a fixed order. All
    backends return equal results, without gradients.

    Args:
        labels: int64 [H, W], region of each pixel, from 0 on and less than H * W. A number may have no pixel.
        strength: float32 [H, W], on the same device.
        backend: "auto", "cpp" or "reference". The reference also runs on other devices.

    Raises:
        ValueError: invalid shape, dtype, device or value. BackendUnavailable: see `sohes.ops._library`.
    """
    if labels.ndim != 2 or labels.dtype != torch.int64:
        raise ValueError(f"region_borders: expected labels int64 [H, W], got {labels.dtype} {list(labels.shape)}")
    if strength.shape != labels.shape or strength.dtype != torch.float32:
        raise ValueError(
            f"region_borders: expected strength float32 {list(labels.shape)}, got {strength.dtype} "
            f"{list(strength.shape)}"
        )
    if strength.device != labels.device:
        raise ValueError(f"region_borders: expected one device, got {labels.device} and {strength.device}")
    if labels.numel() and not (labels.min() >= 0 and labels.max() < labels.numel()):
        raise ValueError(f"region_borders: expected labels in [0, {labels.numel()})")
    refuse_tangents("region_borders", strength)
    return _borders(labels, strength.detach(), backend)


def _fake(labels: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return labels.new_empty((count, 2)), strength.new_empty((count, 2))


def _run_cpp(labels: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    labels, strength, binary = labels.contiguous(), strength.contiguous(), require_binary()
    num_regions = int(labels.max()) + 1 if labels.numel() else 0
    starts = labels.new_empty(num_regions + 1)
    num_sides = binary.region_sides(labels, starts)
    scratch = labels.new_empty(binary.region_borders_scratch(num_regions, num_sides))
    edges, borders = labels.new_empty((num_sides, 2)), strength.new_empty((num_sides, 2))
    count = binary.region_borders(labels, strength, starts, scratch, edges, borders)
    return edges[:count].clone(), borders[:count].clone()


_borders = define_op(
    "region_borders",
    '(Tensor labels, Tensor strength, str backend="auto") -> (Tensor edges, Tensor borders)',
    reference=reference.region_borders,
    fake=_fake,
)
_borders.add_backend("cpp", _run_cpp, why_not_cpp)
