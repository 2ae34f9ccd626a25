# SPDX-License-Identifier: Apache-2.0
"""Bitwise repeatable atomic sums: integers in fixed point instead of floats, independent of the order of additions.

A sum of at most `num_terms` numbers up to `largest` fits 62 bits in units of 2**-62 * largest * num_terms (rounded up
to a power of two). The rounding error is smaller than that of the float32 sum it replaces.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def empty_sums(like: Tensor, largest: Callable[[], Tensor], num_terms: int) -> tuple[Tensor, Tensor | None]:
    """Zeros in the shape of `like` for atomic additions, and their units per 1.

    Floats (float32 for half types) and None; under `torch.use_deterministic_algorithms` int64 and `units_per_one`.
    """
    if torch.are_deterministic_algorithms_enabled():
        return torch.zeros_like(like, dtype=torch.int64), units_per_one(largest(), num_terms)
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32)), None


def read_sums(sums: Tensor, units: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The sums in `dtype`, rounded once."""
    return sums.to(dtype) if units is None else (sums.double() / units).to(dtype)


def units_per_one(largest: Tensor, num_terms: int) -> Tensor:
    """float [] on any device -> float64 [] on the same device, a power of two; NaN if `largest` is not finite."""
    bound = largest.double() * num_terms
    exponent = torch.frexp(bound).exponent.clamp(-900, 900)  # bound < 2**exponent; clamped so that 2**x fits float64
    units = torch.ldexp(torch.ones_like(bound), 62 - exponent)
    return torch.where(bound.isfinite(), units, torch.nan)
