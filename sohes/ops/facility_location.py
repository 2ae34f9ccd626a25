# SPDX-License-Identifier: Apache-2.0
"""facility_location: items that cover all items best, one after another."""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.ops._binary import require_binary
from sohes.ops._library import define_op, refuse_tangents, why_not_cpp
from sohes.ops.reference import facility_location as reference


def facility_location(
    pairs: Tensor, similarity: Tensor, weights: Tensor, factors: Tensor, num: int, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The first items of a greedy order that covers all items, int64 [K], K = min(num, N), and gains float32 [K].

    The value of chosen items S is sum_i weights[i] * max_{s in S} sim(i, s), the facility-location function, which is
    submodular (Nemhauser, Wolsey & Fisher, 1978). Each next item j is the one with the largest factors[j] * (what j
    adds to the value); of equal ones the one with the smallest index. Its gain is that product. Gains are not clamped,
    and never increase. The kernel computes only the values that can matter (lazy greedy: Minoux, 1978), in float64 in a
    fixed order, and agrees exactly with the reference.

    Masks of one image, for example: similarity grows with IoU, and weights are how likely each mask is an object. The
    value is then the recall to expect of the chosen masks.

    Args:
        pairs: int64 [E, 2], i < j < N, in any order, each pair once.
        similarity: float32 [E] in [0, 1]. Of an item with itself it is 1, of two that are no pair 0.
        weights: float32 [N] >= 0, the value of each item when it is covered fully.
        factors: float32 [N] > 0.
        num: of items, >= 0.
        backend: "auto", "cpp" or "reference".

    Raises:
        ValueError: invalid shape, dtype, device or value. BackendUnavailable: see `sohes.ops._library`.
    """
    refuse_tangents("facility_location", similarity, weights, factors)
    _check(pairs, similarity, weights, factors, num)
    similarity = similarity.detach()
    key = pairs[:, 0] * len(weights) + pairs[:, 1]  # [E]
    if not (key[1:] > key[:-1]).all():
        key, order = key.sort()
        if (key[1:] == key[:-1]).any():
            raise ValueError("facility_location: expected each pair once")
        pairs, similarity = pairs[order], similarity[order]
    return _location(pairs, similarity, weights.detach(), factors.detach(), int(num), backend)


def _check(pairs: Tensor, similarity: Tensor, weights: Tensor, factors: Tensor, num: int) -> None:
    def expected(what: str, tensor: Tensor) -> ValueError:
        return ValueError(f"facility_location: expected {what}, got {tensor.dtype} {list(tensor.shape)}")

    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64:
        raise expected("pairs int64 [E, 2]", pairs)
    if weights.ndim != 1 or weights.dtype != torch.float32:
        raise expected("weights float32 [N]", weights)
    if similarity.shape != pairs.shape[:1] or similarity.dtype != torch.float32:
        raise expected(f"similarity float32 [{len(pairs)}]", similarity)
    if factors.shape != weights.shape or factors.dtype != torch.float32:
        raise expected(f"factors float32 [{len(weights)}]", factors)
    devices = {tensor.device: None for tensor in (pairs, similarity, weights, factors)}
    if len(devices) > 1:
        raise ValueError(f"facility_location: expected one device, got {' and '.join(map(str, devices))}")
    first, second = pairs.unbind(1)  # [E] each
    if not ((first >= 0) & (first < second) & (second < len(weights))).all():
        raise ValueError(f"facility_location: expected pairs i < j in [0, {len(weights)})")
    if not ((similarity >= 0) & (similarity <= 1)).all():
        raise ValueError("facility_location: expected similarity in [0, 1]")
    if not ((weights >= 0) & weights.isfinite()).all():
        raise ValueError("facility_location: expected finite weights >= 0")
    if not ((factors > 0) & factors.isfinite()).all():
        raise ValueError("facility_location: expected finite factors > 0")
    if num < 0:
        raise ValueError(f"facility_location: expected num >= 0, got {num}")


def _fake(pairs: Tensor, similarity: Tensor, weights: Tensor, factors: Tensor, num: int) -> tuple[Tensor, Tensor]:
    count = torch.sym_min(num, weights.shape[0])
    return pairs.new_empty((count,)), weights.new_empty((count,))


def _run_cpp(pairs: Tensor, similarity: Tensor, weights: Tensor, factors: Tensor, num: int) -> tuple[Tensor, Tensor]:
    outputs = _fake(pairs, similarity, weights, factors, num)
    inputs = (tensor.contiguous() for tensor in (pairs, similarity, weights, factors))
    binary = require_binary()
    scratch = pairs.new_empty(binary.facility_location_scratch(len(weights), len(pairs)))
    binary.facility_location(*inputs, scratch, *outputs)
    return outputs


_location = define_op(
    "facility_location",
    "(Tensor pairs, Tensor similarity, Tensor weights, Tensor factors, SymInt num, "
    'str backend="auto") -> (Tensor order, Tensor gains)',
    reference=reference.facility_location,
    fake=_fake,
)
_location.add_backend("cpp", _run_cpp, why_not_cpp)
