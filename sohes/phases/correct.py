# SPDX-License-Identifier: Apache-2.0
"""Phase 3, self-correction: a student learns the labels of phase 1 and the predictions of its EMA teacher."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sohes.configs.run import Config, CorrectConfig
from sohes.data.coco import LabelSet
from sohes.data.dataset import Batch, LabelDataset
from sohes.engine.ema import ema_decay_at, make_teacher, update_teacher
from sohes.engine.loop import MicroBatch, Targets, Trainer, train
from sohes.engine.optim import cosine_between
from sohes.engine.parallel import full_state_dict
from sohes.engine.run import Run
from sohes.losses.criterion import Criterion
from sohes.models.inference import score_masks
from sohes.models.outputs import Outputs
from sohes.models.segmenter import Segmenter
from sohes.models.weights import save_weights
from sohes.phases.training_batches import batches_from
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, nms_masks
from sohes.structures.target import Target
from sohes.utils.distributed import World, on_main


def correct(run: Run, config: Config, labels: LabelSet, device: torch.device, world: World) -> None:
    """Train from the weights of phase 2; writes the teacher to `weights/correct/`. Resumes from the newest checkpoint.

    Both see the same crop, the teacher a weak and the student a strong view. One forward pass of the student gives the
    losses of both branches [ours], against the labels of phase 1 and against the teacher's masks, weighted by cosine
    schedules.

    Raises TrainingDiverged, CheckpointError, WeightsError.
    """
    student = Segmenter.from_pretrained(run.weights("instruct")).model.to(device).train()
    teacher = make_teacher(student)
    settings = config.correct
    without_ancestors = replace(config.loss, ancestor_weight=0.0)
    criteria = {
        "label": Criterion(config.loss),
        "teacher": Criterion(config.loss if settings.teacher_forest else without_ancestors),
    }
    dataset = LabelDataset(labels, config.views, seed=config.seed + 1, pairs=settings.student_view == "strong")

    def branch_weights(step: int) -> dict[str, float]:
        progress = step / max(1, settings.num_steps - 1)
        weights = {
            "label": cosine_between(*settings.label_weight, progress),
            "teacher": cosine_between(*settings.teacher_weight, progress),
        }
        return {branch: weight for branch, weight in weights.items() if weight > 0}

    def make_targets(step: int, batch: Batch) -> Targets:
        targets = {"label": batch.targets}
        if "teacher" in branch_weights(step):
            targets["teacher"] = teacher_targets(teacher(batch.images, batch.valid), batch, settings)
        return targets

    def compute_loss(step: int, micro_batch: MicroBatch) -> dict[str, Tensor]:
        batch = micro_batch.batch
        outputs = micro_batch.model(
            batch.images if settings.student_view == "weak" else batch.strong_images, batch.valid
        )
        losses = {"loss": outputs.class_logits.new_zeros((), dtype=torch.float32)}
        for branch, weight in branch_weights(step).items():
            branch_losses = criteria[branch](
                outputs, micro_batch.targets[branch], micro_batch.generators, micro_batch.num_masks[branch]
            )
            losses["loss"] = losses["loss"] + weight * branch_losses["loss"]
            losses |= {f"{branch}_{name}": value for name, value in branch_losses.items()}
        from_teacher = micro_batch.targets.get("teacher", [])
        return losses | {"teacher_masks": torch.tensor(sum(len(t.masks) for t in from_teacher) / len(batch.names))}

    def after_step(step: int) -> None:
        update_teacher(teacher, student, ema_decay_at(step, settings.ema_decay, settings.ema_warmup_steps))

    train(
        Trainer(
            run=run,
            phase="correct",
            modules={"model": student, "teacher": teacher},
            make_batches=batches_from(dataset, settings.batch_size, settings.num_steps, device, world),
            make_targets=make_targets,
            compute_loss=compute_loss,
            num_steps=settings.num_steps,
            seed=config.seed,
            optim=replace(config.optim, learning_rate=config.optim.learning_rate * settings.learning_rate_factor),
            engine=config.engine,
            world=world,
            after_step=after_step,
        )
    )
    weights = full_state_dict(teacher)
    on_main(lambda: save_weights(run.weights("correct"), weights, config.model, config.infer))


@torch.no_grad()
def teacher_targets(outputs: Outputs, batch: Batch, config: CorrectConfig) -> list[Target]:
    """The teacher's predictions as labels: scored, thresholded, without duplicates, with a forest.

    The score threshold depends on the area of a mask [ours], scaled to a view with a long side of 640 px.
    """
    height, width = batch.images.shape[-2:]
    scale = (640 / max(height, width)) ** 2
    # Always float32: 0.3 in bfloat16 is 0.3008.
    device = outputs.class_logits.device
    limits, thresholds = (
        torch.tensor(values, dtype=torch.float32, device=device)
        for values in (config.size_limits, config.score_thresholds)
    )
    targets = []
    for b in range(len(batch.images)):
        # Always float32, and one image at a time: these are the largest tensors of a step.
        with torch.autocast(outputs.mask_features.device.type, enabled=False):
            embeddings, features = outputs.mask_embeddings[b].float(), outputs.mask_features[b].float()
            logits = torch.einsum("qe,ehw->qhw", embeddings, features)  # [Q, h, w]
        scores = score_masks(outputs.class_logits[b], logits)  # [Q]
        candidates = (scores > thresholds.min()).nonzero().flatten()
        masks = PackedMasks.from_logits(logits[candidates], (height, width))
        areas = masks.areas.to(scores.device)
        needed = thresholds[torch.bucketize(areas * scale, limits)]
        keep = ((scores[candidates] > needed) & (areas > 0)).nonzero().flatten()
        masks, kept_scores = masks[keep], scores[candidates][keep]
        best = nms_masks(masks, config.nms_iou, kept_scores)[: config.max_labels]
        masks = masks[best]
        roots = torch.full((len(masks),), -1)
        parents = build_forest(masks, config.theta_cover) if config.teacher_forest else roots
        targets.append(Target.from_forest(Forest(masks, kept_scores[best], parents)))
    return targets
