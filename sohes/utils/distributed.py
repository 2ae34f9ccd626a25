# SPDX-License-Identifier: Apache-2.0
"""Which process of how many this is, and the few things the processes of a run say to each other.

The world is read from the environment that torchrun or SLURM's `srun` sets; without either it has one process. Every
function works in a world of one, with or without a process group, so callers never ask which case they are in.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sohes.utils.console import RunLog
from sohes.utils.errors import SohesError
from sohes.utils.failures import Failures, PeerFailed, describe
from sohes.utils.rendezvous import LaunchError, Patience, connect, find_room, meet, terminal_log
from sohes.utils.slurm import first_host, typed_in_a_shell

Result = TypeVar("Result")

_PORT_BASE, _PORT_RANGE, _LAST_PORT = 20000, 10000, 65535
_DEFAULT_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """rank: of this process, 0 .. size - 1. local_rank: among the processes of this machine. restarts: how often the
    launcher has started this job again. local_size: processes on this machine, 1 where the launcher does not say."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes logs, weights and reports."""
        return self.rank == 0

    def share(self, num: int) -> range:
        """This process's block of `num` items; blocks of all ranks, in order, are all items, sizes differ by <= 1."""
        return range(num * self.rank // self.size, num * (self.rank + 1) // self.size)


def find_world(environment: Mapping[str, str] | None = None) -> World:
    """The world that the environment describes: torchrun's variables, else those of `srun`, else one process.

    A batch script's own step has SLURM_PROCID and SLURM_NTASKS too, though it is one process: only what `srun` alone
    sets counts. Nor is what a person types in the shell of `srun --pty` one of that step's tasks: it is one process,
    and the terminal is told so.

    Raises:
        LaunchError: a variable is missing or no number.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        restarts = _number(env, "TORCHELASTIC_RESTART_COUNT", 0)
        local_rank, local_size = _number(env, "LOCAL_RANK", 0), _number(env, "LOCAL_WORLD_SIZE", 1)
        world = World(_number(env, "RANK"), _number(env, "WORLD_SIZE"), local_rank, restarts, local_size)
    elif "SLURM_STEP_NUM_TASKS" in env:
        if typed_in_a_shell(env):
            if _number(env, "SLURM_STEP_NUM_TASKS") > 1:
                RunLog()(f"in a shell of SLURM, of {env['SLURM_STEP_NUM_TASKS']} tasks: running as one process")
            return World()
        restarts = _number(env, "SLURM_RESTART_COUNT", 0)
        tasks = _number(env, "SLURM_STEP_NUM_TASKS")
        # Tasks of each node, as in `8(x2),4`; steps are even where it matters.
        local_size = int(re.match(r"\d*", env.get("SLURM_STEP_TASKS_PER_NODE", "")).group() or 1)
        world = World(_number(env, "SLURM_PROCID"), tasks, _number(env, "SLURM_LOCALID"), restarts, local_size)
    else:
        return World()
    if not 0 <= world.rank < world.size or not 0 <= world.local_rank <= world.rank:
        got = f"rank {world.rank} of {world.size}, local rank {world.local_rank}"
        raise LaunchError(f"launcher's variables do not fit: {got}")
    return world


def rendezvous(environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Host and port where the processes meet: MASTER_ADDR and MASTER_PORT, else from SLURM's step.

    Raises:
        LaunchError: neither is there, or the port is none.
    """
    env = os.environ if environment is None else environment
    if "MASTER_ADDR" in env:
        host = env["MASTER_ADDR"]
    elif "SLURM_STEP_NODELIST" in env:
        host = first_host(env["SLURM_STEP_NODELIST"])
    else:
        raise LaunchError("several processes, but nowhere to meet: set MASTER_ADDR and MASTER_PORT, or use torchrun")
    port = _number(env, "MASTER_PORT", _PORT_BASE + _number(env, "SLURM_JOB_ID", 0) % _PORT_RANGE)
    if not 1 <= port <= _LAST_PORT:
        raise LaunchError(f"expected a port from 1 to {_LAST_PORT} in MASTER_PORT, got {port}")
    return host, port


@contextmanager
def process_group(world: World, device: torch.device, timeout: timedelta = _DEFAULT_TIMEOUT) -> Iterator[None]:
    """Join the other processes for the time of a `with`; in a world of one as well, so that there is one path.

    gloo carries what is on the CPU, NCCL what is on GPUs, `device` being this process's own. Who waits says so on the
    terminal. A failure in the block ends the other processes within seconds, with its reason.

    Args:
        timeout: how long a process waits for the others, > 0.

    Raises:
        LaunchError: the others have not come in time, or cannot be met. PeerFailed: another process has failed.
    """
    on_gpu = device.type == "cuda"
    # With its device NCCL connects at once: a GPU that two processes want is found here, not in the first step.
    options: dict[str, Any] = {"device_id": device} if on_gpu and world.size > 1 else {}
    store, ears = (dist.HashStore(), None) if world.size == 1 else _common_store(world, timeout)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
        store=dist.PrefixStore("group", store),
        **options,
    )
    try:
        with nullcontext() if ears is None else Failures(ears, world.rank, world.size):
            yield
    finally:
        dist.destroy_process_group()


def _common_store(world: World, timeout: timedelta) -> tuple[dist.Store, dist.Store]:
    """The store in which all processes have met, and a second connection to it."""
    env, patience = os.environ, Patience(timeout, terminal_log(world.local_rank))
    host, port = rendezvous(env)
    if "TORCHELASTIC_RUN_ID" in env:
        shared, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=timeout))
        room = find_room(shared, world.rank, world.size, patience)
        return dist.PrefixStore(room, shared), dist.PrefixStore(room, connect(host, port, world.size))
    store = meet(host, port, world.rank, world.size, patience, env)
    return store, connect(host, port, world.size)


def barrier() -> None:
    """Wait until every process is here."""
    if _together():
        # Not dist.barrier: with NCCL it would start work on a GPU for nothing.
        dist.all_reduce(torch.zeros(1))


def all_sum(values: Tensor) -> Tensor:
    """`values` summed over all processes, in place."""
    if _together():
        dist.all_reduce(values)
    return values


def gather(value: Any) -> list[Any]:
    """What every process gave, picklable, in order of ranks."""
    if not _together():
        return [value]
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def on_main(work: Callable[[], Result]) -> Result:
    """Do `work` in the main process only and hand its result, picklable, to all.

    What it raises, whatever it is, is raised in all: a SohesError as itself; of any other error, which keeps its
    traceback in the main process, the others get a PeerFailed with the reason.
    """
    if not _together():
        return work()
    if dist.get_rank() == 0:
        try:
            result = work()
            message = [pickle.dumps(result), None]
        except BaseException as error:
            dist.broadcast_object_list([None, _to_send(error)])
            raise
        dist.broadcast_object_list(message)
        return result
    message = [None, None]
    dist.broadcast_object_list(message)
    if message[1] is not None:
        raise pickle.loads(message[1])
    return pickle.loads(message[0])


def _to_send(error: BaseException) -> bytes:
    """An exception for the other processes, pickled."""
    if not isinstance(error, SohesError):
        return pickle.dumps(PeerFailed(f"process 0 of this run has failed: {describe(error)}"))
    try:
        sent = pickle.dumps(error)
        pickle.loads(sent)
    except (TypeError, AttributeError, pickle.PicklingError):  # its class makes a message of other arguments, say
        return pickle.dumps(SohesError(str(error)))
    return sent


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in env and default is not None:
        return default
    try:
        return int(env[name])
    except (KeyError, ValueError) as error:
        raise LaunchError(f"expected a number in {name}, got {env.get(name, 'nothing')}") from error
