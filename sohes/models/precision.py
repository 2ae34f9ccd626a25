# SPDX-License-Identifier: Apache-2.0
"""Turns autocast off for operations that need full precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Context without autocast for this type of device: operations run in the types of their inputs.

    Autocast rounds the inputs of products to 8 or 11 bits. Most features tolerate this. A squared distance, computed as
    |a|^2 - 2 ab + |b|^2, does not: its large terms cancel.
    """
    if not torch.amp.is_autocast_available(device.type):  # such as "meta"
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def without_autocast(function: Callable[Concatenate[Tensor, P], Tensor]) -> Callable[Concatenate[Tensor, P], Tensor]:
    """Decorator: runs the function without autocast on the device of its first argument, a tensor."""

    @wraps(function)
    def wrapped(first: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with no_autocast(first.device):
            return function(first, *args, **kwargs)

    return wrapped
