# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of ms_deform_attn and its backward, for machines without nvcc.

    x = location_x * width - 0.5, y = location_y * height - 0.5; corner weights (1-fx)(1-fy) .. fx*fy
    out[q]              = sum over points and corners of  attention * corner weight * value[corner]
    grad_value[corner] += attention * corner weight * grad_out[q]
    dot[corner]         = <grad_out[q], value[corner]>, from which the gradients of location and weight follow

One program computes BLOCK_Q queries of one (batch, head) with all their channels. Forward reads 4*D elements of value
per point. Backward adds as many to grad_value atomically: in float32, which is not repeatable to the last bit, or under
`torch.use_deterministic_algorithms` in integers (see `sohes.ops._fixed_point`), which is.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from sohes.ops._fixed_point import empty_sums, read_sums

TILE = 512  # queries x channels of one program


@triton.jit
def _rows(B, Q, K, BLOCK_Q: tl.constexpr):  # noqa: ANN001, ANN202 - Triton tensors have no annotations
    # Heads vary fastest, so that concurrent programs read neighbouring rows.
    pid = tl.program_id(0)
    k = pid % K
    num_blocks = tl.cdiv(Q, BLOCK_Q)
    b = pid // K // num_blocks
    q = pid // K % num_blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query = (b.to(tl.int64) * Q + q) * K + k  # row of [B, Q, K]
    return b, k, q < Q, query


@triton.jit
def _axis(location, size):  # noqa: ANN001, ANN202
    x = location * size - 0.5
    # NaN fails the comparison and counts as outside; the bounds keep the conversion to integer defined.
    x = tl.where(x > -2, x, -2)
    x = tl.where(x < size, x, size)
    low = tl.floor(x)
    return low.to(tl.int32), x - low


@triton.jit
def _corner(x0, y0, fx, fy, width, height, corner: tl.constexpr):  # noqa: ANN001, ANN202
    # Corners are ordered (y, x): 00 01 10 11.
    if corner % 2 == 1:
        x, factor_x = x0 + 1, fx
    else:
        x, factor_x = x0, 1 - fx
    if corner // 2 == 1:
        y, factor_y = y0 + 1, fy
    else:
        y, factor_y = y0, 1 - fy
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return y * width + x, inside, factor_x, factor_y


@triton.jit
def _forward_kernel(  # noqa: ANN202
    value, levels, locations, weights, output,  # noqa: ANN001
    B, S, K, D, Q, L, P,  # noqa: ANN001
    ACC: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b, k, in_range, query = _rows(B, Q, K, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    head = value + (b.to(tl.int64) * S * K + k) * D + d[None, :]  # [1, BLOCK_D]
    sums = tl.zeros((BLOCK_Q, BLOCK_D), ACC)
    for level in range(L):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(P):
            i = (query * L + level) * P + point  # [BLOCK_Q]
            x0, fx = _axis(tl.load(locations + 2 * i, in_range, 0).to(ACC), width.to(ACC))
            y0, fy = _axis(tl.load(locations + 2 * i + 1, in_range, 0).to(ACC), height.to(ACC))
            attention = tl.load(weights + i, in_range, 0).to(ACC)
            for corner in tl.static_range(4):
                pixel, inside, factor_x, factor_y = _corner(x0, y0, fx, fy, width, height, corner)
                row = (start + pixel).to(tl.int64) * K * D  # [BLOCK_Q]
                mask = (inside & in_range)[:, None] & (d < D)[None, :]
                sampled = tl.load(head + row[:, None], mask, 0).to(ACC)
                sums += (attention * factor_x * factor_y)[:, None] * sampled
    mask = in_range[:, None] & (d < D)[None, :]
    tl.store(output + query[:, None] * D + d[None, :], sums.to(output.dtype.element_ty), mask)


@triton.jit
def _backward_kernel(  # noqa: ANN202
    grad_output, value, levels, locations, weights, grad_value, grad_locations, grad_weights, units,  # noqa: ANN001
    B, S, K, D, Q, L, P,  # noqa: ANN001
    ACC: tl.constexpr, DETERMINISTIC: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b, k, in_range, query = _rows(B, Q, K, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    offset = (b.to(tl.int64) * S * K + k) * D + d[None, :]  # [1, BLOCK_D]
    grad_mask = in_range[:, None] & (d < D)[None, :]
    grad = tl.load(grad_output + query[:, None] * D + d[None, :], grad_mask, 0).to(ACC)
    if DETERMINISTIC:
        scale = tl.load(units)
    for level in range(L):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(P):
            i = (query * L + level) * P + point  # [BLOCK_Q]
            x0, fx = _axis(tl.load(locations + 2 * i, in_range, 0).to(ACC), width.to(ACC))
            y0, fy = _axis(tl.load(locations + 2 * i + 1, in_range, 0).to(ACC), height.to(ACC))
            attention = tl.load(weights + i, in_range, 0).to(ACC)
            grad_x, grad_y, grad_weight = tl.zeros_like(fx), tl.zeros_like(fx), tl.zeros_like(fx)
            for corner in tl.static_range(4):
                pixel, inside, factor_x, factor_y = _corner(x0, y0, fx, fy, width, height, corner)
                row = (start + pixel).to(tl.int64)[:, None] * K * D + offset  # [BLOCK_Q, BLOCK_D]
                mask = (inside & in_range)[:, None] & (d < D)[None, :]
                dot = tl.sum(grad * tl.load(value + row, mask, 0).to(ACC), 1)  # [BLOCK_Q]
                grad_weight += factor_x * factor_y * dot
                if corner % 2 == 1:
                    grad_x += factor_y * dot
                else:
                    grad_x -= factor_y * dot
                if corner // 2 == 1:
                    grad_y += factor_x * dot
                else:
                    grad_y -= factor_x * dot
                part = (attention * factor_x * factor_y)[:, None] * grad
                if DETERMINISTIC:
                    tl.atomic_add(grad_value + row, tl.floor(part.to(tl.float64) * scale + 0.5).to(tl.int64), mask)
                else:
                    tl.atomic_add(grad_value + row, part, mask, sem="relaxed")
            point_type = grad_weights.dtype.element_ty
            tl.store(grad_weights + i, grad_weight.to(point_type), in_range)
            tl.store(grad_locations + 2 * i, (attention * width * grad_x).to(point_type), in_range)
            tl.store(grad_locations + 2 * i + 1, (attention * height * grad_y).to(point_type), in_range)


@functools.lru_cache(maxsize=64)
def _levels(spatial_shapes: tuple[int, ...], device: torch.device) -> Tensor:
    """Height, width and first position of each level, int32 [L, 3] on the device; cached to avoid a blocking copy."""
    rows, start = [], 0
    for height, width in zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True):
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _launch(value: Tensor, locations: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]:
    """Launch grid, sizes and constants of both kernels."""
    (B, S, K, D), (_, Q, _, L, P, _) = value.shape, locations.shape
    block_d = triton.next_power_of_2(D)
    block_q = max(1, min(TILE // block_d, triton.next_power_of_2(Q)))
    acc = tl.float64 if value.dtype == torch.float64 else tl.float32
    return (
        (B * K * triton.cdiv(Q, block_q),),
        (B, S, K, D, Q, L, P),
        {"ACC": acc, "BLOCK_Q": block_q, "BLOCK_D": block_d},
    )


def ms_deform_attn(
    value: Tensor, spatial_shapes: list[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Output [B, Q, K*D]; arguments as in `sohes.ops.reference.ms_deform_attn`."""
    (B, _, K, D), Q = value.shape, sampling_locations.shape[1]
    output = value.new_empty(B, Q, K * D)
    if output.numel() == 0:
        return output
    inputs = [t.contiguous() for t in (sampling_locations, attention_weights)]
    grid, sizes, constants = _launch(value, sampling_locations)
    with torch.cuda.device_of(value):
        levels = _levels(tuple(spatial_shapes), value.device)
        _forward_kernel[grid](value.contiguous(), levels, *inputs, output, *sizes, **constants)
    return output


def ms_deform_attn_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; arguments as in `sohes.ops.reference.ms_deform_attn`."""
    inputs = [t.contiguous() for t in (grad_output, value, sampling_locations, attention_weights)]
    grad_output, value, sampling_locations, attention_weights = inputs
    grad_locations, grad_weights = torch.empty_like(sampling_locations), torch.empty_like(attention_weights)
    if grad_output.numel() == 0:
        return torch.zeros_like(value), grad_locations, grad_weights
    num_terms = sampling_locations.shape[1] * sampling_locations.shape[4]  # points that may add to one position
    sums, units = empty_sums(value, lambda: grad_output.abs().amax() * attention_weights.abs().amax(), num_terms)
    grid, sizes, constants = _launch(value, sampling_locations)
    with torch.cuda.device_of(value):
        levels = _levels(tuple(spatial_shapes), value.device)
        arguments = (
            grad_output,
            value,
            levels,
            sampling_locations,
            attention_weights,
            sums,
            grad_locations,
            grad_weights,
        )
        _backward_kernel[grid](*arguments, units, *sizes, DETERMINISTIC=units is not None, **constants)
    return read_sums(sums, units, value.dtype), grad_locations, grad_weights
