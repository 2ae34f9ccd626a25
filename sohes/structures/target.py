# SPDX-License-Identifier: Apache-2.0
"""What is to be learned from one image: dense masks, who is whose ancestor, and how far each mask is trusted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sohes.structures.forest import Forest


@dataclass(frozen=True, eq=False)
class Target:
    """What is to be found in one image; N may be 0.

    masks: bool [N, H, W]. ancestors: bool [N, N], [i, j] says that mask i is an ancestor of mask j, transitively
    closed. scores: float32 [N], the trust in each mask.
    """

    masks: Tensor
    ancestors: Tensor
    scores: Tensor

    @classmethod
    def from_forest(cls, forest: Forest) -> Target:
        return cls(forest.masks.to_dense(), forest.ancestors(), forest.scores)
