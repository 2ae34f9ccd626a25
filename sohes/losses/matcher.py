# SPDX-License-Identifier: Apache-2.0
"""Hungarian matching of queries to target masks, per image and decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sohes.configs.model import LossConfig
from sohes.models.precision import without_autocast

MAX_COST = 1e6
"""Larger costs and NaN are replaced by this, so that the assignment stays valid and avoids them."""


@dataclass(frozen=True)
class Matches:
    """Matched queries for every layer and image."""

    query_of_target: Tensor
    """int64 [layers, B, N]: the query matched to each target; -1 for padding and unmatched targets."""
    num_unusable: int
    """Number of costs that were not finite or above MAX_COST."""


@without_autocast
def pairwise_cost(class_logits: Tensor, point_logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Matching cost of every query with every target: the training loss, without constants.

    With x the logits and t the labels at P points,
        bce(q, n)  = mean_p softplus(x_qp) - x_qp t_np
        dice(q, n) = 1 - (2 sum_p s_qp t_np + 1) / (sum_p s_qp + sum_p t_np + 1),  s = sigmoid(x)

    Args:
        class_logits: [B, Q, 2].
        point_logits: [B, Q, P].
        labels: [B, N, P] of 0 and 1.

    Returns:
        float32 [B, Q, N].
    """
    x, t = point_logits.float(), labels.transpose(1, 2)  # [B, Q, P], [B, P, N]
    bce = (F.softplus(x).sum(-1, keepdim=True) - x @ t) / x.shape[-1]
    s = x.sigmoid()
    dice = 1.0 - (2.0 * (s @ t) + 1.0) / (s.sum(-1, keepdim=True) + t.sum(1, keepdim=True) + 1.0)
    entity = class_logits.float().softmax(-1)[..., :1]  # [B, Q, 1]
    return config.mask_weight * bce + config.dice_weight * dice - config.class_weight * entity


def assign(costs: Tensor, num_targets: list[int]) -> Matches:
    """Matches of least total cost.

    Args:
        costs: float [layers, B, Q, N]; columns from `num_targets[b]` on are padding. May hold any value, also NaN.
        num_targets: targets of each image. With more targets than queries, some targets stay unmatched.
    """
    unusable = ~(costs.abs() <= MAX_COST)  # negated, so that NaN counts
    costs = costs.masked_fill(unusable, MAX_COST)
    real = torch.arange(costs.shape[-1], device=costs.device) < torch.tensor(num_targets, device=costs.device)[:, None]
    num_unusable = (unusable & real[None, :, None]).sum()
    flat = torch.cat((costs.flatten(), num_unusable[None].to(costs.dtype))).cpu()  # one copy to the CPU for everything
    host = flat[:-1].view(costs.shape).numpy()
    layers, B, _, N = costs.shape
    result = np.full((layers, B, N), -1, dtype=np.int64)
    for layer in range(layers):
        for image, count in enumerate(num_targets):
            rows, columns = linear_sum_assignment(host[layer, image, :, :count])
            result[layer, image, columns] = rows
    return Matches(torch.from_numpy(result).to(costs.device), int(flat[-1]))
