# SPDX-License-Identifier: Apache-2.0
"""mask_from_nodes: nodes of merge trees drawn as packed masks.

Defined in `sohes/ops/reference/mask_nodes.py`. All backends return equal results.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.ops._binary import require_binary
from sohes.ops._library import define_op, why_not_cpp
from sohes.ops._words import zero_words
from sohes.ops.reference import mask_nodes as reference
from sohes.ops.reference.mask_pack import num_words


def mask_from_nodes(
    leaves: Tensor, orders: Tensor, nodes: Tensor, fill_holes: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of nodes of T merge trees over the same L leaves; `sohes.labels.draw` takes MergeTrees.

    Args:
        leaves: int64 [H, W], the leaf of every pixel.
        orders: int64 [T, L], the leaves of each tree depth first (`MergeTree.intervals`): each row a permutation.
        nodes: int64 [N, 3]: tree, start and stop of each node, which has the leaves orders[tree, start:stop].
        fill_holes: whether holes are filled, as by `mask_fill_holes`.
        backend: "auto", "cpp" or "reference".

    Returns:
        Words int64 [N, V], areas int64 [N] and boxes int64 [N, 4] (x0, y0, x1, y1, half-open).

    Raises:
        ValueError: invalid shape, dtype or value. BackendUnavailable: see `sohes.ops._library`.
    """
    for name, tensor, shape in (("leaves", leaves, "H, W"), ("orders", orders, "T, L"), ("nodes", nodes, "N, 3")):
        if tensor.ndim != 2 or tensor.dtype != torch.int64 or (name == "nodes" and tensor.shape[1] != 3):
            raise ValueError(
                f"mask_from_nodes: expected {name} int64 [{shape}], got {tensor.dtype} {list(tensor.shape)}"
            )
        if tensor.device != leaves.device:
            raise ValueError(f"mask_from_nodes: expected {name} on {leaves.device}, got {tensor.device}")
    num_trees, num_leaves = orders.shape
    for name, values in (("leaves", leaves), ("orders", orders)):
        if not _is_within(values, num_leaves):
            raise ValueError(f"mask_from_nodes: expected {name} in [0, {num_leaves})")
    if orders.numel() and not torch.zeros_like(orders, dtype=torch.bool).scatter_(1, orders, True).all():
        raise ValueError(f"mask_from_nodes: expected every row of orders to be a permutation of {num_leaves} leaves")
    if not _is_within(nodes[:, 0], num_trees):
        raise ValueError(f"mask_from_nodes: expected trees of nodes in [0, {num_trees})")
    if not (_is_within(nodes[:, 1:], num_leaves + 1) and (nodes[:, 1] <= nodes[:, 2]).all()):
        raise ValueError(f"mask_from_nodes: expected 0 <= start <= stop <= {num_leaves} of nodes")
    return OPERATOR(leaves, orders, nodes, bool(fill_holes), backend)


def _is_within(values: Tensor, end: int) -> bool:
    """Whether all values are in [0, end)."""
    if values.numel() == 0:
        return True
    low, high = values.aminmax()
    return bool((low >= 0) & (high < end))


def _fake(leaves: Tensor, orders: Tensor, nodes: Tensor, fill_holes: bool) -> tuple[Tensor, Tensor, Tensor]:
    N = nodes.shape[0]
    words = leaves.new_empty((N, num_words((leaves.shape[0], leaves.shape[1]))))
    return words, leaves.new_empty((N,)), leaves.new_empty((N, 4))


def _run_cpp(leaves: Tensor, orders: Tensor, nodes: Tensor, fill_holes: bool) -> tuple[Tensor, Tensor, Tensor]:
    (H, W), N, threads = leaves.shape, len(nodes), torch.get_num_threads()
    runs = leaves.new_empty(2 * H * W + 5 * orders.shape[1] + 1)
    holes = leaves.new_empty((threads, 2 * W * (H + 1) if fill_holes else 0))
    out = zero_words(N, (H, W)), leaves.new_empty(N), leaves.new_empty((N, 4))
    args = leaves.T.contiguous(), orders.contiguous(), nodes.contiguous(), fill_holes
    require_binary().mask_from_nodes(*args, runs, holes, *out, threads)
    return out


OPERATOR = define_op(
    "mask_from_nodes",
    "(Tensor leaves, Tensor orders, Tensor nodes, bool fill_holes, "
    'str backend="auto") -> (Tensor words, Tensor areas, Tensor boxes)',
    reference=reference.mask_from_nodes,
    fake=_fake,
)
OPERATOR.add_backend("cpp", run=_run_cpp, why_not=why_not_cpp)
