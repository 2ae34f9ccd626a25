# SPDX-License-Identifier: Apache-2.0
"""The loss of the ancestor head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def ancestor_loss(logits: Tensor, labels: Tensor, exists: Tensor) -> Tensor:
    """Balanced binary cross-entropy over ordered pairs of matched queries. [ours]

    Few pairs are positive: in each image, positive and negative pairs get half of the weight each.

    Args:
        logits: [layers, B, N, N], for the queries matched to the targets; [i, j]: i is an ancestor of j.
        labels: bool [layers or 1, B, N, N].
        exists: bool [layers, B, N], False where a target is padding or unmatched.

    Returns:
        Scalar: mean over images, summed over layers; zero for images with fewer than two masks.
    """
    _layers, B, N, _ = logits.shape
    pair = exists[..., :, None] & exists[..., None, :] & ~torch.eye(N, dtype=torch.bool, device=logits.device)
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels.expand_as(logits).float(), reduction="none")
    total = logits.new_zeros((), dtype=torch.float32)
    for side in (pair & labels, pair & ~labels):
        count = side.sum(dim=(2, 3)).clamp(min=1)  # [layers, B]
        total = total + 0.5 * ((loss * side).sum(dim=(2, 3)) / count).sum() / max(B, 1)
    return total
