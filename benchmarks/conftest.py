# SPDX-License-Identifier: Apache-2.0
"""Machine information stored with the rows of every benchmark by `--benchmark-json FILE`, beside commit and date."""

from __future__ import annotations

import os
from typing import Any

import torch

from sohes.ops._binary import find_binary


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Adds torch, its threads, the GPU and the compiled module in use."""
    machine_info["torch"] = torch.__version__
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["cores"] = os.cpu_count()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found = find_binary()
    machine_info["compiled_module"] = found.reason if found.module is None else found.module.build_info()
