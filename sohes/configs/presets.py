# SPDX-License-Identifier: Apache-2.0
"""Presets: functions that return a complete `Config`. `--preset NAME` takes one; options change its fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sohes.configs.io import pick_preset
from sohes.configs.packaged import packaged_vit
from sohes.configs.run import (
    Config,
    CorrectConfig,
    EngineConfig,
    ExploreConfig,
    InferConfig,
    InstructConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SceneConfig,
    ViewConfig,
)


def tiny() -> Config:
    """Drawn scenes of 128 px, a ViT of 1 M parameters: minutes on a CPU. It starts from random weights."""
    return Config(
        preset="tiny",
        # Square patches of 8 px, like the paper's ViT-B/8: with snap_rounds, the flat colours of drawn scenes give
        # almost perfect labels, unlike any photo.
        explore=ExploreConfig(start="patches", patch=8, snap_rounds=0, max_masks=100),
        model=ModelConfig(
            backbone="vit_tiny_patch16_224",
            backbone_kwargs={"img_size": 128, "patch_size": 16, "embed_dim": 96, "depth": 4, "num_heads": 4},
            adapter_interactions=2,
            adapter_heads=4,
            adapter_stem=24,
            hidden_dim=96,
            mask_dim=48,
            mask_stride=1,
            num_heads=4,
            encoder_layers=1,
            encoder_ffn_dim=192,
            decoder_layers=2,
            decoder_ffn_dim=192,
            query_init="seeds",
            grid_size=8,
            seeds_per_cell=3,
            num_granularities=3,
        ),
        loss=LossConfig(
            num_points=256, num_match_points=512, local_ratio=0.4, importance_ratio=0.4, match_layers="last"
        ),
        optim=OptimConfig(learning_rate=5e-4, backbone_factor=1.0, clip_norm=1.0),
        views=ViewConfig(size=128, scale=(0.9, 1.4)),
        instruct=InstructConfig(num_steps=240, batch_size=8),
        correct=CorrectConfig(num_steps=120, batch_size=8, ema_decay=0.92),
        infer=InferConfig(size=128),
    )


def micro() -> Config:
    """Drawn scenes of 64 px, the smallest model: to try things out. It has every part, and needs one CPU core."""
    config = tiny()
    config.preset = "micro"
    config.scenes = SceneConfig(num_train=100, num_eval=32, size=64)
    config.explore.patch, config.explore.max_masks = 4, 40
    config.model = replace(
        config.model,
        backbone_kwargs={"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
        vit_stride=8,
        adapter_heads=2,
        adapter_stem=8,
        hidden_dim=32,
        mask_dim=16,
        num_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        seeds_per_cell=2,
        num_granularities=2,
        affinity_dim=8,
    )
    # A quarter of the points, as in `tiny`, loses small masks: see benchmarks/overfit.py.
    config.loss = replace(config.loss, num_points=1024, num_match_points=1024)
    config.optim = replace(config.optim, learning_rate=2e-3)
    config.views.size = config.infer.size = 64
    config.instruct.num_steps, config.correct.num_steps = 240, 120
    return config


def photo_labels() -> ExploreConfig:
    """Labels of photos with the package alone: the consensus of five looks, with three trees each.

    Chosen on `coco128_seg`; for the score's exponents see docs/results.md.
    """
    return ExploreConfig(
        features="sohes-micro",
        facet="output",
        feature_side=240,
        color_share=0.3,
        color_trees=True,
        looks=("full", "half", "third", "faded", "vivid"),
    )


def cpu() -> Config:
    """Real photos on a CPU, in minutes, at 160 px; nothing to download. The packaged backbone has 1.2 M parameters.

    `--views.size` and `--infer.size` change the resolution; on a CPU a higher one costs more than it gains.
    """
    return Config(
        preset="cpu",
        explore=replace(photo_labels(), max_masks=100),
        model=ModelConfig(
            **packaged_vit("sohes-micro", image_size=160),
            vit_stride=8,
            adapter_heads=4,
            adapter_stem=32,
            hidden_dim=128,
            mask_dim=64,
            mask_stride=2,
            encoder_layers=2,
            encoder_ffn_dim=256,
            decoder_layers=3,
            decoder_ffn_dim=512,
            query_init="seeds",
            grid_size=10,
        ),
        # Enough points to separate neighbours among about 80 masks per photo, above all in matching.
        loss=LossConfig(
            num_points=1024, num_match_points=2048, local_ratio=0.4, importance_ratio=0.4, match_layers="last"
        ),
        optim=OptimConfig(learning_rate=1e-3, backbone_factor=0.5, clip_norm=1.0),
        views=ViewConfig(size=160, scale=(0.8, 1.6), min_area=32),
        instruct=InstructConfig(num_steps=200, batch_size=4),
        correct=CorrectConfig(num_steps=80, batch_size=4, ema_decay=0.9),
        infer=InferConfig(size=160),
    )


def photos() -> Config:
    """Real photos on one GPU, at 384 px; nothing to download. The packaged backbone, decoders as published."""
    config = cpu()
    config.preset = "photos"
    config.explore.batch_size = 8
    config.model = replace(
        config.model,
        backbone_kwargs={**config.model.backbone_kwargs, "img_size": 384},
        adapter_stem=64,
        hidden_dim=256,
        mask_dim=128,
        encoder_layers=6,
        encoder_ffn_dim=1024,
        decoder_layers=9,
        decoder_ffn_dim=2048,
        grid_size=16,
    )
    config.loss = replace(config.loss, num_points=4096, num_match_points=12544)
    config.optim = replace(config.optim, learning_rate=3e-4, precision="bf16", warmup_steps=500)
    config.engine = EngineConfig(checkpoint_seconds=300, async_checkpoints=True)
    config.views = ViewConfig(size=384, min_area=32, num_workers=4)
    config.instruct = InstructConfig(num_steps=20000, batch_size=16)
    config.correct = CorrectConfig(num_steps=10000, batch_size=16)
    config.infer = InferConfig(size=480)
    return config


def small() -> Config:
    """Real photos on one GPU, DINO's ViT-S/16, which timm downloads. 200 queries."""
    return Config(
        preset="small",
        explore=ExploreConfig(features="vit_small_patch8_224.dino", batch_size=8),
        model=ModelConfig(
            backbone="vit_small_patch16_224.dino", backbone_weights="timm", adapter_heads=6, num_queries=200
        ),
        optim=OptimConfig(precision="bf16", warmup_steps=500),
        engine=EngineConfig(checkpoint_seconds=300, async_checkpoints=True),
        views=ViewConfig(size=512, num_workers=4),
        instruct=InstructConfig(num_steps=20000, batch_size=16),
        correct=CorrectConfig(num_steps=10000, batch_size=16),
        infer=InferConfig(size=512),
    )


def base() -> Config:
    """The paper's scale, DINO's ViT-B/8, which timm downloads. Features and backbone, and a full Mask2Former."""
    return Config(
        preset="base",
        explore=ExploreConfig(features="vit_base_patch8_224.dino", batch_size=8),
        model=ModelConfig(backbone_weights="timm", activation_checkpointing=True),
        optim=OptimConfig(precision="bf16", warmup_steps=1000),
        engine=EngineConfig(checkpoint_seconds=600, async_checkpoints=True),
        views=ViewConfig(size=1024, num_workers=8),
        instruct=InstructConfig(num_steps=40000, batch_size=16),
        correct=CorrectConfig(num_steps=20000, batch_size=16),
        infer=InferConfig(size=1024),
    )


def gpu_8gb() -> Config:
    """`small` on a GPU of 8 GB. Two images at a time, activations recomputed; memory is estimated, not measured."""
    config = small()
    config.preset = "8gb"
    config.model.activation_checkpointing = True
    config.engine.accumulate = 8
    config.explore.batch_size = config.infer.batch_size = 2
    return config


def gpu_24gb() -> Config:
    """`base` on a GPU of 24 GB, at 768 px. One image at a time; memory is estimated, not measured."""
    config = base()
    config.preset = "24gb"
    config.views.size = config.infer.size = 768
    config.engine.accumulate = 16
    config.explore.batch_size = config.infer.batch_size = 1
    return config


PRESETS: dict[str, Callable[[], Config]] = {
    "tiny": tiny,
    "micro": micro,
    "cpu": cpu,
    "photos": photos,
    "small": small,
    "base": base,
    "8gb": gpu_8gb,
    "24gb": gpu_24gb,
}


def get_preset(name: str) -> Config:
    """The preset called `name`. Raises ConfigError naming the nearest one."""
    return pick_preset(PRESETS, name)
