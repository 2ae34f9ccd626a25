# SPDX-License-Identifier: Apache-2.0
"""Phase 2, self-instruction: a segmentation model learns the pseudo-labels of phase 1."""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.configs.run import Config
from sohes.data.coco import LabelSet
from sohes.data.dataset import Batch, LabelDataset
from sohes.engine.loop import MicroBatch, Targets, Trainer, train
from sohes.engine.parallel import full_state_dict
from sohes.engine.run import Run
from sohes.losses.criterion import Criterion
from sohes.models.segmenter_model import build_model
from sohes.models.weights import save_weights
from sohes.phases.training_batches import batches_from
from sohes.utils.distributed import World, on_main


def instruct(run: Run, config: Config, labels: LabelSet, device: torch.device, world: World) -> None:
    """Train from the backbone's initial weights and write `weights/instruct/`. Resumes from the newest checkpoint.

    Raises TrainingDiverged, CheckpointError.
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model).to(device).train()
    criterion = Criterion(config.loss)
    settings = config.instruct
    dataset = LabelDataset(labels, config.views, seed=config.seed)

    def make_targets(step: int, batch: Batch) -> Targets:
        return {"label": batch.targets}

    def compute_loss(step: int, micro_batch: MicroBatch) -> dict[str, Tensor]:
        outputs = micro_batch.model(micro_batch.batch.images, micro_batch.batch.valid)
        return criterion(outputs, micro_batch.targets["label"], micro_batch.generators, micro_batch.num_masks["label"])

    train(
        Trainer(
            run=run,
            phase="instruct",
            modules={"model": model},
            make_batches=batches_from(dataset, settings.batch_size, settings.num_steps, device, world),
            make_targets=make_targets,
            compute_loss=compute_loss,
            num_steps=settings.num_steps,
            seed=config.seed,
            optim=config.optim,
            engine=config.engine,
            world=world,
        )
    )
    weights = full_state_dict(model)
    on_main(lambda: save_weights(run.weights("instruct"), weights, config.model, config.infer))
