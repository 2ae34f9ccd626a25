# SPDX-License-Identifier: Apache-2.0
"""Finds settings that cannot be, or not together, before anything is read or written."""

from __future__ import annotations

from collections.abc import Iterator

from sohes.configs.run import Config, ConfigError, InferConfig, ModelConfig

# field: lowest value, highest value or None
_RANGES: dict[str, tuple[float, float | None]] = {
    "scenes.num_train": (1, None),
    "scenes.num_eval": (1, None),
    "scenes.size": (32, None),
    "explore.batch_size": (1, None),
    "explore.feature_side": (0, None),
    "explore.color_share": (0, 1),
    "explore.feature_weight": (0, 1),
    "explore.feature_border_weight": (0, None),
    "explore.ward_weight": (0, 1),
    "explore.side": (1, None),
    "explore.patch": (1, None),
    "explore.snap_rounds": (0, None),
    "explore.texture_weight": (0, None),
    "explore.place_weight": (0, None),
    "explore.diffusion_steps": (0, None),
    "explore.num_cuts": (0, None),
    "explore.min_area": (0, None),
    "explore.min_pixels": (0, None),
    "explore.max_area": (0, 1),
    "explore.max_corners": (0, 4),
    "explore.nms_iou": (0, 1),
    "explore.max_masks": (1, None),
    "explore.border_weight": (0, None),
    "explore.size_exponent": (0, None),
    "explore.theta_small": (0, 1),
    "explore.local_regions": (1, None),
    "explore.local_margin": (0, None),
    "explore.local_side": (1, None),
    "explore.local_cover": (0, 1),
    "explore.local_masks": (1, None),
    "explore.crf_steps": (1, None),
    "explore.refine_min_iou": (0, 1),
    "explore.shard_size": (1, None),
    "explore.max_failures": (0, None),
    "explore.num_workers": (0, None),
    "explore.patience": (0, None),
    "loss.num_points": (1, None),
    "loss.num_match_points": (1, None),
    "loss.oversample_ratio": (1, None),
    "loss.importance_ratio": (0, 1),
    "loss.local_ratio": (0, 1),
    "optim.backbone_factor": (0, None),
    "optim.weight_decay": (0, None),
    "optim.clip_norm": (0, None),
    "optim.warmup_steps": (0, None),
    "optim.final_factor": (0, 1),
    "optim.max_bad_steps": (1, None),
    "engine.accumulate": (1, None),
    "engine.checkpoint_seconds": (0, None),
    "engine.keep_checkpoints": (1, None),
    "views.size": (32, None),
    "views.min_area": (1, None),
    "views.num_workers": (0, None),
    "views.cache_mb": (0, None),
    "instruct.num_steps": (1, None),
    "instruct.batch_size": (1, None),
    "correct.num_steps": (1, None),
    "correct.batch_size": (1, None),
    "correct.learning_rate_factor": (0, None),
    "correct.ema_warmup_steps": (0, None),
    "correct.theta_cover": (0, 1),
    "correct.nms_iou": (0, 1),
    "correct.max_labels": (1, None),
    "infer.size": (32, None),
    "infer.grid_size": (0, None),
    "infer.max_masks": (1, None),
    "infer.min_score": (0, 1),
    "infer.eval_min_score": (0, 1),
    "infer.child_area": (0.01, 1),
    "infer.nms_iou": (0, 1),
    "infer.ancestor_threshold": (0, 1),
    "infer.ancestor_cover": (0, 1),
    "infer.theta_cover": (0, 1),
    "infer.min_area": (0, None),
    "infer.batch_size": (1, None),
    "infer.tile": (0, None),
    "infer.tile_overlap": (0, 0.9),
    "infer.join_iou": (0, 1),
}

# Settings of `explore` that must be greater than 0.
_POSITIVE = (
    *("basin_sigma", "border_sigma", "border_softness", "compactness", "color_width", "texture_width", "place_width"),
    *("diffusion_contrast", "local_min_area", "theta_cover"),
)


def misfits(config: Config, num_processes: int = 1) -> list[str]:
    """A line for every setting that is out of its range, or does not fit the others."""
    return [*_out_of_range(config), *_misfits(config, num_processes)]


def check_saved(model: ModelConfig, infer: InferConfig) -> None:
    """Raises ConfigError, in one line, with every setting of a saved model's inference that does not fit."""
    config = Config(model=model, infer=infer)
    problems = [text for text in misfits(config) if text.startswith("infer.")]
    if problems:
        raise ConfigError("; ".join(problems))


def _out_of_range(config: Config) -> Iterator[str]:
    for name, (low, high) in _RANGES.items():
        group, field = name.split(".")
        value = getattr(getattr(config, group), field)
        if not (low <= value and (high is None or value <= high)):
            yield f"{name} = {value}, expected " + (f">= {low}" if high is None else f"{low} to {high}")


def _misfits(config: Config, num_processes: int) -> Iterator[str]:
    loss, optim, engine, correct = config.loss, config.optim, config.engine, config.correct
    if loss.importance_ratio + loss.local_ratio > 1:
        yield (
            f"loss.importance_ratio {loss.importance_ratio} + loss.local_ratio {loss.local_ratio} are more than all "
            "points, expected at most 1 together"
        )
    for name in _POSITIVE:
        if not getattr(config.explore, name) > 0:
            yield f"explore.{name} = {getattr(config.explore, name)}, expected > 0"
    if config.explore.theta_cover > 1:
        yield f"explore.theta_cover = {config.explore.theta_cover}, expected > 0 to 1"
    if not optim.learning_rate > 0:
        yield f"optim.learning_rate = {optim.learning_rate}, expected > 0"
    if not 0 < optim.layer_decay <= 1:
        yield f"optim.layer_decay = {optim.layer_decay}, expected > 0 to 1"
    elif optim.layer_decay < 1 and not config.model.backbone.startswith("vit_"):
        yield (
            f"optim.layer_decay = {optim.layer_decay} is for the layers of a plain ViT (vit_*), expected 1 with "
            f"backbone {config.model.backbone!r}"
        )
    if not engine.timeout_minutes > 0:
        yield f"engine.timeout_minutes = {engine.timeout_minutes}, expected > 0"
    if optim.precision == "fp16" and engine.sharding == "fsdp":
        yield "optim.precision fp16 does not work with engine.sharding fsdp, expected bf16 or fp32"
    parts = num_processes * engine.accumulate
    for phase, batch_size in (("instruct", config.instruct.batch_size), ("correct", correct.batch_size)):
        if phase in config.phases and batch_size % parts:
            yield (
                f"{phase}.batch_size = {batch_size} cannot be shared by {num_processes} processes in "
                f"{engine.accumulate} parts each, expected a multiple of {parts}"
            )
    if config.explore.feature_side > config.explore.side:
        yield (
            f"explore.feature_side = {config.explore.feature_side} is more than explore.side = {config.explore.side}, "
            "expected at most that"
        )
    if config.infer.grid_size and config.model.query_init != "seeds":
        yield f"infer.grid_size = {config.infer.grid_size} is for model.query_init seeds, expected 0"
    low, high = config.views.scale
    if not 0 < low <= high:
        yield f"views.scale = {low} {high}, expected 0 < low <= high"
    if not 0 <= correct.ema_decay < 1:
        yield f"correct.ema_decay = {correct.ema_decay}, expected 0 to below 1"
    if not all(0 <= threshold <= 1 for threshold in correct.score_thresholds):
        yield f"correct.score_thresholds = {correct.score_thresholds}, expected 0 to 1 each"
    if not 0 <= correct.size_limits[0] <= correct.size_limits[1]:
        yield f"correct.size_limits = {correct.size_limits}, expected 0 <= small <= medium"
    weights = (*correct.label_weight, *correct.teacher_weight)
    if min(weights) < 0 or any(a + b <= 0 for a, b in zip(correct.label_weight, correct.teacher_weight, strict=True)):
        yield (
            f"correct.label_weight = {correct.label_weight} and correct.teacher_weight = {correct.teacher_weight}, "
            "expected >= 0, and at start and end not both 0"
        )
