# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Peak memory of one call in bytes, above that before it: of the allocator on a GPU, resident on a CPU.

    On a CPU it is read from the operating system (Linux: VmHWM, reset through clear_refs); None on others.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # memory that earlier calls freed would hide that of this call
    reset.write_text("5")
    before = _status("VmRSS")
    run()
    return max(_status("VmHWM") - before, 0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))
