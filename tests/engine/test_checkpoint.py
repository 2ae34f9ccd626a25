# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of one process: exact, atomic, limited in number, with clear errors."""

import pytest
import torch
from micro import no_file_beyond
from small_model import SmallModel
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sohes.configs.run import OptimConfig
from sohes.engine.checkpoint import CheckpointError, Checkpoints, list_checkpoints, load_checkpoint
from sohes.engine.optim import build_optimizer
from sohes.utils.distributed import World, process_group


def trained(steps, model=None, optimizer=None):
    """A model and optimiser after the given training steps; the data of a step depends on its number only."""
    if model is None:
        torch.manual_seed(0)
        model = SmallModel()
        optimizer = build_optimizer(model, OptimConfig(learning_rate=1e-2))
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = model.head(model.norm(model.backbone(x)) + model.queries.weight.mean(0)).square().mean()
        loss.backward()
        optimizer.step()
    return model, optimizer


def fresh():
    torch.manual_seed(7)
    model = SmallModel()
    return model, build_optimizer(model, OptimConfig(learning_rate=1e-2))


def saved(folder, step, model, optimizer, keep=2, **extra):
    Checkpoints(folder, keep).save(step, {"model": model}, optimizer, extra)
    return list_checkpoints(folder)[-1]


@pytest.fixture
def group():
    with process_group(World(), torch.device("cpu")):
        yield


def assert_equal(ours, theirs):
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_resumed_training_is_bitwise_equal(tmp_path):
    straight, _ = trained(range(20))
    path = saved(tmp_path, 10, *trained(range(10)), scaler={"scale": 4.0})
    model, optimizer = fresh()
    extra = {"scaler": {"scale": 1.0}}
    assert load_checkpoint(path, {"model": model}, optimizer, extra) == 10
    assert extra == {"scaler": {"scale": 4.0}}
    trained(range(10, 20), model, optimizer)
    assert_equal(straight, model)


def test_an_asynchronous_save_holds_the_state_of_its_step(tmp_path, group):
    """Training continues while the files are written."""
    straight, _ = trained(range(10))
    model, optimizer = trained(range(10))
    with Checkpoints(tmp_path, keep=1, asynchronous=True) as checkpoints:
        checkpoints.save(10, {"model": model}, optimizer)
        trained(range(10, 15), model, optimizer)
        checkpoints.save(15, {"model": model}, optimizer)  # waits for the previous save
        assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000010"]
        kept = tmp_path / "kept"
        list_checkpoints(tmp_path)[0].rename(kept)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000015"]
    again, optimizer = fresh()
    assert load_checkpoint(kept, {"model": again}, optimizer) == 10
    assert_equal(straight, again)


def test_half_checkpoints_are_rounded_and_load_the_same_way(tmp_path):
    model, optimizer = trained(range(10))
    Checkpoints(tmp_path, 1, half=True).save(10, {"model": model}, optimizer)
    (path,) = list_checkpoints(tmp_path)
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    kinds = {name: entry.properties.dtype for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
    assert kinds["model.head.weight"] == kinds["optimizer.state.head.weight.exp_avg"] == torch.bfloat16
    assert kinds["optimizer.state.head.weight.step"] == torch.float32  # bfloat16 cannot hold integers above 256 exactly
    again, opened = fresh()
    assert load_checkpoint(path, {"model": again}, opened) == 10
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=2**-8, atol=0)
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(opened.state[b][name], optimizer.state[a][name], rtol=2**-8, atol=0)


def test_only_the_newest_are_kept(tmp_path):
    model, optimizer = trained(range(1))
    for step in (1, 20, 300):
        saved(tmp_path, step, model, optimizer)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000020", "step-00000300"]
    assert list_checkpoints(tmp_path / "absent") == []


@pytest.mark.parametrize("damage", ["cut", "gone", "no metadata"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    model, optimizer = trained(range(1))
    path = saved(tmp_path, 1, model, optimizer)
    file = path / ".metadata" if damage == "no metadata" else next(path.glob("*.distcp"))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=r"^cannot resume from .*step-00000001: .*; delete it to resume from"):
        load_checkpoint(path, {"model": model}, optimizer)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = saved(tmp_path, 1, *trained(range(1)))
    other = SmallModel()
    other.head = nn.Linear(4, 5)
    with pytest.raises(CheckpointError, match=r"cannot resume from .*head\.(weight|bias)"):
        load_checkpoint(path, {"model": other}, build_optimizer(other, OptimConfig()))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_keeps_the_older_checkpoint(tmp_path, asynchronous, group):
    model, optimizer = trained(range(1))
    first = saved(tmp_path, 1, model, optimizer)
    checkpoints = Checkpoints(tmp_path, keep=1, asynchronous=asynchronous)
    with (
        no_file_beyond(100),
        pytest.raises(CheckpointError, match=r"^cannot write checkpoint .*step-00000002: .*File too large$"),
        checkpoints,
    ):
        checkpoints.save(2, {"model": model}, optimizer)
    assert [p.name for p in tmp_path.iterdir()] == [first.name]
    again, optimizer = fresh()
    assert load_checkpoint(first, {"model": again}, optimizer) == 1
    assert_equal(model, again)
