# SPDX-License-Identifier: Apache-2.0
"""Finds settings that are out of range or contradict each other, before anything is read or written."""

from __future__ import annotations

from collections.abc import Iterator

from sohes.configs.ranges import out_of_range, show
from sohes.configs.run import Config, ConfigError, InferConfig, ModelConfig


def find_conflicts(config: Config, num_processes: int = 1) -> list[str]:
    """A line for every setting that is out of range or contradicts another."""
    return [*out_of_range(config), *_contradictions(config, num_processes)]


def check_saved(model: ModelConfig, infer: InferConfig) -> None:
    """Raises ConfigError, in one line, for all settings of a saved model that are out of range or contradict others."""
    config = Config(model=model, infer=infer)
    problems = [text for text in find_conflicts(config) if text.startswith(("model.", "infer."))]
    if problems:
        raise ConfigError("; ".join(problems))


def _contradictions(config: Config, num_processes: int) -> Iterator[str]:
    loss, optim, engine, correct = config.loss, config.optim, config.engine, config.correct
    if loss.importance_ratio + loss.local_ratio > 1:
        yield (
            f"loss.importance_ratio {loss.importance_ratio} + loss.local_ratio {loss.local_ratio} are more than all "
            "points, expected at most 1 together"
        )
    if 0 < optim.layer_decay < 1 and not config.model.backbone.startswith("vit_"):
        yield (
            f"optim.layer_decay = {optim.layer_decay} is for the layers of a plain ViT (vit_*), expected 1 with "
            f"backbone {config.model.backbone!r}"
        )
    if optim.precision == "fp16" and engine.sharding == "fsdp":
        yield "optim.precision fp16 does not work with engine.sharding fsdp, expected bf16 or fp32"
    num_parts = max(1, num_processes * engine.accumulate)
    for phase, batch_size in (("instruct", config.instruct.batch_size), ("correct", correct.batch_size)):
        if phase in config.phases and batch_size % num_parts:
            yield (
                f"{phase}.batch_size = {batch_size} cannot be shared by {num_processes} processes in "
                f"{engine.accumulate} parts each, expected a multiple of {num_parts}"
            )
    if config.explore.feature_side > config.explore.side:
        yield (
            f"explore.feature_side = {config.explore.feature_side} is more than explore.side = {config.explore.side}, "
            "expected at most that"
        )
    looks = config.explore.looks
    if not looks or len(set(looks)) < len(looks):
        yield f"explore.looks = {' '.join(looks) or 'none'}, expected at least one look, none of them twice"
    if config.infer.grid_size and config.model.query_init != "seeds":
        yield f"infer.grid_size = {config.infer.grid_size} is for model.query_init seeds, expected 0"
    if config.views.scale[0] > config.views.scale[1]:
        yield f"views.scale = {show(config.views.scale)}, expected low <= high"
    if correct.size_limits[0] > correct.size_limits[1]:
        yield f"correct.size_limits = {show(correct.size_limits)}, expected small <= medium"
    if any(a == b == 0 for a, b in zip(correct.label_weight, correct.teacher_weight, strict=True)):
        yield (
            f"correct.label_weight = {show(correct.label_weight)} and correct.teacher_weight = "
            f"{show(correct.teacher_weight)}, expected at start and end not both 0"
        )
