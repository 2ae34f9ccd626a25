# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.env`: versions, how the package was built, and which backend each operator uses and why."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import sys
import textwrap
from pathlib import Path
from typing import Any

from sohes.commands import answer_help

if __name__ == "__main__":
    answer_help("env", sys.argv[1:])  # before torch is imported, which takes seconds

import torch

import sohes
import sohes.ops  # registers the operators
from sohes import _binary
from sohes.ops._library import OPERATORS
from sohes.streams import say

_PACKAGES = ("torch", "torchvision", "triton", "numpy", "scipy", "timm", "pillow", "pycocotools", "safetensors")
_OPTIONAL = ("tensorboard", "segmentation-refinement")


def collect_env() -> dict[str, Any]:
    """Facts about this installation, JSON-ready. `operators` maps name -> device -> {uses, why_not}."""
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


def format_env(env: dict[str, Any]) -> str:
    """The facts as text for a person."""
    lines = [f"sohes {env['sohes']}  ({env['package']})", f"python {env['python']}, {env['platform']}"]
    lines += [f"{env['cpus']} CPUs ({env['cpu_capability']}), torch uses {env['threads']} threads"]
    lines += [f"GPUs: {', '.join(env['gpus']) or 'none'}"]
    lines += ["packages: " + ", ".join(f"{k} {v or '-'}" for k, v in env["packages"].items())]
    lines += [f"compiled module: {env['binary'] or 'none: ' + env['binary_why_not']}"]
    if env["binary_info"]:
        lines += ["  " + ", ".join(f"{k} {v}" for k, v in env["binary_info"].items())]
    lines += [f"  not built: {variant}: {reason}" for variant, reason in env["build"].get("skipped", {}).items()]
    for device in dict.fromkeys(device for devices in env["operators"].values() for device in devices):
        lines += [f"operators on {device}, in float32:", *_format_operators(env["operators"], device)]
    return "\n".join(lines)


def _format_operators(operators: dict[str, dict[str, Any]], device: str) -> list[str]:
    """Those that use the same backend for the same reasons together."""
    alike: dict[tuple, list[str]] = {}
    for name, devices in operators.items():
        if device in devices:
            report = devices[device]
            alike.setdefault((report["uses"], *report["why_not"].items()), []).append(name)
    lines = []
    for (uses, *why_not), names in alike.items():
        text = f"{uses}: {', '.join(names)}"
        lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent=" " * (len(uses) + 4))
        lines += [f"    not {backend}: {reason}" for backend, reason in why_not]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the report; `--json` prints it for machines."""
    given = sys.argv[1:] if arguments is None else arguments
    answer_help("env", given)
    if given not in ([], ["--json"]):
        say("usage: python -m sohes.env [--json]", "stderr")
        return 2
    env = collect_env()
    say(json.dumps(env, indent=1) if given else format_env(env))
    return 0


if __name__ == "__main__":
    sys.exit(main())
