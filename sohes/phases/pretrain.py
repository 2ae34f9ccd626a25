# SPDX-License-Identifier: Apache-2.0
"""Self-supervised training of a ViT on raw photos, as a backbone for phase 1.

Losses: self-distillation between crops of a photo [DINO] and on patches masked for the student [iBOT], a regulariser
that spreads the class tokens of a batch [KoLeo, DINOv2], and a contrastive loss between regions of phase 1's merge
trees [DetCon]. The teacher is the moving average of the student; its backbone is saved.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from sohes.configs.pretrain import PretrainConfig
from sohes.data.crops import cut_crops, cut_labels, distort, draw_boxes, draw_patch_masks
from sohes.data.photos import PhotoBatch, PhotoSet, photo_batches
from sohes.data.transforms import normalize
from sohes.engine.ema import make_teacher, update_teacher
from sohes.engine.loop import MicroBatch, Trainer, train
from sohes.engine.optim import cosine_between
from sohes.engine.run import Run
from sohes.losses.distillation import class_loss, koleo_loss, patch_loss, region_loss, sinkhorn
from sohes.models.distillation import ARCHITECTURE, build_distillation_model, vit_arguments
from sohes.models.export import save_vit
from sohes.utils.distributed import World, on_main


def pretrain(run: Run, config: PretrainConfig, photos: PhotoSet, device: torch.device, world: World) -> None:
    """Train from random weights and write `weights/pretrain/`. Resumes from the newest checkpoint.

    Raises TrainingDiverged, CheckpointError, DataError.
    """
    torch.manual_seed(config.seed)
    student = build_distillation_model(config.vit, config.distill, config.crops.global_size).to(device).train()
    teacher = make_teacher(student)
    settings = config.distill

    def compute_loss(step: int, micro_batch: MicroBatch) -> dict[str, Tensor]:
        batch, generator = micro_batch.batch, micro_batch.generators[0]
        zero = torch.zeros((), device=device)
        large, small, regions = draw_views(batch, config, generator)
        grid = (config.crops.global_size // config.vit.patch,) * 2
        hidden = draw_patch_masks(len(large), grid, settings.mask_share, settings.mask_probability, generator)
        student_out = micro_batch.model(large, hidden, small, regions, is_student=True)
        with torch.no_grad():
            teacher_out = teacher(large, hidden, regions=regions)
        with torch.autocast(device.type, enabled=False):
            temperature = teacher_temperature(step, config)
            num = len(batch.images)
            teacher_class = sinkhorn(teacher_out.class_logits, temperature).view(2, num, -1)
            student_class = student_out.class_logits.view(2 + config.crops.num_locals, num, -1)
            koleo = sum((koleo_loss(tokens) for tokens in student_out.class_tokens.split(num)), start=zero)
            losses = {
                "loss_class": class_loss(teacher_class, student_class, settings.student_temperature),
                "loss_patch": patch_loss(
                    sinkhorn(teacher_out.patch_logits, temperature),
                    student_out.patch_logits,
                    hidden,
                    settings.student_temperature,
                ),
                "loss_koleo": koleo / 2,
            }
            if regions is not None:
                present = student_out.present.view(2, num, -1)  # [2, B, R]
                common = int(present.all(0).sum())
                order = torch.randperm(common, generator=generator, device=device)[: settings.region_samples]
                teacher_regions, student_regions = (
                    views.regions.view(2, num, *views.regions.shape[1:]) for views in (teacher_out, student_out)
                )
                losses["loss_region"] = region_loss(
                    teacher_regions, student_regions, present, settings.region_temperature, order
                )
        weights = {
            "loss_class": settings.class_weight,
            "loss_patch": settings.patch_weight,
            "loss_koleo": settings.koleo_weight,
            "loss_region": settings.region_weight,
        }
        return {"loss": sum((weights[name] * value for name, value in losses.items()), start=zero), **losses}

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
    dtype = torch.float16 if config.half_weights else None
    on_main(lambda: save_vit(run.weights("pretrain"), teacher.vit, ARCHITECTURE, arguments, dtype))


def draw_views(
    batch: PhotoBatch, config: PretrainConfig, generator: Generator
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Random crops of a batch of B photos, with colour jitter and normalised, on the batch's device.

    Returns:
        Large crops float32 [2 * B, 3, G, G]: the first crop of all photos, then the second. Small crops float32
        [num_locals * B, 3, L, L] in the same order, None if num_locals is 0. Region of each patch of the large crops,
        int64 [2 * B, h, w], from one segmentation per photo; None for a batch without regions.
    """
    crops, distortion = config.crops, config.distort
    canvases = batch.images.float() / 255  # [B, 3, S, S]
    num, side = len(canvases), canvases.shape[-1]

    def draw(scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Boxes [B, 4], and whether each crop is flipped, bool [B]."""
        boxes = draw_boxes(batch.sizes, scale, crops, generator)
        return boxes, torch.rand(num, generator=generator, device=boxes.device) < 0.5

    def cut(box: tuple[Tensor, Tensor], size: int, blur: float, solarize: float) -> Tensor:
        return distort(cut_crops(canvases, *box, size), distortion, blur, solarize, generator)

    blur = distortion.blur_probability
    places = [draw(crops.global_scale), draw(crops.global_scale)]
    large = [
        cut(places[0], crops.global_size, blur[0], 0.0),
        cut(places[1], crops.global_size, blur[1], distortion.solarize_probability),
    ]
    small = [cut(draw(crops.local_scale), crops.local_size, blur[2], 0.0) for _ in range(crops.num_locals)]
    regions = None
    if batch.regions is not None:
        chosen = torch.randint(batch.regions.shape[1], (num,), generator=generator, device=canvases.device)
        maps = batch.regions[torch.arange(num, device=chosen.device), chosen].long()  # [B, S', S']
        grid = crops.global_size // config.vit.patch
        regions = torch.cat([cut_labels(maps, *place, grid, side) for place in places])
    large_views = normalize(torch.cat(large) * 255)
    return large_views, normalize(torch.cat(small) * 255) if small else None, regions


def teacher_temperature(step: int, config: PretrainConfig) -> float:
    """The softmax temperature of the teacher: rises linearly over the first `teacher_warmup` of the steps."""
    start, end = config.distill.teacher_temperature
    warmup = config.distill.teacher_warmup * config.num_steps
    return end if step >= warmup else start + (end - start) * step / warmup
