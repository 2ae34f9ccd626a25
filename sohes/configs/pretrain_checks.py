# SPDX-License-Identifier: Apache-2.0
"""Finds settings of pretraining that are out of range or contradict each other, before anything is read or written."""

from __future__ import annotations

from sohes.configs.pretrain import PretrainConfig
from sohes.configs.ranges import out_of_range, show
from sohes.configs.run import ConfigError


def check_pretrain_config(config: PretrainConfig, num_processes: int = 1) -> None:
    """Raises ConfigError for every setting out of range, one a line, or for the first that contradicts another."""
    problems = list(out_of_range(config))
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
        if low > high:
            raise ConfigError(f"crops.{name} = {show((low, high))}, expected low <= high")
    if config.distill.region_weight and not config.distill.region_counts:
        raise ConfigError("distill.region_counts: expected at least one number")
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
