# SPDX-License-Identifier: Apache-2.0
"""Facts about an installation: versions, build settings, and the backend that each operator uses."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import sohes
import sohes.ops  # registers the operators
from sohes.ops import _binary
from sohes.ops._library import OPERATORS

_PACKAGES = ("torch", "torchvision", "triton", "numpy", "scipy", "timm", "pillow", "pycocotools", "safetensors")
_OPTIONAL = ("tensorboard", "segmentation-refinement")


def collect_env() -> dict[str, Any]:
    """Facts about this installation as JSON values. `operators` maps name -> device -> {uses, why_not}."""
    found = _binary.find_binary()
    return {
        "sohes": sohes.__version__,
        "package": str(Path(sohes.__file__).parent),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: _version(name) for name in (*_PACKAGES, *_OPTIONAL)},
        "binary": str(found.path) if found.path else None,
        "binary_why_not": found.reason or None,
        "binary_info": found.module.build_info() if found.module else None,
        "build": _binary.build_facts(),
        "operators": {name: _explain(name) for name in sorted(OPERATORS)},
    }


def _explain(name: str) -> dict[str, Any]:
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    report = {}
    for device in devices:
        reasons = OPERATORS[name].explain(device, torch.float32)
        uses = next(backend for backend, reason in reasons.items() if reason is None)
        report[device.type] = {"uses": uses, "why_not": {b: r for b, r in reasons.items() if r is not None}}
    return report


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
