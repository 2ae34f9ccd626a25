# SPDX-License-Identifier: Apache-2.0
"""Before the three phases: a ViT teaches itself from raw photos, so that nothing need be downloaded.

Self-distillation between crops of a photo [DINO], the same on patches that are hidden from the student [iBOT], and a
term that keeps photos apart [DINOv2]. The teacher is the student's moving average, and what is kept.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from sohes.data.crops import cut_crops, distort, draw_boxes, draw_patch_masks
from sohes.data.photos import PhotoBatch, PhotoSet, photo_batches
from sohes.data.transforms import normalise
from sohes.engine.distributed import World, on_main
from sohes.engine.ema import make_teacher, update_teacher
from sohes.engine.loop import Part, Trainer, train
from sohes.engine.optim import cosine_between
from sohes.engine.run import Run
from sohes.losses.distillation import class_loss, koleo_loss, patch_loss, sinkhorn
from sohes.models.distillation import ARCHITECTURE, build_distillation_model, vit_arguments
from sohes.models.export import save_vit
from sohes.pretrain_config import CropConfig, DistortConfig, PretrainConfig


def pretrain(run: Run, config: PretrainConfig, photos: PhotoSet, device: torch.device, world: World) -> None:
    """Train from random weights; the main process writes `weights/pretrain/`. Goes on from a checkpoint.

    Raises TrainingDiverged, CheckpointError, DataError.
    """
    torch.manual_seed(config.seed)
    student = build_distillation_model(config.vit, config.distill, config.crops.global_size).to(device).train()
    teacher = make_teacher(student)
    settings = config.distill

    def compute_loss(step: int, part: Part) -> dict[str, Tensor]:
        batch, generator = part.batch, part.generators[0]
        large, small = draw_views(batch, config.crops, config.distort, generator)
        grid = (config.crops.global_size // config.vit.patch,) * 2
        hidden = draw_patch_masks(len(large), grid, settings.mask_share, settings.mask_probability, generator)
        seen = part.model(large, hidden, small, hide=True)
        with torch.no_grad():
            taught = teacher(large, hidden)
        with torch.autocast(device.type, enabled=False):
            heat = teacher_temperature(step, config)
            num = len(batch.images)
            teacher_class = sinkhorn(taught.class_logits, heat).view(2, num, -1)
            student_class = seen.class_logits.view(2 + config.crops.num_locals, num, -1)
            losses = {
                "loss_class": class_loss(teacher_class, student_class, settings.student_temperature),
                "loss_patch": patch_loss(
                    sinkhorn(taught.patch_logits, heat), seen.patch_logits, hidden, settings.student_temperature
                ),
                "loss_koleo": sum(koleo_loss(tokens) for tokens in seen.class_tokens.split(num)) / 2,
            }
        weights = (settings.class_weight, settings.patch_weight, settings.koleo_weight)
        return {"loss": sum(w * part for w, part in zip(weights, losses.values(), strict=True)), **losses}

    def after_step(step: int) -> None:
        update_teacher(teacher, student, cosine_between(*settings.momentum, step / config.num_steps))

    train(
        Trainer(
            run=run,
            phase="pretrain",
            modules={"model": student, "teacher": teacher},
            compute_loss=compute_loss,
            make_batches=lambda start: photo_batches(
                photos, config.batch_size, config.seed, start, config.num_steps, world.rank, world.size
            ),
            num_steps=config.num_steps,
            seed=config.seed,
            optim=config.optim,
            engine=config.engine,
            world=world,
            after_step=after_step,
        )
    )
    arguments = vit_arguments(config.vit, config.crops.global_size)
    on_main(lambda: save_vit(run.weights("pretrain"), teacher.vit, ARCHITECTURE, arguments))


def draw_views(
    batch: PhotoBatch, crops: CropConfig, distortion: DistortConfig, generator: Generator
) -> tuple[Tensor, Tensor | None]:
    """The crops of a batch of B photos, normalised, drawn and coloured on the batch's device.

    Returns:
        Large crops float32 [2 * B, 3, G, G], the first crop of every photo before the second of any; small ones
        [num_locals * B, 3, L, L] in the same order, None when there are to be none.
    """
    canvases = batch.images.float() / 255  # [B, 3, S, S]

    def cut(scale: tuple[float, float], size: int, blur: float, solarize: float) -> Tensor:
        boxes = draw_boxes(batch.sizes, scale, crops, generator)
        mirrored = torch.rand(len(boxes), generator=generator, device=boxes.device) < 0.5
        views = cut_crops(canvases, boxes, mirrored, size)
        return distort(views, distortion, blur, solarize, generator)

    blur = distortion.blur_probability
    large = [
        cut(crops.global_scale, crops.global_size, blur[0], 0.0),
        cut(crops.global_scale, crops.global_size, blur[1], distortion.solarize_probability),
    ]
    small = [cut(crops.local_scale, crops.local_size, blur[2], 0.0) for _ in range(crops.num_locals)]
    return normalise(torch.cat(large) * 255), normalise(torch.cat(small) * 255) if small else None


def teacher_temperature(step: int, config: PretrainConfig) -> float:
    """Rises linearly over the first `teacher_warmup` of the steps."""
    start, end = config.distill.teacher_temperature
    warmup = config.distill.teacher_warmup * config.num_steps
    return end if step >= warmup else start + (end - start) * step / warmup
