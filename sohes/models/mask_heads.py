# SPDX-License-Identifier: Apache-2.0
"""Two forms of mask logits, both a product of an embedding per query and a feature map.

Both classes have `num_outputs`, the output size of the queries' MLP, `maps`, which gives the feature map, and
`embeddings`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sohes.models.pixel_decoder import PixelFeatures, upsample_like
from sohes.models.precision import no_autocast

SHARPNESS = 3.0
"""Logit at an anchor before training: large enough to matter in the losses, small enough to change."""
SCALE_RANGE = (1.0, 0.25)
RADIUS_RANGE = (0.08, 0.6)
"""Values for the finest and the coarsest granularity before training: the weight of distances in (normalised) colour,
and the radius of a mask, as a fraction of the image. Chosen for the best recall on drawn scenes without training."""

OUTPUT_GAIN = 0.1
"""Factor on the MLP's output for anchor masks, so that an optimiser step changes a mask only a little. Without it, good
initial masks are lost in the first steps (drawn scenes: AR 56 before training, 34 after 44 steps)."""


class ProjectedMasks(nn.Module):
    """Masks as in Mask2Former: the product of the MLP's output and a projection of the finest features."""

    def __init__(self, finest_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.num_outputs = mask_dim
        self.mask_projection = nn.Conv2d(finest_dim, mask_dim, 1)

    def maps(self, pixels: PixelFeatures) -> Tensor:
        """[B, E, h, w] at the stride of the masks."""
        return upsample_like(self.mask_projection(pixels.finest), pixels.colours)

    def embeddings(self, outputs: Tensor) -> Tensor:
        """The MLP's output [B, Q, E], unchanged."""
        return outputs


class AnchorMasks(nn.Module):
    """Masks that start as similarity to an anchor point in colour and position. [ours]

        logit(q, x) = b_q - s_q |g(x) - g(a_q) - d_q|^2 - t_q |x - a_q - e_q|^2

    g is linear in the finest features and the image's colours, and at first mostly the colours. The query's MLP gives
    the offsets d and e, the logarithms of the scales s and t, and the bias b; its last layer starts at zero. Expanded,
    this is a product of an embedding and a map, and d makes it as general as Mask2Former's. An untrained model thus
    groups similar pixels near the anchor of each query: matching is stable from the first step, and training starts
    from masks instead of noise.
    """

    def __init__(self, finest_dim: int, affinity_dim: int, num_granularities: int) -> None:
        super().__init__()
        if affinity_dim < 3:
            raise ValueError(f"affinity_dim must be at least 3, one per colour, got {affinity_dim}")
        self.affinity_dim = affinity_dim
        self.num_outputs = affinity_dim + 5  # d, e, log s, log t, b
        self.colours = nn.Conv2d(3, affinity_dim, 1)
        self.features = nn.Conv2d(finest_dim, affinity_dim, 1, bias=False)
        assert self.colours.bias is not None
        with torch.no_grad():
            self.colours.weight.copy_(torch.eye(affinity_dim, 3)[..., None, None])
            self.colours.bias.zero_()
            self.features.weight.mul_(0.3)  # not zero: equal features would have no gradient
        fraction = torch.linspace(0.0, 1.0, num_granularities) if num_granularities > 1 else torch.tensor([0.5])
        (s0, s1), (r0, r1) = SCALE_RANGE, RADIUS_RANGE
        log_s = math.log(s0) + fraction * math.log(s1 / s0)
        log_t = -2.0 * (math.log(r0) + fraction * math.log(r1 / r0))
        log_sharpness = math.log(SHARPNESS)
        start = torch.stack((log_s + log_sharpness, log_t + log_sharpness, torch.full_like(fraction, SHARPNESS)), -1)
        self.start = nn.Parameter(start)  # [m, 3]: log s, log t, b

    def maps(self, pixels: PixelFeatures) -> Tensor:
        """float32 [B, A + 5, h, w] at the stride of the masks: g, |g|^2, x, y, x^2 + y^2, 1."""
        with no_autocast(pixels.finest.device):
            dtype = self.features.weight.dtype
            learned = self.features(pixels.finest.to(dtype)) * pixels.finest.shape[1] ** -0.5  # small at first
            colours = self.colours(pixels.colours.to(dtype))
            g = (colours + upsample_like(learned, pixels.colours)).float()  # [B, A, h, w]
        B, _, h, w = g.shape
        y = ((torch.arange(h, dtype=torch.float32, device=g.device) + 0.5) / h)[:, None].expand(h, w)
        x = ((torch.arange(w, dtype=torch.float32, device=g.device) + 0.5) / w)[None, :].expand(h, w)
        fixed = torch.stack((x, y, x * x + y * y, torch.ones_like(x)))  # [4, h, w]
        return torch.cat((g, g.square().sum(1, keepdim=True), fixed.expand(B, -1, -1, -1)), dim=1)

    def embeddings(self, outputs: Tensor, anchors: Tensor, affinity: Tensor) -> Tensor:
        """Embeddings to multiply with `maps`.

        Args:
            outputs: of the MLP, [B, Q, A + 5], granularity varying fastest.
            anchors: [B, Q, 2].
            affinity: g at the anchors, float32 [B, Q, A].

        Returns:
            float32 [B, Q, A + 5].
        """
        A = self.affinity_dim
        offset, shape = (OUTPUT_GAIN * outputs.float()).split((A + 2, 3), dim=-1)
        shape = shape + self.start.repeat(outputs.shape[1] // len(self.start), 1)
        s, t = shape[..., :2].clamp(-10.0, 10.0).exp().split(1, dim=-1)  # [B, Q, 1]
        centre = affinity + offset[..., :A] * s.rsqrt()  # [B, Q, A], offsets in units of the radius
        point = anchors + offset[..., A:] * t.rsqrt()  # [B, Q, 2]
        constant = s * centre.square().sum(-1, keepdim=True) + t * point.square().sum(-1, keepdim=True)
        return torch.cat((2.0 * s * centre, -s, 2.0 * t * point, -t, shape[..., 2:] - constant), dim=-1)
