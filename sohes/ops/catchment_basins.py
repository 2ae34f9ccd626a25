# SPDX-License-Identifier: Apache-2.0
"""catchment_basins: a watershed by steepest descent, after Vincent and Soille (1991)."""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.ops._binary import require_binary
from sohes.ops._library import define_op, refuse_tangents, why_not_cpp
from sohes.ops.reference import catchment_basins as reference


def catchment_basins(height: Tensor, backend: str = "auto") -> Tensor:
    """Basin of every pixel, int64 [H, W], numbered 0..N-1 in the raster order of their minima.

    Every pixel flows to the lowest of itself and its 4 neighbours, and all that ends in one minimum is one basin. Of
    equal heights the pixel of smaller flat index is the lower one. All backends return equal labels.

    Args:
        height: float32 [H, W], finite; H and W may be 0. On a gradient of an image, borders of basins lie on edges.
        backend: "auto", "cpp" or "reference". The reference also runs on other devices.

    Raises:
        ValueError: invalid shape, dtype or value. BackendUnavailable: see `sohes.ops._library`.
    """
    if height.ndim != 2 or height.dtype != torch.float32:
        raise ValueError(f"catchment_basins: expected height float32 [H, W], got {height.dtype} {list(height.shape)}")
    refuse_tangents("catchment_basins", height)
    height = height.detach()
    if height.numel() and not torch.stack(height.aminmax()).isfinite().all():
        raise ValueError("catchment_basins: expected finite height")
    return _basins(height, backend)


def _fake(height: Tensor) -> Tensor:
    return height.new_empty(height.shape, dtype=torch.int64)


def _run_cpp(height: Tensor) -> Tensor:
    labels = _fake(height)
    require_binary().catchment_basins(height.contiguous(), labels)
    return labels


_basins = define_op(
    "catchment_basins",
    '(Tensor height, str backend="auto") -> Tensor',
    reference=reference.catchment_basins,
    fake=_fake,
)
_basins.add_backend("cpp", _run_cpp, why_not_cpp)
