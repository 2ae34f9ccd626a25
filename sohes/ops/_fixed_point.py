# SPDX-License-Identifier: Apache-2.0
"""Sums that do not depend on their order: integers instead of floats, so that atomic additions repeat bit by bit.

A sum of at most `num_terms` numbers, none larger than `largest`, fits 62 bits when counted in units of
2**-62 * largest * num_terms (rounded up to a power of two). Rounding to units costs less than the float32 it replaces.
"""

from __future__ import annotations

import torch
from torch import Tensor


def units_per_one(largest: Tensor, num_terms: int) -> Tensor:
    """largest: float [], on any device -> float64 [] there, a power of two; NaN if `largest` is not finite."""
    bound = largest.double() * num_terms
    exponent = torch.frexp(bound).exponent.clamp(-900, 900)  # bound < 2**exponent; the clamp keeps 2**x a float64
    units = torch.ldexp(torch.ones_like(bound), 62 - exponent)
    return torch.where(bound.isfinite(), units, torch.nan)


def from_units(sums: Tensor, units: Tensor, dtype: torch.dtype) -> Tensor:
    """int64 [...] counted in 1 / units -> the numbers in `dtype`, rounded once."""
    return (sums.double() / units).to(dtype)
