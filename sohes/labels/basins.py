# SPDX-License-Identifier: Apache-2.0
"""Starting regions that are sharp to the pixel: catchment basins of the colour gradient, and their borders.

Borders of basins (`sohes.ops.catchment_basins`) lie on ridges of the gradient, where edges are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.configs.run import ExploreConfig
from sohes.labels.descriptor import embed_color
from sohes.labels.view import View
from sohes.ops import catchment_basins, region_borders


@dataclass(frozen=True, eq=False)
class Basins:
    """N regions of one view.

    labels: int64 [H, W] of the view, 0..N-1. means: float32 [N, C], mean features. colors: float64 [N, 4], mean Lab and
    mean squared length of Lab. sizes: int64 [N], in pixels. edges: int64 [E, 2], each adjacent pair once. borders:
    float32 [E, 2], the number of pixel sides between the two and the sum of edge strength along them.
    """

    labels: Tensor
    means: Tensor
    colors: Tensor
    sizes: Tensor
    edges: Tensor
    borders: Tensor


def find_basins(view: View, features: Tensor | None, config: ExploreConfig) -> Basins:
    """The basins of a view.

    features: of a ViT, float32 [h, w, C], pooled over each basin, of which `color_share` is replaced by features of the
    mean colour; None: colours only.
    """
    labels = catchment_basins(color_gradient(view.lab, config.basin_sigma))  # [H, W]
    flat = labels.flatten()
    sizes = torch.bincount(flat)  # [N]
    channels = torch.cat([view.lab, view.lab.square().sum(0, keepdim=True)]).flatten(1)  # [4, H*W]
    colors = torch.stack([torch.bincount(flat, channel.double()) for channel in channels], 1) / sizes[:, None]
    share = 1.0 if features is None else config.color_share
    parts = []
    if share > 0:
        parts.append(sqrt(share) * _embed_means(colors, config))
    if features is not None and share < 1:
        pooled = pool_features(flat, sizes, view.patches.flatten(), features.flatten(0, 1))
        parts.append(sqrt(1 - share) * pooled)  # [N, C]
    means = torch.cat(parts, 1)
    gradient = 2 * color_gradient(view.lab, config.border_sigma)  # [H, W], the step across two pixels
    edges, borders = region_borders(labels, gradient / (gradient + config.border_softness))
    return Basins(labels, means, colors, sizes, edges, borders)


def by_color(basins: Basins, config: ExploreConfig) -> Basins:
    """The same basins with features of their mean colour only."""
    return replace(basins, means=_embed_means(basins.colors, config))


def _embed_means(colors: Tensor, config: ExploreConfig) -> Tensor:
    """`Basins.colors` -> features, float32 [N, 32] of length 1."""
    return embed_color(colors[:, :3].float(), config)


def pool_features(labels: Tensor, sizes: Tensor, patches: Tensor, features: Tensor) -> Tensor:
    """Mean feature of each region, float32 [N, C]: every pixel has the normalised feature [h*w, C] of its patch.

    labels, patches: int64 [P], region and patch of each pixel. A region has pixels of few patches, so this is a sparse
    product.
    """
    num_patches = len(features)
    pairs, counts = torch.unique(labels * num_patches + patches, return_counts=True)
    shares = torch.sparse_coo_tensor(
        torch.stack([pairs // num_patches, pairs % num_patches]),
        counts.float(),
        (len(sizes), num_patches),
        check_invariants=True,
        device=labels.device,
    )
    return (shares @ F.normalize(features.float(), dim=1)) / sizes[:, None]


def color_gradient(lab: Tensor, sigma: float) -> Tensor:
    """Gradient magnitude of lab [3, H, W] after a Gaussian blur, float32 [H, W]."""
    blurred = F.pad(blur(lab, sigma)[None], (1, 1, 1, 1), mode="replicate")[0]  # [3, H+2, W+2]
    dx = blurred[:, 1:-1, 2:] - blurred[:, 1:-1, :-2]  # [3, H, W], over two pixels
    dy = blurred[:, 2:, 1:-1] - blurred[:, :-2, 1:-1]
    return dx.square_().add_(dy.square_()).sum(0).sqrt_().div_(2)


def blur(values: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [C, H, W], the kernel cut off at 3 sigma, edges repeated."""
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=values.device)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(len(values), 1, 1, -1)  # [C, 1, 1, K]
    values = values[None]
    for shape, padding in ((kernel.mT, (0, 0, radius, radius)), (kernel, (radius, radius, 0, 0))):
        # A group for each channel is seven times as fast as channels in place of a batch, and equal to the bit.
        values = F.conv2d(F.pad(values, padding, mode="replicate"), shape, groups=values.shape[1])
    return values[0]
