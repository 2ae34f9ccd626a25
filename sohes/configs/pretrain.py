# SPDX-License-Identifier: Apache-2.0
"""Settings of `python -m sohes.pretrain`, the self-supervised training of a backbone.

Labels of values: [DINO], [iBOT], [DINOv2] the value of that work, [ours] decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from sohes.configs.io import pick_preset
from sohes.configs.ranges import Range, above, at_least, between
from sohes.configs.run import EngineConfig, OptimConfig


@dataclass
class VitConfig:
    """The backbone: a plain ViT as timm builds it."""

    patch: Annotated[int, at_least(1)] = 8
    """Side of a patch in pixels. [ours: small patches cluster into sharper masks]"""
    width: Annotated[int, at_least(1)] = 192
    """Channels of a token; a multiple of `heads`. [DeiT-Ti]"""
    depth: Annotated[int, at_least(1)] = 12
    """Transformer blocks. [DeiT-Ti]"""
    heads: Annotated[int, at_least(1)] = 3
    """Attention heads. [DeiT-Ti]"""
    register_tokens: Annotated[int, at_least(0)] = 4
    """Tokens without a place, which keep global traces out of the patches' features. [DINOv2 with registers]"""
    drop_path: Annotated[float, between(0, 1)] = 0.1
    """Stochastic depth of the student. [DINO]"""


@dataclass
class CropConfig:
    """The views of a photo: large crops that teacher and student see, small ones for the student alone."""

    photo_side: Annotated[int, at_least(1)] = 192
    """Photos are shrunk to this long side, in pixels, before crops are cut. [ours]"""
    global_size: Annotated[int, at_least(1)] = 128
    """Side of a large crop in pixels; a multiple of the patch. [ours]"""
    global_scale: Annotated[tuple[float, float], Range(gt=0, le=1)] = (0.32, 1.0)
    """Range of its area as a share of the photo. [DINOv2]"""
    local_size: Annotated[int, at_least(1)] = 64
    """Side of a small crop in pixels; a multiple of the patch. [ours]"""
    local_scale: Annotated[tuple[float, float], Range(gt=0, le=1)] = (0.05, 0.32)
    """Range of its area as a share of the photo. [DINOv2]"""
    num_locals: Annotated[int, at_least(0)] = 6
    """Small crops of a photo. [ours; DINO: 8]"""
    aspect: Annotated[tuple[float, float], above(0)] = (0.75, 4 / 3)
    """Range of width over height of a crop's box. [DINO]"""


@dataclass
class DistortConfig:
    """How far the colours of two crops of one photo may differ."""

    jitter_probability: Annotated[float, between(0, 1)] = 0.8
    """Share of the crops whose brightness, contrast, saturation and hue change. [DINO]"""
    brightness: Annotated[float, between(0, 1)] = 0.4
    """Its factor is drawn from 1 - value to 1 + value. [DINO]"""
    contrast: Annotated[float, between(0, 1)] = 0.4
    """Its factor is drawn from 1 - value to 1 + value. [DINO]"""
    saturation: Annotated[float, between(0, 1)] = 0.2
    """Its factor is drawn from 1 - value to 1 + value. [DINO]"""
    hue: Annotated[float, between(0, 0.5)] = 0.1
    """Its shift is drawn from -value to value, in turns of the colour circle. [DINO]"""
    gray_probability: Annotated[float, between(0, 1)] = 0.2
    """Share of the crops that lose all colour. [DINO]"""
    blur_sigma: Annotated[tuple[float, float], above(0)] = (0.1, 1.2)
    """Range of the sigma of a Gaussian blur, in pixels of the crop. [ours: DINO's, for crops half as large]"""
    blur_probability: Annotated[tuple[float, float, float], between(0, 1)] = (1.0, 0.1, 0.5)
    """Share of the crops that are blurred: first large crop, second, small ones. [DINO]"""
    solarize_probability: Annotated[float, between(0, 1)] = 0.2
    """Share of the second large crops whose bright values turn dark. [DINO]"""


@dataclass
class DistillConfig:
    """What the student learns from the teacher."""

    prototypes: Annotated[int, at_least(1)] = 4096
    """Outputs of both heads, over which teacher and student compare. [ours; DINO: 65536, for 1.3 M photos]"""
    head_hidden: Annotated[int, at_least(1)] = 512
    """Hidden channels of the heads. [ours; DINO: 2048]"""
    head_bottleneck: Annotated[int, at_least(1)] = 128
    """Channels before the prototypes. [ours; DINO: 256]"""
    student_temperature: Annotated[float, above(0)] = 0.1
    """Softmax temperature of the student: lower is sharper. [DINO]"""
    teacher_temperature: Annotated[tuple[float, float], above(0)] = (0.04, 0.07)
    """Softmax temperature of the teacher, from start to the end of the warm-up. [DINO]"""
    teacher_warmup: Annotated[float, between(0, 1)] = 0.3
    """Share of the steps over which the teacher's temperature rises. [DINO: 30 of 100 epochs]"""
    momentum: Annotated[tuple[float, float], between(0, 1)] = (0.992, 1.0)
    """The teacher's EMA decay, from start to end by cosine. [DINOv2: 0.992]"""
    mask_probability: Annotated[float, between(0, 1)] = 0.5
    """Share of the large crops in which patches are hidden from the student. [iBOT]"""
    mask_share: Annotated[tuple[float, float], between(0, 1)] = (0.1, 0.5)
    """Range of the share of a crop's patches that are hidden. [iBOT]"""
    class_weight: Annotated[float, at_least(0)] = 1.0
    """Weight of the image-level loss. [DINOv2]"""
    patch_weight: Annotated[float, at_least(0)] = 1.0
    """Weight of the loss on hidden patches. [iBOT]"""
    koleo_weight: Annotated[float, at_least(0)] = 0.1
    """Weight of the term that keeps photos apart. [DINOv2]"""
    region_weight: Annotated[float, at_least(0)] = 1.0
    """Weight of the contrast of regions seen in both large crops. Regions are those of phase 1's tree of colours;
    0: none are made. [DetCon, with other regions]"""
    region_counts: Annotated[tuple[int, ...], between(1, 255)] = (8, 16, 40)
    """A photo is cut into one of these numbers of regions, another one each time it is seen. [ours]"""
    region_samples: Annotated[int, at_least(2)] = 1024
    """Regions that are told apart at a time in each process, at most. [ours]"""
    region_temperature: Annotated[float, above(0)] = 0.1
    """Softmax temperature of the contrast. [DetCon]"""


def _default_optim() -> OptimConfig:
    return OptimConfig(
        learning_rate=1e-3, backbone_factor=1.0, weight_decay=0.05, clip_norm=3.0, warmup_steps=200, final_factor=1e-3
    )


@dataclass
class PretrainConfig:
    """A pretraining run."""

    preset: str = "tiny-cpu"
    """The preset that the other defaults come from; `--help` lists them."""
    images: tuple[Path, ...] = ()
    """Photos to learn from: folders, tars, lists; several are joined."""
    num_steps: Annotated[int, at_least(1)] = 2000
    """Optimiser steps."""
    batch_size: Annotated[int, at_least(2)] = 32
    """Photos a step, over all processes; at least 2 for each."""
    num_threads: Annotated[int, at_least(1)] = 4
    """Threads that decode photos, once, before the first step."""
    cache_gb: Annotated[float, above(0)] = 8.0
    """Decoded photos are kept in memory; a set that needs more than this, in GB, is refused."""
    pack_quality: Annotated[int, between(0, 100)] = 60
    """WebP quality of `--pack`: 60 makes about 4 kB of a photo of 192 px. [ours]"""
    half_weights: bool = False
    """Store the finished backbone as float16: half the bytes, and the same features but for their last digits."""
    seed: Annotated[int, at_least(0)] = 0
    """Of everything random."""
    vit: VitConfig = field(default_factory=VitConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    distort: DistortConfig = field(default_factory=DistortConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=_default_optim)
    engine: EngineConfig = field(default_factory=EngineConfig)


def tiny_cpu() -> PretrainConfig:
    """A smoke run for a CPU: small crops, few steps."""
    return PretrainConfig(
        preset="tiny-cpu",
        crops=CropConfig(photo_side=128, global_size=96, local_size=48, num_locals=2),
        distill=DistillConfig(prototypes=1024, head_hidden=256, head_bottleneck=64, momentum=(0.98, 1.0)),
    )


def micro_cpu() -> PretrainConfig:
    """`sohes-micro`, 1.2 M parameters: about an hour of one CPU core. Regions alone: within so few steps the terms that
    compare prototypes learn nothing."""
    return PretrainConfig(
        preset="micro-cpu",
        num_steps=1500,
        half_weights=True,
        vit=VitConfig(width=128, depth=6, heads=4, drop_path=0.0),
        crops=CropConfig(global_size=96, num_locals=0),
        distill=DistillConfig(
            prototypes=256,
            head_bottleneck=128,
            momentum=(0.98, 1.0),
            mask_probability=0.0,
            class_weight=0.0,
            patch_weight=0.0,
            koleo_weight=0.0,
        ),
        optim=replace(_default_optim(), warmup_steps=50),
    )


def tiny_h200() -> PretrainConfig:
    """`sohes-tiny`, 5.5 M parameters: minutes of one large GPU. Patches of 8 px."""
    return PretrainConfig(
        preset="tiny-h200",
        num_steps=5000,
        batch_size=512,
        num_threads=16,
        half_weights=True,
        crops=CropConfig(num_locals=4),
        distill=DistillConfig(prototypes=2048),
        # What has to be carried from one slot on a machine to the next stays below 60 MB.
        engine=EngineConfig(half_checkpoints=True, keep_checkpoints=1),
        optim=OptimConfig(
            learning_rate=1.5e-3,
            backbone_factor=1.0,
            weight_decay=0.05,
            clip_norm=3.0,
            warmup_steps=200,
            final_factor=1e-3,
            precision="bf16",
        ),
    )


PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    "tiny-cpu": tiny_cpu,
    "micro-cpu": micro_cpu,
    "tiny-h200": tiny_h200,
}


def get_preset(name: str) -> PretrainConfig:
    """The preset called `name`. Raises ConfigError naming the nearest one."""
    return pick_preset(PRESETS, name)
