# SPDX-License-Identifier: Apache-2.0
"""What the training loop expects of a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from torch import nn


class TrainableModel(nn.Module):
    """A module that names its backbone and its layers, for the optimiser, FSDP and `torch.compile`."""

    @property
    def num_queries(self) -> int:
        """Masks predicted per image; 0 for a model that predicts none."""
        return 0

    @abstractmethod
    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the pretrained backbone: they have a learning rate of their own."""

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The repeated layers, which hold nearly all weights: the units of FSDP and `torch.compile`."""
