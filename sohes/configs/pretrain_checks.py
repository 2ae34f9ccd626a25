# SPDX-License-Identifier: Apache-2.0
"""Finds settings of pretraining that cannot be, or not together, before anything is read or written."""

from __future__ import annotations

from collections.abc import Iterator

from sohes.configs.pretrain import PretrainConfig
from sohes.configs.run import ConfigError

# What holds for all values of a field, where it has several.
_AT_LEAST_ONE = (
    *("num_steps", "num_threads", "vit.patch", "vit.width", "vit.depth", "vit.heads", "crops.photo_side"),
    *("crops.global_size", "crops.local_size", "distill.prototypes", "distill.head_hidden", "distill.head_bottleneck"),
    *("optim.max_bad_steps", "engine.keep_checkpoints"),
)
_AT_LEAST_ZERO = (
    *("seed", "vit.register_tokens", "crops.num_locals", "distill.class_weight", "distill.patch_weight"),
    *("distill.koleo_weight", "distill.region_weight", "optim.weight_decay", "optim.clip_norm"),
    *("optim.backbone_factor", "optim.warmup_steps", "engine.checkpoint_seconds"),
)
_SHARES = (
    *("vit.drop_path", "optim.final_factor", "distill.teacher_warmup", "distill.momentum", "distill.mask_probability"),
    *("distill.mask_share", "distort.jitter_probability", "distort.brightness", "distort.contrast"),
    *("distort.saturation", "distort.gray_probability", "distort.blur_probability", "distort.solarize_probability"),
    *("crops.global_scale", "crops.local_scale"),
)
_POSITIVE = (
    *("crops.aspect", "distort.blur_sigma", "cache_gb", "distill.student_temperature", "distill.teacher_temperature"),
    *("optim.learning_rate", "engine.timeout_minutes"),
)


def check_pretrain_config(config: PretrainConfig, num_processes: int = 1) -> None:
    """Raises ConfigError for every setting out of its range, one a line, or for the first that does not fit others."""
    problems = list(_out_of_range(config))
    if problems:
        raise ConfigError("settings that do not fit:\n  " + "\n  ".join(problems))
    if config.vit.width % config.vit.heads:
        raise ConfigError(f"vit.width {config.vit.width} is not a multiple of vit.heads {config.vit.heads}")
    for name in ("global_size", "local_size"):
        if getattr(config.crops, name) % config.vit.patch:
            raise ConfigError(
                f"crops.{name} {getattr(config.crops, name)} is not a multiple of vit.patch {config.vit.patch}"
            )
    for name in ("global_scale", "local_scale", "aspect"):
        low, high = getattr(config.crops, name)
        if not 0 < low <= high:
            raise ConfigError(f"crops.{name} {low, high}: expected 0 < low <= high")
    counts, distill = config.distill.region_counts, config.distill
    if distill.region_weight and (not counts or min(counts) < 1 or max(counts) > 255):
        raise ConfigError(f"distill.region_counts {counts}: expected one or more numbers from 1 to 255")
    if distill.region_samples < 2 or not distill.region_temperature > 0:
        raise ConfigError(
            f"distill.region_samples {distill.region_samples} and region_temperature "
            f"{distill.region_temperature}: expected at least 2, and more than 0"
        )
    if config.batch_size % num_processes or config.batch_size < 2 * num_processes:
        raise ConfigError(
            f"batch_size {config.batch_size} for {num_processes} processes: expected a multiple, and at least 2 "
            "photos for each, as photos are compared"
        )
    for name, value in (("accumulate", 1), ("sharding", "ddp")):
        if getattr(config.engine, name) != value:
            raise ConfigError(
                f"engine.{name} {getattr(config.engine, name)}: pretraining compares the photos of a whole batch, "
                f"with a small model; expected {value}"
            )


def _out_of_range(config: PretrainConfig) -> Iterator[str]:
    for names, low, high in (
        (_AT_LEAST_ONE, 1, None),
        (_AT_LEAST_ZERO, 0, None),
        (_SHARES, 0, 1),
        (("distort.hue",), 0, 0.5),
        (("pack_quality",), 0, 100),
    ):
        for name in names:
            if not all(low <= value and (high is None or value <= high) for value in _values(config, name)):
                yield f"{_shown(config, name)}, expected " + (f">= {low}" if high is None else f"{low} to {high}")
    for name in _POSITIVE:
        if not all(value > 0 for value in _values(config, name)):
            yield f"{_shown(config, name)}, expected > 0"
    if not 0 < config.optim.layer_decay <= 1:
        yield f"{_shown(config, 'optim.layer_decay')}, expected > 0 to 1"


def _values(config: PretrainConfig, name: str) -> tuple[float, ...]:
    group, _, field = name.rpartition(".")
    value = getattr(getattr(config, group) if group else config, field)
    return value if isinstance(value, tuple) else (value,)


def _shown(config: PretrainConfig, name: str) -> str:
    return f"{name} = {' '.join(map(str, _values(config, name)))}"
