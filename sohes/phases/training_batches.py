# SPDX-License-Identifier: Apache-2.0
"""The batches of phases 2 and 3, as the training loop asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from sohes.data.dataset import Batch, LabelDataset
from sohes.data.sampling import batches
from sohes.utils.distributed import World


def batches_from(
    dataset: LabelDataset, batch_size: int, num_steps: int, device: torch.device, world: World
) -> Callable[[int], Iterator[tuple[int, Batch]]]:
    """A function: start step -> iterator over (step, this process's slice of the batch), up to `num_steps`.

    Photos are shuffled with the seed of the dataset. batch_size: over all processes.
    """
    return lambda start: batches(
        dataset,
        batch_size,
        dataset.seed,
        start,
        num_steps,
        rank=world.rank,
        world=world.size,
        num_workers=dataset.views.num_workers,
        pin_memory=device.type == "cuda",
    )
