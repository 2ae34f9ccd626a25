# SPDX-License-Identifier: Apache-2.0
"""merge_borders: a merge tree from the features of regions and the edge strength along their borders.

For starting regions with pixel-accurate borders; `merge_regions` uses features alone, as the method does. The order of
merging is defined in `sohes/ops/reference/merge_borders.py`.
"""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from sohes.ops._binary import require_binary
from sohes.ops._library import define_op, refuse_tangents, why_not_cpp
from sohes.ops.merge_tree import MergeTree
from sohes.ops.reference import merge_borders as reference


def merge_borders(
    means: Tensor,
    sizes: Tensor,
    edges: Tensor,
    borders: Tensor,
    *,
    border_weight: float = 3.0,
    size_exponent: float = 0.3,
    backend: str = "auto",
) -> tuple[MergeTree, Tensor]:
    """The merge tree of adjacent regions, merged cheapest pair first until no two are adjacent.

    Args:
        means: float32 [N, C], the mean feature of each starting region, on the CPU.
        sizes: int64 [N], the pixels of each region.
        edges: int32 or int64 [E, 2], adjacent pairs of different regions, each pair once.
        borders: float32 [E, 2], the length of each border (> 0) and the sum of edge strength along it.
        border_weight: weight of the mean edge strength of a border relative to the distance of the means, >= 0.
        size_exponent: how strongly pairs of small regions are preferred, >= 0.
        backend: "auto", "cpp" or "reference".

    Returns:
        The MergeTree (grid None, similarity = -cost), and the length and strength of the border of each merge,
        float32 [M, 2]. Both without gradients.

    Raises:
        ValueError: invalid shape, dtype or value. BackendUnavailable: see `sohes.ops._library`.
    """
    if means.ndim != 2 or 0 in means.shape or means.dtype != torch.float32 or not means.is_cpu:
        raise ValueError(
            f"merge_borders: expected means float32 [N, C] on the CPU, none empty, got {means.dtype} "
            f"{list(means.shape)} on {means.device}"
        )
    if sizes.shape != means.shape[:1] or sizes.dtype != torch.int64 or (sizes < 1).any():
        raise ValueError(
            f"merge_borders: expected sizes int64 [{len(means)}] of at least 1, got {sizes.dtype} {list(sizes.shape)}"
        )
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"merge_borders: expected edges int64 [E, 2], got {edges.dtype} {list(edges.shape)}")
    if edges.numel() and (edges.min() < 0 or edges.max() >= len(means) or (edges[:, 0] == edges[:, 1]).any()):
        raise ValueError(f"merge_borders: expected edges between different regions in [0, {len(means)})")
    if borders.shape != edges.shape or borders.dtype != torch.float32 or not (borders[:, 0] > 0).all():
        raise ValueError(
            f"merge_borders: expected borders float32 {list(edges.shape)}, lengths > 0, got {borders.dtype} "
            f"{list(borders.shape)}"
        )
    if not all(isfinite(value) and value >= 0 for value in (border_weight, size_exponent)):
        raise ValueError(
            f"merge_borders: expected border_weight and size_exponent >= 0, got {border_weight} and {size_exponent}"
        )
    refuse_tangents("merge_borders", means, borders)
    means, borders = means.detach(), borders.detach()
    args = (means.contiguous(), sizes.contiguous(), edges.int().contiguous(), borders.contiguous())
    merges, cost, shared, num_merges = OPERATOR(*args, float(border_weight), float(size_exponent), backend)
    count = int(num_merges)
    tree = MergeTree(len(means), merges[:count], -cost[:count], leaf_sizes=sizes)
    return tree, shared[:count]


def _fake(
    means: Tensor, sizes: Tensor, edges: Tensor, borders: Tensor, border_weight: float, size_exponent: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_regions = means.shape[0]
    return (
        means.new_empty((num_regions, 2), dtype=torch.int32),
        means.new_empty((num_regions,)),
        means.new_empty((num_regions, 2)),
        means.new_empty((1,), dtype=torch.int32),
    )


def _run_cpp(
    means: Tensor, sizes: Tensor, edges: Tensor, borders: Tensor, border_weight: float, size_exponent: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _fake(means, sizes, edges, borders, border_weight, size_exponent)
    require_binary().merge_borders(means, sizes, edges, borders, border_weight, size_exponent, *outputs)
    return outputs


OPERATOR = define_op(
    "merge_borders",
    "(Tensor means, Tensor sizes, Tensor edges, Tensor borders, float border_weight, float size_exponent, "
    'str backend="auto") -> (Tensor merges, Tensor cost, Tensor shared, Tensor num_merges)',
    reference=reference.merge_borders,
    fake=_fake,
)
OPERATOR.add_backend("cpp", run=_run_cpp, why_not=why_not_cpp)
