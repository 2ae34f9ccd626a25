# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.env`: print versions, how the package was built, and which backend each operator uses and why."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

from sohes.cli.short_help import answer_help

if __name__ == "__main__":
    answer_help("env", sys.argv[1:])  # before torch is imported, which takes seconds


from sohes.ops.environment import collect_env
from sohes.utils.streams import say


def format_env(env: dict[str, Any]) -> str:
    """The report as readable text. env: as `collect_env` returns it."""
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
    """Lines of operators, grouped by backend and by the reasons why others are not used."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, devices in operators.items():
        if device in devices:
            report = devices[device]
            groups.setdefault((report["uses"], *report["why_not"].items()), []).append(name)
    lines = []
    for (uses, *why_not), names in groups.items():
        text = f"{uses}: {', '.join(names)}"
        lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent=" " * (len(uses) + 4))
        lines += [f"    not {backend}: {reason}" for backend, reason in why_not]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the report as text, or with `--json` as JSON."""
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
