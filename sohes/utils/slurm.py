# SPDX-License-Identifier: Apache-2.0
"""SLURM's variables, and whether they are only inherited in a shell of `srun --pty`."""

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
    """Whether this process was started by hand in an interactive shell that is the task of a SLURM step.

    Such a step has all tasks of the allocation, but `srun --pty` gives a terminal only to the first, and the shells of
    the others end at once: a command typed there is one process. Decided by the command of the step's task, if that is
    a parent of this process; without the task's process id, by the job's name.

    Args:
        proc: the folder of processes, for tests.
    """
    task = env.get("SLURM_TASK_PID", "")
    if task.isdigit():
        return int(task) in _parents(proc) and is_interactive_shell(_command(proc / task))
    # An inner `srun` inherits both variables, but sets SLURM_TASK_PID.
    return "SLURM_PTY_PORT" in env and Path(env.get("SLURM_JOB_NAME", "")).name in _SHELLS


def is_interactive_shell(command: list[str]) -> bool:
    """`-bash`, `/bin/zsh -l -i`: a shell with neither a script nor `-c`."""
    if not command or Path(command[0].removeprefix("-")).name not in _SHELLS:
        return False
    # Short options may be combined: -lc.
    return all(
        argument.startswith("-") and (argument.startswith("--") or "c" not in argument) for argument in command[1:]
    )


def _parents(proc: Path) -> Iterator[int]:
    """The parents of this process, nearest first; none if the system has no /proc."""
    entry = "self"
    while True:
        try:
            status = (proc / entry / "stat").read_text(errors="replace")
        except OSError:
            return
        # pid (name) state parent ...; the name may contain spaces and parentheses.
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
