# SPDX-License-Identifier: Apache-2.0
"""Masks that start as likeness with an anchor point. [ours]"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sohes.models.pixel_decoder import PixelFeatures
from sohes.models.queries import sample_map


class AnchorAffinity(nn.Module):
    """A term of the mask logits that falls with the distance to the query's anchor, in features and in the image.

        logit(q, x) = b_q - s_q |g(x) - g(a_q) - d_q|^2 - t_q |x - a_q - e_q|^2

    g is a linear map of the finest features; the offsets d and e, the scales s and t and the bias b are linear in the
    query, with d and e zero at first. Multiplied out, it is one more product of embedding and map, so everything that
    reads mask logits stays as it is. A network that has seen nothing yet groups by likeness already, each query gets
    masks near its own anchor, and matching is stable from the first step.
    """

    def __init__(self, dim: int, finest_dim: int, affinity_dim: int, anchors: Tensor, num_granularities: int) -> None:
        super().__init__()
        self.register_buffer("anchors", anchors, persistent=False)
        self.affinity_dim = affinity_dim
        self.features = nn.Conv2d(finest_dim, affinity_dim, 1)
        self.offset = nn.Linear(dim, affinity_dim + 2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        self.shape = nn.Linear(dim, 3)  # log s, log t, b
        nn.init.zeros_(self.shape.weight)
        nn.init.zeros_(self.shape.bias)
        # From fine to coarse the reach of a mask doubles: radius 1/16 .. 1/2 of the image.
        steps = torch.linspace(-4.0, -1.0, num_granularities) if num_granularities > 1 else torch.tensor([-2.0])
        start = torch.stack((torch.full_like(steps, 0.0), -2.0 * steps * torch.log(torch.tensor(2.0))), dim=-1)
        self.start = nn.Parameter(start)  # [m, 2]: log s, log t

    def maps(self, pixels: PixelFeatures) -> Tensor:
        """float32 [B, A + 5, h, w]: g, |g|^2, x, y, x^2 + y^2, 1."""
        g = self.features(pixels.finest).float()  # [B, A, h, w]
        B, _, h, w = g.shape
        y = ((torch.arange(h, device=g.device) + 0.5) / h)[:, None].expand(h, w)
        x = ((torch.arange(w, device=g.device) + 0.5) / w)[None, :].expand(h, w)
        fixed = torch.stack((x, y, x * x + y * y, torch.ones_like(x)))  # [4, h, w]
        return torch.cat((g, g.square().sum(1, keepdim=True), fixed.expand(B, -1, -1, -1)), dim=1)

    def embeddings(self, queries: Tensor, maps: Tensor) -> Tensor:
        """queries [B, Q, C], maps as above -> float32 [B, Q, A + 5]."""
        A = self.affinity_dim
        offset, shape = self.offset(queries).float(), self.shape(queries).float()
        centre = sample_map(maps[:, :A], self.anchors) + offset[..., :A]  # [B, Q, A]
        point = self.anchors + offset[..., A:]  # [B, Q, 2]
        repeats = self.anchors.shape[0] // self.start.shape[0]
        log_scale = self.start.repeat(repeats, 1) + shape[..., :2]  # [B, Q, 2]
        s, t = log_scale.clamp(-8.0, 8.0).exp().split(1, dim=-1)  # [B, Q, 1]
        bias = 1.0 + shape[..., 2:]
        constant = bias - s * centre.square().sum(-1, keepdim=True) - t * point.square().sum(-1, keepdim=True)
        return torch.cat((2.0 * s * centre, -s, 2.0 * t * point, -t, constant), dim=-1)
