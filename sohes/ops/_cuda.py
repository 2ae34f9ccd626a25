# SPDX-License-Identifier: Apache-2.0
"""Calls of the CUDA functions of the compiled module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sohes.ops._binary import require_binary


def run_cuda(entry: str, like: Tensor, *args: Any) -> None:
    """Call the function `entry` of the compiled module on the device of `like`, on its current stream."""
    with torch.cuda.device(like.device):
        getattr(require_binary(), entry)(*args, torch.cuda.current_stream().cuda_stream)
