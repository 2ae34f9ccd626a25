# SPDX-License-Identifier: Apache-2.0
"""Reference of multi-scale deformable attention in plain PyTorch, which defines the result of every backend.

The same operation as in Deformable DETR (arXiv 2010.04159, eq. 3), so its trained weights can be used:

    out[b, q, k, :] = sum over l, p of  attention_weights[b, q, k, l, p] * bilinear(value of level l, location)

A location (x, y) in [0, 1] spans the whole map of its level: pixel centres lie at ((j + 0.5) / width,
(i + 0.5) / height). The map is padded with zeros. A location that is not finite counts as outside. Values on a pixel
centre are exact; the gradient there is that of the pixel to the right and below.

float16 and bfloat16 are storage types: arithmetic and coordinates are float32, rounded once at the end.

Shape letters: B batch, S = sum of height*width over the levels, K heads, D channels of a head, Q queries,
L levels, P points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_TYPES = (torch.float16, torch.bfloat16)


def ms_deform_attn(
    value: Tensor, spatial_shapes: list[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Output [B, Q, K*D] in the dtype of value.

    Args:
        value: [B, S, K, D].
        spatial_shapes: h0, w0, h1, w1, ...
        sampling_locations: [B, Q, K, L, P, 2].
        attention_weights: [B, Q, K, L, P].
    """
    B, _, K, D = value.shape
    Q = sampling_locations.shape[1]
    dtype = _compute_dtype(value)
    if B * Q == 0:
        return value.new_zeros(B, Q, K * D)
    output = value.new_zeros((B * K, D, Q), dtype=dtype)
    for level, feature_map in enumerate(_split_levels(value.to(dtype), spatial_shapes)):  # [B*K, D, h, w]
        grid = _level_grid(sampling_locations, level, dtype)  # [B*K, Q, P, 2]
        weights = _heads_first(attention_weights[:, :, :, level], dtype)  # [B*K, Q, P]
        output += (_sample(feature_map, grid) * weights[:, None]).sum(-1)  # [B*K, D, Q, P] -> [B*K, D, Q]
    output = output.view(B, K, D, Q).permute(0, 3, 1, 2)  # [B, Q, K, D]
    return output.reshape(B, Q, K * D).contiguous().to(value.dtype)


def ms_deform_attn_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, sampling_locations and attention_weights, each like its input; grad_output: [B, Q, K*D]."""
    B, _, K, D = value.shape
    Q, L, P = sampling_locations.shape[1], sampling_locations.shape[3], sampling_locations.shape[4]
    dtype = _compute_dtype(value)
    if B * Q == 0:
        inputs = (value, sampling_locations, attention_weights)
        zeros = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in inputs]
        return zeros[0], zeros[1], zeros[2]
    grad_out = grad_output.to(dtype).view(B, Q, K, D).permute(0, 2, 3, 1).reshape(B * K, D, Q, 1)
    grad_levels, grad_grids, grad_weights = [], [], []
    for level, feature_map in enumerate(_split_levels(value.to(dtype), spatial_shapes)):  # [B*K, D, h, w]
        grid = _level_grid(sampling_locations, level, dtype)  # [B*K, Q, P, 2]
        weights = _heads_first(attention_weights[:, :, :, level], dtype)  # [B*K, Q, P]
        grad_weights.append((grad_out * _sample(feature_map, grid)).sum(1))  # [B*K, Q, P]
        grad_map, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad_out * weights[:, None], feature_map, grid, 0, 0, False, [True, True]
        )  # bilinear, zeros, align_corners=False -> [B*K, D, h, w], [B*K, Q, P, 2]
        grad_levels.append(grad_map.flatten(2))  # [B*K, D, h*w]
        grad_grids.append(2 * grad_grid)  # grid = 2 * location - 1
    grad_value = torch.cat(grad_levels, 2).view(B, K, D, -1).permute(0, 3, 1, 2)  # [B, S, K, D]
    grad_locations = torch.stack(grad_grids, 2).view(B, K, Q, L, P, 2).transpose(1, 2)  # [B, Q, K, L, P, 2]
    grad_attention = torch.stack(grad_weights, 2).view(B, K, Q, L, P).transpose(1, 2)  # [B, Q, K, L, P]
    return (
        grad_value.contiguous().to(value.dtype),
        grad_locations.contiguous().to(sampling_locations.dtype),
        grad_attention.contiguous().to(attention_weights.dtype),
    )


def place_points(
    spatial_shapes: list[int], reference_points: Tensor, sampling_offsets: Tensor, attention_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Sampling locations [B, Q, K, L, P, 2] and attention weights [B, Q, K, L, P] from the raw outputs of a layer.

    Args:
        spatial_shapes: as in `ms_deform_attn`.
        reference_points: [Q, 2] in the dtype of the result.
        sampling_offsets: [B, Q, K, L, P, 2] in pixels.
        attention_logits: [B, Q, K, L, P].
    """
    dtype = reference_points.dtype
    offsets = sampling_offsets.to(dtype) / _level_sizes(spatial_shapes, reference_points)[:, None]
    locations = reference_points[:, None, None, None] + offsets  # [B, Q, K, L, P, 2]
    return locations, attention_logits.to(dtype).flatten(3).softmax(-1).view_as(attention_logits)


def raw_gradients(
    spatial_shapes: list[int], weights: Tensor, grad_locations: Tensor, grad_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of sampling_offsets and attention_logits from the gradients of the results of `place_points`."""
    grad_offsets = grad_locations / _level_sizes(spatial_shapes, weights)[:, None]  # [B, Q, K, L, P, 2]
    mean = (weights * grad_weights).sum((3, 4), keepdim=True)  # [B, Q, K, 1, 1]
    return grad_offsets, weights * (grad_weights - mean)


def _level_sizes(spatial_shapes: list[int], like: Tensor) -> Tensor:
    """(width, height) of each level: [L, 2]."""
    return torch.tensor(spatial_shapes, dtype=like.dtype, device=like.device).view(-1, 2).flip(1)


def _compute_dtype(value: Tensor) -> torch.dtype:
    return torch.float32 if value.dtype in HALF_TYPES else value.dtype


def _split_levels(value: Tensor, spatial_shapes: list[int]) -> list[Tensor]:
    """[B, S, K, D] -> per level [B*K, D, h, w]."""
    B, _, K, D = value.shape
    shapes = list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))
    levels = value.split([h * w for h, w in shapes], dim=1)  # [B, h*w, K, D]
    return [x.permute(0, 2, 3, 1).reshape(B * K, D, h, w) for x, (h, w) in zip(levels, shapes, strict=True)]


def _heads_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, Q, K, ...] -> [B*K, Q, ...]."""
    return x.transpose(1, 2).flatten(0, 1).to(dtype)


def _level_grid(sampling_locations: Tensor, level: int, dtype: torch.dtype) -> Tensor:
    """Locations of one level as grid_sample expects them, -1 .. 1: [B*K, Q, P, 2]."""
    locations = _heads_first(sampling_locations[:, :, :, level], dtype)
    # -1 and 2 are outside the map at every size; huge and non-finite numbers would overflow an integer.
    return 2 * locations.nan_to_num(nan=-1).clamp(-1, 2) - 1


def _sample(feature_map: Tensor, grid: Tensor) -> Tensor:
    """[B*K, D, h, w] at [B*K, Q, P, 2] -> [B*K, D, Q, P]."""
    return F.grid_sample(feature_map, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
