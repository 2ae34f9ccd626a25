# SPDX-License-Identifier: Apache-2.0
"""Class loss, binary cross-entropy and dice loss of queries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def class_loss(class_logits: Tensor, is_matched: Tensor, num_masks: Tensor, no_object_weight: float) -> Tensor:
    """Cross-entropy with label "entity" for matched queries and "no object", of lower weight, for the others.

    Args:
        class_logits: [layers, B, Q, 2].
        is_matched: bool [layers, B, Q].
        num_masks: matched queries per layer; with several processes, their mean.

    Returns:
        Scalar: weighted mean over queries, summed over layers.
    """
    _layers, B, Q, _ = class_logits.shape
    label = (~is_matched).long()
    loss = F.cross_entropy(class_logits.float().flatten(0, 2), label.flatten(), reduction="none")
    weight = torch.full_like(loss, no_object_weight).masked_fill(is_matched.flatten(), 1.0)
    return (loss * weight).sum() / (num_masks + no_object_weight * (B * Q - num_masks)).clamp(min=1e-6)


def bce_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy at points [..., P], mean over points -> [...]."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none").mean(dim=-1)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """`1 - (2 sum(s t) + 1) / (sum(s) + sum(t) + 1)` at points [..., P] -> [...]."""
    s = logits.float().sigmoid()
    return 1.0 - (2.0 * (s * labels).sum(-1) + 1.0) / (s.sum(-1) + labels.sum(-1) + 1.0)
