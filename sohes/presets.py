# SPDX-License-Identifier: Apache-2.0
"""Presets: functions that return a complete `Config`. `--preset NAME` starts from one; every field can be changed."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from sohes.config import (
    Config,
    ConfigError,
    CorrectConfig,
    ExploreConfig,
    InferConfig,
    InstructConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ViewConfig,
)


def tiny() -> Config:
    """Drawn scenes of 128 px, a ViT of 1 M parameters from random weights: minutes on two CPU cores."""
    return Config(preset="tiny")


def small() -> Config:
    """Real photos on one small GPU, or on a CPU with patience: ViT-S/16 at 256 px."""
    return Config(preset="small")


def base() -> Config:
    """The paper's scale: DINO ViT-B/8, whose weights timm downloads or `--explore.weights` names."""
    return Config(preset="base")


PRESETS: dict[str, Callable[[], Config]] = {"tiny": tiny, "small": small, "base": base}


def get_preset(name: str) -> Config:
    """The preset called `name`. Raises ConfigError naming the nearest one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"unknown preset '{name}': {hint}known: {', '.join(PRESETS)}")
    return PRESETS[name]()
