# SPDX-License-Identifier: Apache-2.0
"""Which process of how many this is, and the few things the processes of a run say to each other.

The world is read from the environment that torchrun or SLURM's `srun` sets; without either it has one process. Every
function works in a world of one, with or without a process group, so callers never ask which case they are in.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sohes.errors import SohesError

Result = TypeVar("Result")

_PORT_BASE, _PORT_RANGE = 20000, 10000
_DEFAULT_TIMEOUT = timedelta(hours=1)
_LOOK_AGAIN = timedelta(seconds=0.5)


class LaunchError(SohesError, ValueError):
    """The environment describes no world; the message names the variable."""


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
    sets counts.

    Raises:
        LaunchError: a variable is missing or no number.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        restarts = _number(env, "TORCHELASTIC_RESTART_COUNT", 0)
        local_rank, local_size = _number(env, "LOCAL_RANK", 0), _number(env, "LOCAL_WORLD_SIZE", 1)
        world = World(_number(env, "RANK"), _number(env, "WORLD_SIZE"), local_rank, restarts, local_size)
    elif "SLURM_STEP_NUM_TASKS" in env:
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


def rendezvous(environment: Mapping[str, str] | None = None) -> str:
    """Where the processes meet, as `tcp://host:port`: MASTER_ADDR and MASTER_PORT, else from SLURM's step.

    Raises:
        LaunchError: neither is there.
    """
    env = os.environ if environment is None else environment
    if "MASTER_ADDR" in env:
        host = env["MASTER_ADDR"]
    elif "SLURM_STEP_NODELIST" in env:
        host = first_host(env["SLURM_STEP_NODELIST"])
    else:
        raise LaunchError("several processes, but nowhere to meet: set MASTER_ADDR and MASTER_PORT, or use torchrun")
    default = _PORT_BASE + _number(env, "SLURM_JOB_ID", 0) % _PORT_RANGE
    return f"tcp://{host}:{_number(env, 'MASTER_PORT', default)}"


def first_host(hosts: str) -> str:
    """The first name of a SLURM host list: `gpu[003-005,9],login` -> `gpu003`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts).group()
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


@contextmanager
def process_group(world: World, device: torch.device, timeout: timedelta = _DEFAULT_TIMEOUT) -> Iterator[None]:
    """Join the other processes for the time of a `with`; in a world of one as well, so that there is one path.

    gloo carries what is on the CPU, NCCL what is on GPUs. `timeout`: how long a process waits for the others, > 0.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if world.size == 1:
        meeting: dict[str, Any] = {"store": dist.HashStore()}
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        store, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=timeout))
        meeting = {"store": fresh_room(store, world, timeout)}
    else:
        meeting = {"init_method": rendezvous()}
    dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=timeout, **meeting)
    try:
        yield
    finally:
        dist.destroy_process_group()


def fresh_room(store: dist.Store, world: World, timeout: timedelta) -> dist.Store:
    """A corner of torchrun's store that no earlier start of this job has used.

    The store outlives the processes, and addresses of dead ones in it would be called again. The first process names a
    new room, all others say who they are in the newest room they find, and the room counts for those whom its owner
    then lists: in a room of an earlier start nobody lists them, and they look again.

    Raises:
        DistStoreError: some process has not come within `timeout`.
    """
    me, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    if world.rank == 0:
        store.set("room", me)
        guests = [f"{me}/{rank}" for rank in range(1, world.size)]
        store.wait(guests, timeout)
        store.set(f"{me}/listed", " ".join(store.get(guest).decode() for guest in guests))
        return dist.PrefixStore(me, store)
    while True:
        room = store.get("room").decode()
        store.set(f"{room}/{world.rank}", me)
        try:
            store.wait([f"{room}/listed"], _LOOK_AGAIN)
        except dist.DistStoreError:
            if time.monotonic() > deadline:
                raise
            continue
        if me in store.get(f"{room}/listed").decode().split():
            return dist.PrefixStore(room, store)
        time.sleep(_LOOK_AGAIN.total_seconds())


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
    """Do `work` in the main process only and hand its result, picklable, to all; a SohesError is raised in all."""
    if not _together():
        return work()
    message: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            message[0] = work()
        except SohesError as error:
            message[1] = error
    dist.broadcast_object_list(message)
    if message[1] is not None:
        raise message[1]
    return message[0]


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in env and default is not None:
        return default
    try:
        return int(env[name])
    except (KeyError, ValueError) as error:
        raise LaunchError(f"expected a number in {name}, got {env.get(name, 'nothing')}") from error
