# SPDX-License-Identifier: Apache-2.0
"""What SLURM's variables say, and when they are only inherited: in a shell that `srun --pty` opened."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "mksh", "tcsh", "csh"}
_PROC = Path("/proc")


def first_host(hosts: str) -> str:
    """The first name of a SLURM host list: `gpu[003-005,9],login` -> `gpu003`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group() if first else "")


def typed_in_a_shell(env: Mapping[str, str], proc: Path = _PROC) -> bool:
    """Whether this process was started by hand in an interactive shell that is itself the task of a SLURM step.

    Such a step has as many tasks as the allocation, but `srun --pty` gives a terminal to the first alone, and the
    shells of all others end at once: what is started in it is one process. The task's own command decides, where it is
    among the parents of this process; without its number, SLURM's name of the job does.

    Args:
        proc: the folder of processes, for tests.
    """
    task = env.get("SLURM_TASK_PID", "")
    if task.isdigit():
        return int(task) in _parents(proc) and is_interactive_shell(_command(proc / task))
    # An inner `srun` inherits these two, but sets the number of its tasks.
    return "SLURM_PTY_PORT" in env and Path(env.get("SLURM_JOB_NAME", "")).name in _SHELLS


def is_interactive_shell(command: list[str]) -> bool:
    """`-bash`, `/bin/zsh -l -i`: a shell with neither a script nor `-c`."""
    if not command or Path(command[0].removeprefix("-")).name not in _SHELLS:
        return False
    # Of short options any letter may be the c: -lc.
    return all(
        argument.startswith("-") and (argument.startswith("--") or "c" not in argument) for argument in command[1:]
    )


def _parents(proc: Path) -> Iterator[int]:
    """The processes above this one, nearest first; none where the system has no such folder."""
    entry = "self"
    while True:
        try:
            status = (proc / entry / "stat").read_text(errors="replace")
        except OSError:
            return
        # The name in parentheses may hold anything: pid (name) state parent ...
        entry = status.rpartition(")")[2].split()[1]
        if entry == "0":
            return
        yield int(entry)


def _command(process: Path) -> list[str]:
    try:
        line = (process / "cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in line.rstrip(b"\0").split(b"\0")]
