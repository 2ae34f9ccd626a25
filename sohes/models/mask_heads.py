# SPDX-License-Identifier: Apache-2.0
"""How mask logits come about: a product of an embedding per query and a feature map, in one of two forms.

Both forms have `num_outputs`, the numbers a query's MLP must give, `maps`, the feature map, and `embeddings`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sohes.models.pixel_decoder import PixelFeatures, enlarge
from sohes.models.precision import no_autocast

SHARPNESS = 3.0
"""Logit at an anchor before any training: sure enough for the losses to see, unsure enough to move."""
SCALE_RANGE = (1.0, 0.25)
RADIUS_RANGE = (0.08, 0.6)
"""Of the finest and the coarsest granularity before any training: the weight of distances in (normalised) colour, and
how far a mask reaches, as a fraction of the image. The pair that recalled most of drawn scenes without training."""

OUTPUT_GAIN = 0.1
"""Applied to what the MLP gives for anchor masks: a step of the optimiser then moves a mask a little. Without it, masks
that are good at the start are lost in the first steps (drawn scenes, AR 56 before training and 34 after 44 steps)."""


class ProjectedMasks(nn.Module):
    """Mask2Former's form: the MLP's output times a projection of the finest features."""

    def __init__(self, finest_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.num_outputs = mask_dim
        self.mask_projection = nn.Conv2d(finest_dim, mask_dim, 1)

    def maps(self, pixels: PixelFeatures) -> Tensor:
        """[B, E, h, w] at the stride of the masks."""
        return enlarge(self.mask_projection(pixels.finest), pixels.colours)

    def embeddings(self, outputs: Tensor, anchors: None, likeness: None) -> Tensor:
        """The MLP's output [B, Q, E] as it is."""
        return outputs


class AnchorMasks(nn.Module):
    """Masks that start as likeness with an anchor point. [ours]

        logit(q, x) = b_q - s_q |g(x) - g(a_q) - d_q|^2 - t_q |x - a_q - e_q|^2

    g is linear in the finest features and the image's colours, and starts as little more than the colours. Offsets d
    and e, logarithms of the scales s and t, and the bias b come from the query's MLP, whose last layer starts at zero.
    Multiplied out, this is a product of embedding and map as well, and d makes it as free as Mask2Former's. A network
    that has seen nothing yet so groups by likeness, each query near its own anchor: matching is stable from the first
    step, and training starts from masks instead of from noise.
    """

    def __init__(self, finest_dim: int, affinity_dim: int, num_granularities: int) -> None:
        super().__init__()
        if affinity_dim < 3:
            raise ValueError(f"affinity_dim must be at least 3, one per colour, got {affinity_dim}")
        self.affinity_dim = affinity_dim
        self.num_outputs = affinity_dim + 5  # d, e, log s, log t, b
        self.colours = nn.Conv2d(3, affinity_dim, 1)
        self.features = nn.Conv2d(finest_dim, affinity_dim, 1, bias=False)
        with torch.no_grad():
            self.colours.weight.copy_(torch.eye(affinity_dim, 3)[..., None, None])
            self.colours.bias.zero_()
            self.features.weight.mul_(0.3)  # not zero: where nothing differs there is no gradient
        share = torch.linspace(0.0, 1.0, num_granularities) if num_granularities > 1 else torch.tensor([0.5])
        (s0, s1), (r0, r1) = SCALE_RANGE, RADIUS_RANGE
        log_s = math.log(s0) + share * math.log(s1 / s0)
        log_t = -2.0 * (math.log(r0) + share * math.log(r1 / r0))
        log_sharpness = math.log(SHARPNESS)
        start = torch.stack((log_s + log_sharpness, log_t + log_sharpness, torch.full_like(share, SHARPNESS)), -1)
        self.start = nn.Parameter(start)  # [m, 3]: log s, log t, b

    def maps(self, pixels: PixelFeatures) -> Tensor:
        """float32 [B, A + 5, h, w] at the stride of the masks: g, |g|^2, x, y, x^2 + y^2, 1."""
        with no_autocast(pixels.finest.device):
            dtype = self.features.weight.dtype
            learned = self.features(pixels.finest.to(dtype)) * pixels.finest.shape[1] ** -0.5  # small at first
            colours = self.colours(pixels.colours.to(dtype))
            g = (colours + enlarge(learned, pixels.colours)).float()  # [B, A, h, w]
        B, _, h, w = g.shape
        y = ((torch.arange(h, dtype=torch.float32, device=g.device) + 0.5) / h)[:, None].expand(h, w)
        x = ((torch.arange(w, dtype=torch.float32, device=g.device) + 0.5) / w)[None, :].expand(h, w)
        fixed = torch.stack((x, y, x * x + y * y, torch.ones_like(x)))  # [4, h, w]
        return torch.cat((g, g.square().sum(1, keepdim=True), fixed.expand(B, -1, -1, -1)), dim=1)

    def embeddings(self, outputs: Tensor, anchors: Tensor, likeness: Tensor) -> Tensor:
        """Embeddings that go with `maps`.

        Args:
            outputs: of the MLP, [B, Q, A + 5], granularity varying fastest.
            anchors: [B, Q, 2].
            likeness: g at the anchors, float32 [B, Q, A].

        Returns:
            float32 [B, Q, A + 5].
        """
        A = self.affinity_dim
        offset, shape = (OUTPUT_GAIN * outputs.float()).split((A + 2, 3), dim=-1)
        shape = shape + self.start.repeat(outputs.shape[1] // len(self.start), 1)
        s, t = shape[..., :2].clamp(-10.0, 10.0).exp().split(1, dim=-1)  # [B, Q, 1]
        centre = likeness + offset[..., :A] * s.rsqrt()  # [B, Q, A], offsets in units of the reach
        point = anchors + offset[..., A:] * t.rsqrt()  # [B, Q, 2]
        far = s * centre.square().sum(-1, keepdim=True) + t * point.square().sum(-1, keepdim=True)
        return torch.cat((2.0 * s * centre, -s, 2.0 * t * point, -t, shape[..., 2:] - far), dim=-1)
