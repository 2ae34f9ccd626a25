# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention: the public function, its operator and the operator of its backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sohes.ops._binary import require_binary
from sohes.ops._cuda import run_cuda
from sohes.ops._fixed_point import empty_sums, read_sums
from sohes.ops._library import define_op, why_not_cpp, why_not_cuda, why_not_triton
from sohes.ops.reference import ms_deform_attn as reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Multi-scale deformable attention: weighted sums of bilinear samples per query and head; differentiable once.

    As in Deformable DETR (align_corners=False, zeros outside); defined in `sohes.ops.reference.ms_deform_attn`.

    Args:
        value: [B, S, K, D], the levels flattened row by row and concatenated; float32, float64, bfloat16, float16.
        spatial_shapes: (height, width) of each level; their products sum to S.
        sampling_locations: [B, Q, K, L, P, 2], (x, y) with 0..1 spanning a level. The dtype of value, or float32
            with a half type (recommended: bfloat16 resolves only 1/256 of a map).
        attention_weights: [B, Q, K, L, P] in the dtype of sampling_locations, after the softmax.
        backend: "auto", "cpp", "cuda", "triton" or "reference".

    Under autocast value is cast to the autocast dtype, locations and weights to float32; float64 is not cast.

    Returns:
        [B, Q, K*D] in the dtype of value.

    Raises:
        ValueError: invalid shape, dtype or device. BackendUnavailable: see `sohes.ops._library`.
    """
    device_type = value.device.type
    is_castable = torch.amp.is_autocast_available(device_type) and value.dtype != torch.float64
    if is_castable and torch.is_autocast_enabled(device_type):
        value = value.to(torch.get_autocast_dtype(device_type))
        sampling_locations, attention_weights = sampling_locations.float(), attention_weights.float()
    check_inputs("ms_deform_attn", value, spatial_shapes, sampling_locations, attention_weights)
    flat_shapes = [side for shape in spatial_shapes for side in shape]
    return FORWARD(value, flat_shapes, sampling_locations, attention_weights, backend)


def check_inputs(
    op: str,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    names: tuple[str, str] = ("sampling_locations", "attention_weights"),
) -> None:
    """Raise ValueError where the inputs of the operator `op` do not fit; `names` are those of the last two."""
    points_name, weights_name = names
    if value.ndim != 4:
        raise ValueError(f"{op}: expected value [B, S, K, D], got {list(value.shape)}")
    B, S, K, D = value.shape
    if locations.ndim != 6 or locations.shape[5] != 2:
        raise ValueError(f"{op}: expected {points_name} [B, Q, K, L, P, 2], got {list(locations.shape)}")
    L, P = locations.shape[3:5]
    if locations.shape[0] != B or locations.shape[2] != K or len(spatial_shapes) != L:
        raise ValueError(
            f"{op}: {points_name} {list(locations.shape)} do not fit value {list(value.shape)} "
            f"with {len(spatial_shapes)} levels: expected [{B}, Q, {K}, {len(spatial_shapes)}, P, 2]"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f"{op}: expected {weights_name} {list(locations.shape[:-1])}, got {list(weights.shape)}")
    if K == 0 or D == 0 or L == 0 or P == 0:
        raise ValueError(f"{op}: expected at least one head, channel, level and point, got K={K}, D={D}, L={L}, P={P}")
    area = 0
    for height, width in spatial_shapes:
        if height < 1 or width < 1:
            raise ValueError(f"{op}: expected levels of at least 1x1, got {list(spatial_shapes)}")
        area = area + height * width
    if area != S:
        raise ValueError(f"{op}: spatial_shapes {list(spatial_shapes)} hold {area} positions, but value has {S}")
    if value.dtype not in DTYPES:
        raise ValueError(f"{op}: expected value of a floating dtype, got {value.dtype}")
    allowed = (value.dtype,) if value.dtype not in reference.HALF_TYPES else (value.dtype, torch.float32)
    if locations.dtype not in allowed or weights.dtype != locations.dtype:
        raise ValueError(
            f"{op}: expected {points_name} and {weights_name} both {' or '.join(map(str, allowed))} "
            f"with a value of {value.dtype}, got {locations.dtype} and {weights.dtype}"
        )
    if not value.device == locations.device == weights.device:
        raise ValueError(f"{op}: expected one device, got {value.device}, {locations.device} and {weights.device}")


def fake_forward(value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    # The kernels use it as their output and write every element.
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


def fake_backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (value, locations, weights)]
    return grads[0], grads[1], grads[2]


FORWARD = define_op(
    "ms_deform_attn",
    "(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights, "
    'str backend="auto") -> Tensor',
    reference=reference.ms_deform_attn,
    fake=fake_forward,
    no_gradient=None,
)
BACKWARD = define_op(
    "ms_deform_attn_backward",
    "(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
    'Tensor attention_weights, str backend="auto") -> (Tensor, Tensor, Tensor)',
    reference=reference.ms_deform_attn_backward,
    fake=fake_backward,
    no_gradient="the gradient of ms_deform_attn cannot be differentiated again (double backward)",
)


def cpp_forward(
    value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor, reference_points: Tensor | None = None
) -> Tensor:
    """Output of the C++ kernel. With reference points [Q, 2] the arguments are those of `ms_deform_attn_fused`."""
    module, threads = require_binary(), torch.get_num_threads()
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    output = fake_forward(value, spatial_shapes, locations, weights)
    num_bytes = module.ms_deform_attn_workspace(value, weights, False, threads)
    workspace = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")
    module.ms_deform_attn(value, spatial_shapes, locations, weights, reference_points, output, workspace, threads)
    return output


def cpp_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    locations: Tensor,
    weights: Tensor,
    reference_points: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients from the C++ kernel; arguments as in `cpp_forward`."""
    module, threads = require_binary(), torch.get_num_threads()
    inputs = [t.contiguous() for t in (value, locations, weights)]
    grads = fake_backward(grad_output, value, spatial_shapes, locations, weights)
    num_bytes = module.ms_deform_attn_workspace(inputs[0], inputs[2], True, threads)
    workspace = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")
    module.ms_deform_attn_backward(
        grad_output.contiguous(), inputs[0], spatial_shapes, *inputs[1:], reference_points, *grads, workspace, threads
    )
    return grads


def _cuda_forward(value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    output = fake_forward(value, spatial_shapes, locations, weights)
    run_cuda("ms_deform_attn_cuda", value, value, spatial_shapes, locations, weights, output)
    return output


def _cuda_backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (grad_output, value, locations, weights)
    grad_output, value, locations, weights = (t.contiguous() for t in inputs)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    if grad_output.numel() == 0:
        return torch.zeros_like(value), grad_locations, grad_weights
    num_terms = weights.shape[1] * weights.shape[4]  # points that may add to one position
    sums, units = empty_sums(value, lambda: grad_output.abs().amax() * weights.abs().amax(), num_terms)
    run_cuda(
        "ms_deform_attn_backward_cuda",
        value,
        *(grad_output, value, spatial_shapes, locations, weights),
        *(sums, units, grad_locations, grad_weights),
    )
    return read_sums(sums, units, value.dtype), grad_locations, grad_weights


def _triton(name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        from sohes.ops.triton import ms_deform_attn as kernels  # triton may not be installed

        return getattr(kernels, name)(*args)

    return run


FORWARD.add_backend("cpp", cpp_forward, why_not_cpp)
BACKWARD.add_backend("cpp", cpp_backward, why_not_cpp)
FORWARD.add_backend("cuda", _cuda_forward, why_not_cuda)
BACKWARD.add_backend("cuda", _cuda_backward, why_not_cuda)
FORWARD.add_backend("triton", _triton("ms_deform_attn"), why_not_triton)
BACKWARD.add_backend("triton", _triton("ms_deform_attn_backward"), why_not_triton)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, spatial_shapes, locations, weights, backend = inputs
    ctx.save_for_backward(value, locations, weights)
    ctx.spatial_shapes = spatial_shapes
    ctx.backend = backend


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    grads = BACKWARD(grad_output, value, ctx.spatial_shapes, locations, weights, ctx.backend)
    return grads[0], None, grads[1], grads[2], None


FORWARD.register_autograd(_backward, _setup_context)
