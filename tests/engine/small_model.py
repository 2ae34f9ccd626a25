# SPDX-License-Identifier: Apache-2.0
"""A model with a backbone, norm, embedding and head, for tests of the optimiser and of checkpoints."""

from collections.abc import Iterator

from torch import nn

from sohes.models.base import TrainableModel


class SmallModel(TrainableModel):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.queries = nn.Embedding(3, 4)
        self.head = nn.Linear(4, 2)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        return self.backbone.parameters()
