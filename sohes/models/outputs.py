# SPDX-License-Identifier: Apache-2.0
"""What the model returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sohes.models.precision import no_autocast


@dataclass(frozen=True)
class Outputs:
    """Predictions of one decoder layer; the last layer's carries those of the earlier ones in `aux`.

    Mask logits are the product of a small embedding per query and a feature map. They are kept in that form, because
    losses read a few points and matched queries only; `mask_logits` multiplies them out.
    """

    class_logits: Tensor
    """[B, Q, 2]: entity, no object."""
    mask_embeddings: Tensor
    """[B, Q, E]."""
    mask_features: Tensor
    """[B, E, h, w] = ceil of [B, E, H/stride, W/stride], shared by all layers."""
    ancestor_logits: Tensor | None
    """[B, Q, Q]: [i, j] says that i is an ancestor of j; None without the head."""
    image_size: tuple[int, int]
    """(H, W) of the images. The maps reach past the image where the stride does not divide H or W."""
    stride: int
    """Pixels per cell of the maps: 4, 2 or 1."""
    aux: list[Outputs] = field(default_factory=list)
    """The earlier layers, first layer first, starting with the queries before any layer."""

    @property
    def mask_logits(self) -> Tensor:
        """[B, Q, h, w] in the type of the features, also under autocast; over 0 is inside the mask."""
        with no_autocast(self.mask_features.device):
            embeddings = self.mask_embeddings.to(self.mask_features.dtype)
            return torch.einsum("bqe,behw->bqhw", embeddings, self.mask_features)

    @property
    def extent(self) -> tuple[float, float]:
        """Share (x, y) of the maps that the image covers."""
        (H, W), (h, w) = self.image_size, self.mask_features.shape[2:]
        return W / (self.stride * w), H / (self.stride * h)

    @property
    def entity_probability(self) -> Tensor:
        """[B, Q] in float32."""
        return self.class_logits.float().softmax(dim=-1)[..., 0]
