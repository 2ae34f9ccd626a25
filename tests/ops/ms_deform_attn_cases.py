# SPDX-License-Identifier: Apache-2.0
"""Inputs of ms_deform_attn for its tests and benchmarks, and an implementation with grid_sample."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Case:
    """Sizes of one call. `queries` None: one query at each position, its points around that position."""

    batch: int
    shapes: tuple[tuple[int, int], ...]
    queries: int | None
    heads: int
    channels: int
    points: int

    @property
    def positions(self):
        return sum(height * width for height, width in self.shapes)


LEVELS = ((6, 5), (1, 1), (2, 3))
SMALL_CASES = {
    "tiny": Case(1, LEVELS, 2, 2, 8, 1),
    "odd": Case(2, ((3, 2), (1, 1)), 3, 1, 5, 3),
    "one of each": Case(1, ((1, 1),), 1, 1, 1, 1),
    "no queries": Case(2, LEVELS, 0, 2, 8, 3),
    "empty batch": Case(0, LEVELS, 4, 2, 8, 3),
}
CASES = {
    **SMALL_CASES,
    "30 channels": Case(1, ((4, 4), (2, 2)), 7, 2, 30, 2),
    "71 channels": Case(3, LEVELS, 5, 3, 71, 4),
    "200 channels": Case(1, ((3, 3),), 3, 1, 200, 5),
    "128 channels": Case(2, ((3, 3), (2, 1)), 4, 1, 128, 3),
    "large maps": Case(1, ((64, 48), (20, 20)), 120, 3, 64, 4),  # more than the C++ kernels read where it lies
    "many points": Case(1, LEVELS, 3, 2, 16, 19),
    "few visits": Case(2, ((19, 23),), 2, 2, 32, 4),
}
TRAINING = Case(8, ((16, 16), (8, 8), (4, 4)), None, 8, 16, 4)
LARGE = Case(1, ((128, 128), (64, 64), (32, 32)), None, 8, 32, 4)


def make_inputs(case, dtype=torch.float32, point_dtype=None, seed=0, device="cpu"):
    """(value, spatial_shapes, sampling_locations, attention_weights, grad_output); about a quarter of the points of a
    case with free queries lie outside."""
    generator = torch.Generator().manual_seed(seed)
    B, S, K, D, P, L = case.batch, case.positions, case.heads, case.channels, case.points, len(case.shapes)
    Q = S if case.queries is None else case.queries
    if case.queries is None:
        centers = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
            for h, w in case.shapes
        ]
        offsets = 2 * torch.randn(B, Q, K, L, P, 2, generator=generator)  # pixels
        sizes = torch.tensor([[w, h] for h, w in case.shapes])
        locations = torch.cat(centers)[:, None, None, None] + offsets / sizes[:, None]
    else:
        locations = torch.rand(B, Q, K, L, P, 2, generator=generator) * 1.3 - 0.15
    value = torch.randn(B, S, K, D, generator=generator)
    weights = torch.randn(B, Q, K, L * P, generator=generator).softmax(-1).view(B, Q, K, L, P)
    grad_output = torch.randn(B, Q, K * D, generator=generator)
    point_dtype = point_dtype or dtype
    return (
        value.to(device, dtype),
        list(case.shapes),
        locations.to(device, point_dtype),
        weights.to(device, point_dtype),
        grad_output.to(device, dtype),
    )


def make_raw_inputs(case, dtype=torch.float32, point_dtype=None, seed=0, device="cpu"):
    """(value, spatial_shapes, reference_points, sampling_offsets, attention_logits, grad_output)"""
    value, shapes, locations, _, grad_output = make_inputs(case, dtype, seed=seed, device=device)
    generator = torch.Generator().manual_seed(seed + 1)
    offsets = 2 * torch.randn(locations.shape, generator=generator)  # pixels
    logits = torch.randn(locations.shape[:-1], generator=generator)
    if case.queries is None:
        centers = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
            for h, w in case.shapes
        ]
        reference_points = torch.cat(centers)
    else:
        reference_points = torch.rand(case.queries, 2, generator=generator)
    point_dtype = point_dtype or dtype
    precise = torch.promote_types(dtype, torch.float32)
    points = (offsets.to(device, point_dtype), logits.to(device, point_dtype))
    return (value, shapes, reference_points.to(device, precise), *points, grad_output)


def pure_pytorch(value, spatial_shapes, sampling_locations, attention_weights):
    """One grid_sample per level, then the weighted sum, as models do without a kernel."""
    B, _, K, D = value.shape
    _, Q, _, L, P, _ = sampling_locations.shape
    grids = 2 * sampling_locations - 1
    samples = []
    for level, part in enumerate(value.split([h * w for h, w in spatial_shapes], dim=1)):  # [B, h*w, K, D]
        height, width = spatial_shapes[level]
        feature_map = part.flatten(2).transpose(1, 2).reshape(B * K, D, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [B*K, Q, P, 2]
        samples.append(F.grid_sample(feature_map, grid, align_corners=False))  # [B*K, D, Q, P]
    weights = attention_weights.transpose(1, 2).reshape(B * K, 1, Q, L * P)
    output = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)  # [B*K, D, Q]
    return output.view(B, K * D, Q).transpose(1, 2).contiguous()
