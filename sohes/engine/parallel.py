# SPDX-License-Identifier: Apache-2.0
"""A model on several processes, replicated (DDP) or sharded (FSDP2), with compiled layers."""

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
from sohes.models.base import TrainableModel


def prepare_model(model: TrainableModel, config: EngineConfig) -> None:
    """Compile the layers of `model` and shard its weights, as the config says; in place.

    Call it before the optimiser is built.
    """
    if config.compile:
        for layer in model.layers():
            layer.compile(dynamic=True)
    if config.sharding == "fsdp":
        mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
        for layer in model.layers():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        # FSDP warns about every view that a forward pass returns, since it must not be written to. No code does.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def wrap_model(model: nn.Module) -> nn.Module:
    """The module to call for forward passes: `model` in DDP, or `model` itself with FSDP or on one process."""
    if isinstance(model, FSDPModule) or not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    # DDP warns about the strides of single tokens and depthwise kernels, which are small and cheap to copy.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


@contextmanager
def gradient_sync(wrapped_model: nn.Module, enabled: bool) -> Iterator[None]:
    """Context in which backward passes average gradients over processes, or only accumulate them locally."""
    if isinstance(wrapped_model, FSDPModule):
        wrapped_model.set_requires_gradient_sync(enabled)
        yield
    elif isinstance(wrapped_model, DistributedDataParallel) and not enabled:
        with wrapped_model.no_sync():
            yield
    else:
        yield


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """All weights, unsharded, on the CPU of the main process (empty in others with FSDP). Every process calls this."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
