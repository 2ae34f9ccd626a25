# SPDX-License-Identifier: Apache-2.0
"""Deformable DETR's algorithm as a baseline with autograd: deformable_detr_form.cu, compiled by nvcc if installed."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_suffix(".cu")


def why_not() -> str | None:
    """The reason why the baseline cannot run, or None."""
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    return None if shutil.which("nvcc") else "needs nvcc, to compile the baseline"


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled baseline."""
    target = Path(tempfile.mkdtemp()) / "deformable_detr_form.so"
    major, minor = torch.cuda.get_device_capability()
    flags = ["-O3", f"-arch=sm_{major}{minor}", "-shared", "-Xcompiler", "-fPIC"]
    subprocess.run(["nvcc", *flags, str(SOURCE), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


class Baseline(torch.autograd.Function):
    """value [B, S, K, D], shapes int64 [L, 2] and starts int64 [L] on the device, locations, weights: float32."""

    @staticmethod
    def forward(ctx, value, shapes, starts, locations, weights):
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        output = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
        call("forward", (value, shapes, starts, locations, weights), (output,))
        return output

    @staticmethod
    def backward(ctx, grad_output):
        value, shapes, starts, locations, weights = ctx.saved_tensors
        grads = torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights)
        call("backward", (grad_output.contiguous(), value, shapes, starts, locations, weights), grads)
        return grads[0], None, None, grads[1], grads[2]


def call(name: str, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]) -> None:
    value, _, _, locations, _ = inputs[-5:]
    (B, S, K, D), (_, Q, _, L, P, _) = value.shape, locations.shape
    arguments = [ctypes.c_void_p(t.data_ptr()) for t in inputs]
    arguments += [ctypes.c_int(n) for n in (B, S, K, D, L, Q, P)]
    arguments += [ctypes.c_void_p(t.data_ptr()) for t in outputs]
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    status = getattr(library(), name)(*arguments, stream)
    if status != 0:
        raise RuntimeError(f"the baseline's {name} failed: CUDA error {status}")


def deformable_detr_form(value, spatial_shapes, sampling_locations, attention_weights):
    """As `sohes.ops.ms_deform_attn`, always in float32: its kernels have no half types."""
    shapes = torch.tensor(spatial_shapes, device=value.device)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    tensors = (t.float().contiguous() for t in (sampling_locations, attention_weights))
    return Baseline.apply(value.float().contiguous(), shapes, starts, *tensors)
