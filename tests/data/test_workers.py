# SPDX-License-Identifier: Apache-2.0
"""Worker processes that make batches, and the errors when one dies or has no shared memory for its batch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sohes.configs.run import ViewConfig
from sohes.data.coco import LabelSet
from sohes.data.dataset import Batch, LabelDataset
from sohes.data.sampling import WorkerError, batches
from sohes.data.scenes import write_scenes

ROOT = Path(__file__).resolve().parents[2]
VIEWS = ViewConfig(size=48)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num=3, size=64, seed=0)


def test_batches_come_in_shared_memory(scenes):
    _, batch = next(batches(LabelDataset(LabelSet(scenes), VIEWS, seed=0), 2, 0, 0, num_workers=1))
    assert batch.images.is_shared()
    assert all(target.masks.is_shared() for target in batch.targets)


def test_a_batch_without_masks_is_shared_too():
    assert Batch([], torch.zeros(0, 3, 4, 4), None, torch.zeros(0, 4, 4), []).share_memory().images.is_shared()


def test_no_space_for_a_batch_names_the_setting(scenes, monkeypatch):
    def full(batch):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(Batch, "share_memory", full)
    with pytest.raises(WorkerError, match=r"in shared memory, /dev/shm \(unable .*fewer than 2 processes: --"):
        next(batches(LabelDataset(LabelSet(scenes), VIEWS, seed=0), 2, 0, 0, num_workers=2))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGBUS])
def test_a_killed_process_ends_the_run_in_seconds(scenes, monkeypatch, how):
    """As the system does when memory runs out, or no page of /dev/shm is free."""
    dataset, test = LabelDataset(LabelSet(scenes), VIEWS, seed=0), os.getpid()
    sample = LabelDataset.sample

    def fatal(self, index, epoch=0):
        if os.getpid() != test and epoch == 2:
            os.kill(os.getpid(), how)
        return sample(self, index, epoch)

    monkeypatch.setattr(LabelDataset, "sample", fatal)
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"DataLoader worker .*views\.num-workers 1.*/dev/shm"):
        for _ in batches(dataset, 3, 0, 0, num_workers=1):
            pass
    assert time.monotonic() - started < 60


def test_the_death_of_a_worker_is_not_raised_in_the_training_step(scenes):
    """torch's handler of SIGCHLD would raise inside it."""
    before = signal.getsignal(signal.SIGCHLD)
    stream = batches(LabelDataset(LabelSet(scenes), VIEWS, seed=0), 2, 0, 0, num_workers=1)
    next(stream)
    assert signal.getsignal(signal.SIGCHLD) == before
    stream.close()


def test_an_error_in_a_process_that_is_no_fault_of_the_data_keeps_its_traceback(scenes, monkeypatch):
    def fail(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(LabelDataset, "sample", fail)
    with pytest.raises(RuntimeError, match=r"(?s)Caught RuntimeError in DataLoader worker.*shapes differ"):
        next(batches(LabelDataset(LabelSet(scenes), VIEWS, seed=0), 2, 0, 0, num_workers=1))


def test_errors_of_the_training_step_pass(scenes):
    def train():
        for _ in batches(LabelDataset(LabelSet(scenes), VIEWS, seed=0), 2, 0, 0, num_workers=1):
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        train()


SMALL = """
import sys
from test_workers import VIEWS, LabelDataset, LabelSet, WorkerError, batches
try:
    for _ in batches(LabelDataset(LabelSet(sys.argv[1]), VIEWS, seed=0), 3, 0, 0, 40, num_workers=2):
        pass
except WorkerError as error:
    print(error)
"""


def test_a_shared_memory_that_is_really_too_small(scenes):
    """64 kB of it, as in a misconfigured container; the default is 64 MB."""
    if os.system("unshare --map-root-user --mount true 2>/dev/null"):
        pytest.skip("no mounts of one's own here")
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent)))}
    mount = 'mount -t tmpfs -o size=64k none /dev/shm && exec "$0" "$@"'
    command = ["unshare", "--map-root-user", "--mount", "bash", "-c", mount, sys.executable, "-c", SMALL, str(scenes)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert "No space left on device" in done.stdout, done.stderr
    assert "--views.num-workers 0 needs none" in done.stdout
