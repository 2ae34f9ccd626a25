# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention from the raw outputs of a layer: offsets in pixels and attention logits.

The C++ kernel includes the softmax and the computation of locations, which take longer than the kernel itself in
PyTorch. On a GPU they run in PyTorch, around the kernels of `sohes.ops.ms_deform_attn`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sohes.ops._library import define_op, refuse_tangents, why_not_cpp, why_not_cuda, why_not_triton
from sohes.ops.ms_deform_attn import BACKWARD as UNFUSED_BACKWARD
from sohes.ops.ms_deform_attn import FORWARD as UNFUSED_FORWARD
from sohes.ops.ms_deform_attn import check_inputs, cpp_backward, cpp_forward, fake_backward, fake_forward
from sohes.ops.reference.ms_deform_attn import HALF_TYPES, place_points, raw_gradients


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    backend: str = "auto",
) -> Tensor:
    """`ms_deform_attn` at `reference_points + sampling_offsets / (width, height)` with the softmax of the logits.

    Differentiable once, in all arguments except `reference_points`. Half types are storage types: locations and weights
    are float32 inside.

    Args:
        value: [B, S, K, D], as `sohes.ops.ms_deform_attn.ms_deform_attn` takes it.
        spatial_shapes: (height, width) of each level.
        reference_points: float [Q, 2], (x, y) with 0..1 spanning a map; the same for every image and head.
        sampling_offsets: [B, Q, K, L, P, 2], (x, y) in pixels of the level. The dtype of value, or float32 with a
            half type.
        attention_logits: [B, Q, K, L, P] in the dtype of sampling_offsets; the softmax is over L and P together.
        backend: "auto", "cpp", "cuda", "triton" or "reference".

    Under autocast value is cast to the autocast dtype; offsets and logits in another dtype are cast to float32.

    Returns:
        [B, Q, K*D] in the dtype of value.

    Raises:
        ValueError: invalid shape, dtype or device, or reference_points require a gradient.
        BackendUnavailable: see `sohes.ops._library`.
    """
    device_type = value.device.type
    is_castable = torch.amp.is_autocast_available(device_type) and value.dtype != torch.float64
    if is_castable and torch.is_autocast_enabled(device_type):
        value = value.to(torch.get_autocast_dtype(device_type))
        if sampling_offsets.dtype != value.dtype or attention_logits.dtype != value.dtype:
            sampling_offsets, attention_logits = sampling_offsets.float(), attention_logits.float()
    names = ("sampling_offsets", "attention_logits")
    check_inputs("ms_deform_attn_fused", value, spatial_shapes, sampling_offsets, attention_logits, names)
    Q = sampling_offsets.shape[1]
    if reference_points.shape != (Q, 2) or reference_points.device != value.device:
        raise ValueError(
            f"ms_deform_attn_fused: expected reference_points [{Q}, 2] on {value.device}, got "
            f"{list(reference_points.shape)} on {reference_points.device}"
        )
    if reference_points.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "ms_deform_attn_fused: has no gradient for reference_points, expected them detached "
            "(ms_deform_attn has one for sampling_locations)"
        )
    refuse_tangents("ms_deform_attn_fused", reference_points)
    compute_dtype = torch.float32 if value.dtype in HALF_TYPES else value.dtype
    reference_points = reference_points.detach().to(compute_dtype).contiguous()
    flat_shapes = [side for shape in spatial_shapes for side in shape]
    return FORWARD(value, flat_shapes, reference_points, sampling_offsets, attention_logits, backend)


def _fake_forward(
    value: Tensor, spatial_shapes: list[int], reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    return fake_forward(value, spatial_shapes, offsets, logits)


def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_backward(grad_output, value, spatial_shapes, offsets, logits)


def _around(backend: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward in PyTorch around the operators of `ms_deform_attn` on one backend."""

    def forward(
        value: Tensor, spatial_shapes: list[int], reference_points: Tensor, offsets: Tensor, logits: Tensor
    ) -> Tensor:
        points = place_points(spatial_shapes, reference_points, offsets, logits)
        return UNFUSED_FORWARD(value, spatial_shapes, *points, backend)

    def backward(
        grad_output: Tensor,
        value: Tensor,
        spatial_shapes: list[int],
        reference_points: Tensor,
        offsets: Tensor,
        logits: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        locations, weights = place_points(spatial_shapes, reference_points, offsets, logits)
        grad_value, *grads = UNFUSED_BACKWARD(grad_output, value, spatial_shapes, locations, weights, backend)
        grad_offsets, grad_logits = raw_gradients(spatial_shapes, weights, *grads)
        return grad_value, grad_offsets.to(offsets.dtype), grad_logits.to(logits.dtype)

    return forward, backward


_reference_forward, _reference_backward = _around("reference")
FORWARD = define_op(
    "ms_deform_attn_fused",
    "(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets, "
    'Tensor attention_logits, str backend="auto") -> Tensor',
    reference=_reference_forward,
    fake=_fake_forward,
    no_gradient=None,
)
BACKWARD = define_op(
    "ms_deform_attn_fused_backward",
    "(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets, "
    'Tensor attention_logits, str backend="auto") -> (Tensor, Tensor, Tensor)',
    reference=_reference_backward,
    fake=_fake_backward,
    no_gradient="the gradient of ms_deform_attn_fused cannot be differentiated again (double backward)",
)


def _cpp_forward(
    value: Tensor, spatial_shapes: list[int], reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    return cpp_forward(value, spatial_shapes, offsets, logits, reference_points)


def _cpp_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return cpp_backward(grad_output, value, spatial_shapes, offsets, logits, reference_points)


FORWARD.add_backend("cpp", _cpp_forward, why_not_cpp)
BACKWARD.add_backend("cpp", _cpp_backward, why_not_cpp)
for _name, _why_not in (("cuda", why_not_cuda), ("triton", why_not_triton)):
    _forward, _backward = _around(_name)
    FORWARD.add_backend(_name, _forward, _why_not)
    BACKWARD.add_backend(_name, _backward, _why_not)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, spatial_shapes, reference_points, offsets, logits, backend = inputs
    ctx.save_for_backward(value, reference_points, offsets, logits)
    ctx.spatial_shapes = spatial_shapes
    ctx.backend = backend


def _differentiate(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *points = ctx.saved_tensors
    grads = BACKWARD(grad_output, value, ctx.spatial_shapes, *points, ctx.backend)
    return grads[0], None, None, grads[1], grads[2], None


FORWARD.register_autograd(_differentiate, _setup_context)
