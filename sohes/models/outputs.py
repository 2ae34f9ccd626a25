# SPDX-License-Identifier: Apache-2.0
"""`Outputs`: what the model returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sohes.models.precision import no_autocast


@dataclass(frozen=True)
class Outputs:
    """Predictions of one decoder layer. Those of the last layer hold the earlier layers' in `aux`.

    Mask logits are the product of an embedding per query and a feature map. They are stored as these two factors, since
    losses need only a few points of matched queries; `mask_logits` computes the product.
    """

    class_logits: Tensor
    """[B, Q, 2]: entity, no object."""
    mask_embeddings: Tensor
    """[B, Q, E]."""
    mask_features: Tensor
    """[B, E, h, w] = ceil of [B, E, H/stride, W/stride], shared by all layers."""
    ancestor_logits: Tensor | None
    """[B, Q, Q]: [i, j] is the logit that i is an ancestor of j; None without an ancestor head."""
    image_size: tuple[int, int]
    """(H, W) of the images. The maps extend beyond the image if the stride does not divide H or W."""
    stride: int
    """Pixels per cell of the maps: 4, 2 or 1."""
    aux: list[Outputs] = field(default_factory=list)
    """Predictions from the initial queries, then of each layer except the last."""

    @property
    def mask_logits(self) -> Tensor:
        """[B, Q, h, w] in the type of the features, also under autocast; above 0 inside the mask."""
        with no_autocast(self.mask_features.device):
            embeddings = self.mask_embeddings.to(self.mask_features.dtype)
            return torch.einsum("bqe,behw->bqhw", embeddings, self.mask_features)

    @property
    def extent(self) -> tuple[float, float]:
        """Fraction (x, y) of the maps that the image covers."""
        (H, W), (h, w) = self.image_size, self.mask_features.shape[2:]
        return W / (self.stride * w), H / (self.stride * h)

    @property
    def entity_probability(self) -> Tensor:
        """Probability that a query is an entity, float32 [B, Q]."""
        return self.class_logits.float().softmax(dim=-1)[..., 0]
