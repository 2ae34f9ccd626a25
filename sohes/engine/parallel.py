# SPDX-License-Identifier: Apache-2.0
"""A model on several processes: copied to each (DDP) or parted among them (FSDP2), and its layers compiled."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from sohes.configs.run import EngineConfig


def prepare_model(model: nn.Module, config: EngineConfig) -> None:
    """Part the weights of `model` among the processes and compile its layers, as the config says; in place.

    Comes before the optimiser is built. `model.layers()` are the units of both.
    """
    if config.compile:
        for layer in model.layers():
            layer.compile(dynamic=True)
    if config.sharding == "fsdp":
        mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
        for layer in model.layers():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        # Said of every view that a forward pass returns; nothing here writes into outputs.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def wrap_model(model: nn.Module) -> nn.Module:
    """What to call for a forward pass whose backward averages gradients over all processes."""
    if isinstance(model, FSDPModule) or not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    # True of single tokens and depthwise kernels, whose copies are small.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


@contextmanager
def gradient_sync(joined: nn.Module, wanted: bool) -> Iterator[None]:
    """Whether backward passes inside average gradients; without, they add up locally until one that does."""
    if isinstance(joined, FSDPModule):
        joined.set_requires_gradient_sync(wanted)
        yield
    elif isinstance(joined, DistributedDataParallel) and not wanted:
        with joined.no_sync():
            yield
    else:
        yield


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """All weights on the CPU, in the main process; parted ones are collected, so every process calls this."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
