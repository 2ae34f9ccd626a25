# SPDX-License-Identifier: Apache-2.0
"""Rank and world size of this process, and the collectives that a run needs.

Both are read from the environment that torchrun or SLURM's `srun` sets; without either the world has one process. Every
function also works for one process, with or without a process group.
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
from sohes.utils.failures import FailureMonitor, PeerFailed, describe
from sohes.utils.rendezvous import Deadline, LaunchError, agree_on_round, connect, create_store, terminal_log
from sohes.utils.slurm import first_host, typed_in_a_shell

Result = TypeVar("Result")

_PORT_BASE, _PORT_RANGE, _LAST_PORT = 20000, 10000, 65535
_DEFAULT_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """rank: of this process, 0 .. size - 1. local_rank: among the processes of this machine. restarts: of the job, by
    its launcher. local_size: processes on this machine, 1 if the launcher does not set it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs, weights and reports."""
        return self.rank == 0

    def share(self, num: int) -> range:
        """This process's block of `num` items: consecutive by rank, of sizes that differ by at most 1."""
        return range(num * self.rank // self.size, num * (self.rank + 1) // self.size)


def find_world(environment: Mapping[str, str] | None = None) -> World:
    """The world from torchrun's variables, else from those of `srun`, else one process.

    A batch script has SLURM_PROCID and SLURM_NTASKS too, though it is one process: only variables that `srun` alone
    sets count. A command typed in the shell of `srun --pty` is one process too, which is logged.

    Raises:
        LaunchError: a variable is missing or not a number.
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
        # Tasks per node, as in `8(x2),4`: the first node's.
        per_node = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", ""))
        local_size = int(per_node.group()) if per_node else 1
        world = World(_number(env, "SLURM_PROCID"), tasks, _number(env, "SLURM_LOCALID"), restarts, local_size)
    else:
        return World()
    if not 0 <= world.rank < world.size or not 0 <= world.local_rank <= world.rank:
        got = f"rank {world.rank} of {world.size}, local rank {world.local_rank}"
        raise LaunchError(f"launcher's variables do not fit: {got}")
    return world


def rendezvous(environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Host and port of the common store: MASTER_ADDR and MASTER_PORT, else derived from SLURM's step.

    Raises:
        LaunchError: there is neither, or the port is invalid.
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
    """A process group for the time of a `with`, also for one process.

    Tensors on the CPU use gloo, those on `device`, this process's GPU, NCCL. A process that waits for others logs it.
    An error in the block ends the other processes within seconds, with its reason.

    Args:
        timeout: of a wait for other processes, > 0.

    Raises:
        LaunchError: other processes are missing or not reachable. PeerFailed: another process has failed.
    """
    on_gpu = device.type == "cuda"
    # With its device NCCL connects at once: a GPU used by two processes is an error here, not in the first step.
    options: dict[str, Any] = {"device_id": device} if on_gpu and world.size > 1 else {}
    store, monitored = (dist.HashStore(), None) if world.size == 1 else _common_store(world, timeout)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
        store=dist.PrefixStore("group", store),
        **options,
    )
    try:
        with nullcontext() if monitored is None else FailureMonitor(monitored, world.rank, world.size):
            yield
    finally:
        dist.destroy_process_group()


def _common_store(world: World, timeout: timedelta) -> tuple[dist.Store, dist.Store]:
    """The store that all processes are connected to, and a second connection to it."""
    env, deadline = os.environ, Deadline(timeout, terminal_log(world.local_rank))
    host, port = rendezvous(env)
    if "TORCHELASTIC_RUN_ID" in env:
        shared, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=timeout))
        prefix = agree_on_round(shared, world.rank, world.size, deadline)
        return dist.PrefixStore(prefix, shared), dist.PrefixStore(prefix, connect(host, port, world.size))
    store = create_store(host, port, world.rank, world.size, deadline, env)
    return store, connect(host, port, world.size)


def barrier() -> None:
    """Wait until every process has called this."""
    if _is_distributed():
        # Not dist.barrier: with NCCL it runs on a GPU.
        dist.all_reduce(torch.zeros(1))


def all_sum(values: Tensor) -> Tensor:
    """`values` summed over all processes, in place."""
    if _is_distributed():
        dist.all_reduce(values)
    return values


def gather(value: Any) -> list[Any]:
    """The values of all processes, in order of ranks. value: picklable."""
    if not _is_distributed():
        return [value]
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def on_main(work: Callable[[], Result]) -> Result:
    """The result of `work`, picklable, which only the main process executes; returned in all processes.

    An error is raised in all processes: a SohesError as itself, any other as PeerFailed with its reason outside the
    main process.
    """
    if not _is_distributed():
        return work()
    if dist.get_rank() == 0:
        try:
            result = work()
            message: list[bytes | None] = [pickle.dumps(result), None]
        except BaseException as error:
            dist.broadcast_object_list([None, _pickle_error(error)])
            raise
        dist.broadcast_object_list(message)
        return result
    received: list[Any] = [None, None]
    dist.broadcast_object_list(received)
    if received[1] is not None:
        raise pickle.loads(received[1])
    main_result: Result = pickle.loads(received[0])
    return main_result


def _pickle_error(error: BaseException) -> bytes:
    """An exception for the other processes, pickled."""
    if not isinstance(error, SohesError):
        return pickle.dumps(PeerFailed(f"process 0 of this run has failed: {describe(error)}"))
    try:
        sent = pickle.dumps(error)
        pickle.loads(sent)
    except (TypeError, AttributeError, pickle.PicklingError):  # e.g. a class whose arguments are not the message
        return pickle.dumps(SohesError(str(error)))
    return sent


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in env and default is not None:
        return default
    try:
        return int(env[name])
    except (KeyError, ValueError) as error:
        raise LaunchError(f"expected a number in {name}, got {env.get(name, 'nothing')}") from error
