# SPDX-License-Identifier: Apache-2.0
"""Target: the training target of one image, with dense masks, ancestor relations and scores."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sohes.structures.forest import Forest


@dataclass(frozen=True, eq=False)
class Target:
    """Training target of one image with N masks; N may be 0.

    masks: bool [N, H, W].
    ancestors: bool [N, N]; [i, j] is True if mask i is an ancestor of mask j (at any distance).
    scores: float32 [N], the confidence of each mask.
    """

    masks: Tensor
    ancestors: Tensor
    scores: Tensor

    @classmethod
    def from_forest(cls, forest: Forest) -> Target:
        """The target with all masks of a forest."""
        return cls(forest.masks.to_dense(), forest.ancestors(), forest.scores)
