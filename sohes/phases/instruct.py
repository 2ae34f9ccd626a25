# SPDX-License-Identifier: Apache-2.0
"""Phase 2, self-instruction: a segmentation model learns the pseudo-labels of phase 1."""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.config import Config
from sohes.data.coco import LabelSet
from sohes.data.dataset import Batch, LabelDataset
from sohes.data.sampling import batches
from sohes.engine.loop import Trainer, train
from sohes.engine.run import Run
from sohes.losses.criterion import Criterion
from sohes.models.segmenter import Segmenter
from sohes.models.segmenter_model import build_model


def instruct(run: Run, config: Config, labels: LabelSet, device: torch.device) -> None:
    """Train from the backbone's initial weights; writes `weights/instruct/`. Goes on from a checkpoint if there is one.

    Raises TrainingDiverged, CheckpointError.
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model).to(device).train()
    criterion = Criterion(config.loss)
    settings = config.instruct
    dataset = LabelDataset(labels, config.views, seed=config.seed)

    def compute_loss(step: int, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return criterion(model(batch.images, batch.valid), batch.targets, generator)

    train(
        Trainer(
            run=run,
            phase="instruct",
            modules={"model": model},
            compute_loss=compute_loss,
            make_batches=lambda start: batches(
                dataset,
                settings.batch_size,
                config.seed,
                start,
                settings.num_steps,
                num_workers=config.views.num_workers,
            ),
            num_steps=settings.num_steps,
            seed=config.seed,
            checkpoint_seconds=config.checkpoint_seconds,
            keep_checkpoints=config.keep_checkpoints,
            optim=config.optim,
        )
    )
    Segmenter(model, config.model, config.infer).save_pretrained(run.weights("instruct"))
