# SPDX-License-Identifier: Apache-2.0
"""A head that predicts which query is an ancestor of which. [existence: paper; form: ours]"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class AncestorHead(nn.Module):
    """`logit[i, j] = <A q_i, D q_j> / sqrt(d) + b`: two projections, since the relation is not symmetric."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ancestor = nn.Linear(dim, dim, bias=False)
        self.descendant = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(1))  # not a scalar: FSDP cannot shard those

    def forward(self, queries: Tensor) -> Tensor:
        """queries [..., Q, C] -> logits [..., Q, Q]; [i, j]: i is an ancestor of j."""
        product = self.ancestor(queries) @ self.descendant(queries).transpose(-1, -2)
        return product / math.sqrt(queries.shape[-1]) + self.bias
