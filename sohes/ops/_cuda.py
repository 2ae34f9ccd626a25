# SPDX-License-Identifier: Apache-2.0
"""How a CUDA entry of the compiled module is called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sohes.ops._binary import require_binary


def run_cuda(entry: str, like: Tensor, *args: Any) -> None:
    """Calls `entry` with these arguments on the device of `like` and the stream current there."""
    with torch.cuda.device(like.device):
        getattr(require_binary(), entry)(*args, torch.cuda.current_stream().cuda_stream)
