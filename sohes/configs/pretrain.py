# SPDX-License-Identifier: Apache-2.0
"""Settings of `python -m sohes.pretrain`, the self-supervised training of a backbone.

Labels give the source of a value: [DINO], [iBOT], [DINOv2] that work, [ours] chosen here.
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
    """Register tokens: tokens without a position, which keep global information out of the patches' features. [DINOv2
    with registers]"""
    drop_path: Annotated[float, between(0, 1)] = 0.1
    """Stochastic depth rate of the student. [DINO]"""


@dataclass
class CropConfig:
    """Crops of a photo: large ones for teacher and student, small ones for the student alone."""

    photo_side: Annotated[int, at_least(1)] = 192
    """Photos are shrunk to this long side, in pixels, before crops are cut. [ours]"""
    global_size: Annotated[int, at_least(1)] = 128
    """Side of a large crop in pixels; a multiple of the patch. [ours]"""
    global_scale: Annotated[tuple[float, float], Range(gt=0, le=1)] = (0.32, 1.0)
    """Area of a large crop as a share of the photo, smallest and largest. [DINOv2]"""
    local_size: Annotated[int, at_least(1)] = 64
    """Side of a small crop in pixels; a multiple of the patch. [ours]"""
    local_scale: Annotated[tuple[float, float], Range(gt=0, le=1)] = (0.05, 0.32)
    """Area of a small crop as a share of the photo, smallest and largest. [DINOv2]"""
    num_locals: Annotated[int, at_least(0)] = 6
    """Small crops per photo. [ours; DINO: 8]"""
    aspect: Annotated[tuple[float, float], above(0)] = (0.75, 4 / 3)
    """Width over height of a crop's box, smallest and largest. [DINO]"""


@dataclass
class DistortConfig:
    """Augmentation of a crop's colours."""

    jitter_probability: Annotated[float, between(0, 1)] = 0.8
    """Probability that brightness, contrast, saturation and hue of a crop change. [DINO]"""
    brightness: Annotated[float, between(0, 1)] = 0.4
    """The factor on brightness is drawn from 1 - value to 1 + value. [DINO]"""
    contrast: Annotated[float, between(0, 1)] = 0.4
    """The factor on contrast is drawn from 1 - value to 1 + value. [DINO]"""
    saturation: Annotated[float, between(0, 1)] = 0.2
    """The factor on saturation is drawn from 1 - value to 1 + value. [DINO]"""
    hue: Annotated[float, between(0, 0.5)] = 0.1
    """The shift of hue is drawn from -value to value, in turns of the colour circle. [DINO]"""
    gray_probability: Annotated[float, between(0, 1)] = 0.2
    """Probability that a crop becomes gray. [DINO]"""
    blur_sigma: Annotated[tuple[float, float], above(0)] = (0.1, 1.2)
    """Sigma of the Gaussian blur in pixels of the crop, smallest and largest. [ours: DINO's, for crops half as
    large]"""
    blur_probability: Annotated[tuple[float, float, float], between(0, 1)] = (1.0, 0.1, 0.5)
    """Probability of a blur: first large crop, second large crop, small crops. [DINO]"""
    solarize_probability: Annotated[float, between(0, 1)] = 0.2
    """Probability that the second large crop is solarised: bright values are inverted. [DINO]"""


@dataclass
class DistillConfig:
    """The losses between student and teacher."""

    prototypes: Annotated[int, at_least(1)] = 4096
    """Outputs of both heads. [ours; DINO: 65536, for 1.3 M photos]"""
    head_hidden: Annotated[int, at_least(1)] = 512
    """Hidden channels of the heads. [ours; DINO: 2048]"""
    head_bottleneck: Annotated[int, at_least(1)] = 128
    """Channels of the heads' last hidden layer. [ours; DINO: 256]"""
    student_temperature: Annotated[float, above(0)] = 0.1
    """Softmax temperature of the student; lower is sharper. [DINO]"""
    teacher_temperature: Annotated[tuple[float, float], above(0)] = (0.04, 0.07)
    """Softmax temperature of the teacher, from start to the end of the warm-up. [DINO]"""
    teacher_warmup: Annotated[float, between(0, 1)] = 0.3
    """Share of the steps in which the teacher's temperature rises. [DINO: 30 of 100 epochs]"""
    momentum: Annotated[tuple[float, float], between(0, 1)] = (0.992, 1.0)
    """The teacher's EMA decay, from start to end by cosine. [DINOv2: 0.992]"""
    mask_probability: Annotated[float, between(0, 1)] = 0.5
    """Probability that a large crop has patches hidden from the student. [iBOT]"""
    mask_share: Annotated[tuple[float, float], between(0, 1)] = (0.1, 0.5)
    """Share of such a crop's patches that are hidden, smallest and largest. [iBOT]"""
    class_weight: Annotated[float, at_least(0)] = 1.0
    """Weight of the image-level loss. [DINOv2]"""
    patch_weight: Annotated[float, at_least(0)] = 1.0
    """Weight of the loss on hidden patches. [iBOT]"""
    koleo_weight: Annotated[float, at_least(0)] = 0.1
    """Weight of the KoLeo term, which spreads the features of different photos. [DINOv2]"""
    region_weight: Annotated[float, at_least(0)] = 1.0
    """Weight of the contrastive loss between regions seen in both large crops. The regions are cut from phase 1's tree
    of colours; 0: none are made. [DetCon, with other regions]"""
    region_counts: Annotated[tuple[int, ...], between(1, 255)] = (8, 16, 40)
    """Numbers of regions that a photo is cut into, a different one each time it is seen. [ours]"""
    region_samples: Annotated[int, at_least(2)] = 1024
    """Most regions per process in one contrastive loss. [ours]"""
    region_temperature: Annotated[float, above(0)] = 0.1
    """Softmax temperature of the contrastive loss. [DetCon]"""


def _default_optim() -> OptimConfig:
    return OptimConfig(
        learning_rate=1e-3, backbone_factor=1.0, weight_decay=0.05, clip_norm=3.0, warmup_steps=200, final_factor=1e-3
    )


@dataclass
class PretrainConfig:
    """A pretraining run."""

    preset: str = "tiny-cpu"
    """The preset that gives the other defaults; `--help` lists them."""
    images: tuple[Path, ...] = ()
    """Photos to learn from: folders, tars, lists; several are joined."""
    num_steps: Annotated[int, at_least(1)] = 2000
    """Optimiser steps."""
    batch_size: Annotated[int, at_least(2)] = 32
    """Photos per step, over all processes; at least 2 in each."""
    num_threads: Annotated[int, at_least(1)] = 4
    """Threads that decode photos, once, before the first step."""
    cache_gb: Annotated[float, above(0)] = 8.0
    """Largest set of decoded photos kept in memory, in GB; a larger set is an error."""
    pack_quality: Annotated[int, between(0, 100)] = 60
    """WebP quality of `--pack`. 60: about 4 kB for a photo of 192 px. [ours]"""
    half_weights: bool = False
    """Store the trained backbone as float16: half the bytes, features equal up to the last digits."""
    seed: Annotated[int, at_least(0)] = 0
    """Seed of all random numbers."""
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
        # Checkpoints stay below 60 MB, to be copied between machines.
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
