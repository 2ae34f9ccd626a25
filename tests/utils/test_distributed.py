# SPDX-License-Identifier: Apache-2.0
"""Rank and world size from torchrun's and SLURM's variables, and the world of one process."""

import pytest
import torch
import torch.distributed as dist

from sohes.utils import distributed
from sohes.utils.distributed import (
    LaunchError,
    World,
    all_sum,
    barrier,
    find_world,
    first_host,
    gather,
    on_main,
    process_group,
    rendezvous,
)
from sohes.utils.errors import SohesError

SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_JOB_ID": "1234567",
}


def test_the_world_comes_from_the_launcher():
    assert find_world({}) == World(0, 1, 0)
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "TORCHELASTIC_RESTART_COUNT": "2"}
    assert find_world(torchrun) == World(3, 4, 1, restarts=2)
    assert find_world(SLURM) == World(5, 8, 1)
    assert find_world(torchrun | {"LOCAL_WORLD_SIZE": "2"}).local_size == 2
    assert find_world(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4(x2),1"}).local_size == 4
    assert find_world(SLURM | torchrun) == World(3, 4, 1, restarts=2)  # torchrun started by srun
    assert find_world(SLURM | {"SLURM_RESTART_COUNT": "1"}).restarts == 1  # a requeued job


def test_a_batch_script_outside_srun_is_one_process():
    assert find_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) == World()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "expected a number in RANK, got x"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "expected a number in SLURM_PROCID, got nothing"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "launcher's variables do not fit: rank 2 of 2, local rank 0"),
    ],
)
def test_variables_that_do_not_fit_are_named(env, message):
    with pytest.raises(LaunchError, match=f"^{message}$"):
        find_world(env)


def test_the_address_of_the_store():
    assert rendezvous({"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}) == ("10.0.0.1", 29500)
    assert rendezvous(SLURM) == ("gpu003", 24567)
    with pytest.raises(LaunchError, match="set MASTER_ADDR and MASTER_PORT"):
        rendezvous({})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("login", "login"),
        ("a1,a2", "a1"),
        ("gpu[003-005,9],login", "gpu003"),
        ("gpu[7,9]", "gpu7"),
        ("r[1-2]n[05-06].site", "r1n05.site"),
    ],
)
def test_first_host(hosts, first):
    assert first_host(hosts) == first


@pytest.mark.parametrize(("num", "size"), [(10, 3), (2, 4), (0, 2), (8, 1)])
def test_shares_are_all_items_in_order(num, size):
    shares = [World(rank, size).share(num) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(num))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("joined", [False, True])
def test_a_world_of_one_needs_no_special_case(joined):
    def check():
        barrier()
        assert all_sum(torch.tensor([3.0])).item() == 3.0
        assert gather("names") == ["names"]
        assert on_main(lambda: 7) == 7
        with pytest.raises(SohesError, match="wrong"):
            on_main(fail)

    def fail():
        raise SohesError("wrong")

    if not joined:
        return check()
    with process_group(World(), torch.device("cpu")):
        check()
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("device", "size", "backend", "bound"),
    [
        ("cpu", 1, "gloo", None),
        ("cpu", 2, "gloo", None),
        ("cuda:1", 1, "cpu:gloo,cuda:nccl", None),
        ("cuda:1", 2, "cpu:gloo,cuda:nccl", torch.device("cuda", 1)),
    ],
)
def test_each_process_connects_with_its_own_device(monkeypatch, device, size, backend, bound):
    """Checks the arguments of init_process_group; there is no GPU here."""
    asked, ended = [], []
    monkeypatch.setattr(dist, "init_process_group", lambda *given, **options: asked.append((given, options)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append(True))
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "_common_store", lambda world, timeout: (store, store))
    store.add("left", 1)  # the other process has left
    with process_group(World(0, size), torch.device(device)):
        assert not ended
    (given, options) = asked[0]
    assert given == (backend,)
    assert (options["rank"], options["world_size"], options.get("device_id")) == (0, size, bound)
    assert ended == [True]
