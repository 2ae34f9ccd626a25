# SPDX-License-Identifier: Apache-2.0
"""Where mixed precision ends: arithmetic in which large terms cancel, or small differences are divided by little."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Within it, autocast of this kind of device is off: operations run in the types that their inputs have.

    Autocast rounds what goes into a product to 8 or 11 bits. Features do not mind; but a distance multiplied out,
    |a|^2 - 2 ab + |b|^2, loses all that is small beside its terms.
    """
    if not torch.amp.is_autocast_available(device.type):  # "meta"
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def without_autocast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function with autocast off for the kind of device that its first argument, a tensor, is on."""

    @wraps(function)
    def wrapped(first: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with no_autocast(first.device):
            return function(first, *args, **kwargs)

    return wrapped
