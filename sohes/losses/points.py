# SPDX-License-Identifier: Apache-2.0
"""Sampled points, at which matching and losses compare masks (PointRend, Mask2Former).

Points are (x, y) as fractions of the image, 0..1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BOX_SCALE = 2.0
"""Points near a mask are drawn from its box, with sides enlarged by this factor."""


def random_points(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform points, float32 [*shape, 2]. Drawn on the generator's device, so that only the seed decides."""
    home = device if generator is None else generator.device
    return torch.rand(*shape, 2, generator=generator, dtype=torch.float32, device=home).to(device)


def points_near(masks: Tensor, which: Tensor, generator: torch.Generator | None) -> Tensor:
    """For each k, one uniform point in the enlarged box of mask `which[k]`.

    Even for small masks, some points are then inside and some outside. The box of an empty mask is the image.

    Args:
        masks: bool [N, H, W].
        which: int64 [K].

    Returns:
        float32 [K, 2].
    """
    sides = []
    for hit in (masks.any(dim=1), masks.any(dim=2)):  # [N, W], [N, H]
        size = hit.shape[1]
        first = hit.to(torch.uint8).argmax(dim=1).float()
        last = size - hit.flip(1).to(torch.uint8).argmax(dim=1).float()  # for an empty mask: the whole side
        centre, radius = (first + last) / (2 * size), BOX_SCALE * (last - first) / (2 * size)
        sides.append(torch.stack(((centre - radius).clamp(min=0.0), (centre + radius).clamp(max=1.0)), dim=-1))
    low, high = torch.stack(sides, dim=1).unbind(-1)  # [N, 2 (x, y)]
    uniform = random_points((len(which),), generator, masks.device)  # [K, 2]
    return low[which] + uniform * (high - low)[which]


def sample_maps(maps: Tensor, points: Tensor, extent: tuple[float, float]) -> Tensor:
    """Values of maps [N, C, h, w], interpolated at points [N, P, 2] -> [N, C, P].

    `extent` is the fraction (x, y) of the map that the image covers, see `Outputs.extent`.
    """
    grid = points * (2.0 * points.new_tensor(extent)) - 1.0  # [N, P, 2]
    values = F.grid_sample(maps, grid[:, None], padding_mode="border", align_corners=False)  # [N, C, 1, P]
    return values[:, :, 0]


def sample_labels(masks: Tensor, points: Tensor) -> Tensor:
    """Values of masks, bool [N, H, W], at the pixels of points [N or 1, P, 2] -> float32 [N, P].

    Not interpolated, which would need a float copy of the masks, the largest tensors of a batch.
    """
    N, H, W = masks.shape
    x = (points[..., 0] * W).long().clamp(max=W - 1)
    y = (points[..., 1] * H).long().clamp(max=H - 1)
    index = (y * W + x).expand(N, -1)  # [N, P]
    return masks.flatten(1).gather(1, index).float()


def match_points(masks: Tensor, num_points: int, local_ratio: float, generator: torch.Generator | None) -> Tensor:
    """Points [P, 2] for matching the masks of an image, bool [N, H, W]: uniform, and some near each mask."""
    N = masks.shape[0]
    num_local = int(num_points * local_ratio) if N else 0
    uniform = random_points((num_points - num_local,), generator, masks.device)
    if num_local == 0:
        return uniform
    which = torch.arange(num_local, device=masks.device) % N  # every mask equally often
    return torch.cat((uniform, points_near(masks, which, generator)))


def loss_points(
    maps: Tensor,
    masks: Tensor,
    num_points: int,
    extent: tuple[float, float],
    *,
    oversample_ratio: float,
    importance_ratio: float,
    local_ratio: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Points for the mask losses: where the prediction is most uncertain, near the target, and uniform.

    Args:
        maps: logits [N, layers, h, w] of the queries matched to each target. All layers share the points [ours]; the
            most uncertain layer counts.
        masks: the targets, bool [N, H, W].
        num_points: P.
        extent: see `sample_maps`.
        oversample_ratio, importance_ratio, local_ratio: see `LossConfig`.

    Returns:
        float32 [N, P, 2], without gradient.
    """
    N = masks.shape[0]
    num_uncertain = int(num_points * importance_ratio)
    num_local = int(num_points * local_ratio)
    points = [random_points((N, num_points - num_uncertain - num_local), generator, masks.device)]
    if num_uncertain:
        drawn = random_points((N, int(num_uncertain * oversample_ratio)), generator, masks.device)
        with torch.no_grad():
            certainty = sample_maps(maps, drawn, extent).abs_().amin(dim=1)  # [N, drawn]
            chosen = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices  # [N, uncertain]
        points.append(drawn.gather(1, chosen[..., None].expand(-1, -1, 2)))
    if num_local:
        which = torch.arange(N, device=masks.device).repeat_interleave(num_local)
        points.append(points_near(masks, which, generator).view(N, num_local, 2))
    return torch.cat(points, dim=1)
