# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run, as plain dataclasses. A run is one `Config`, stored as `config.json` in its folder.

Labels say where a value comes from: [paper] the SOHES authors, [cited] said about SOHES by others, [sibling] the value
of HASSOD or UnSAM, [ours] decided here. The docstring below a field is its `--help` text.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Phase = Literal["explore", "instruct", "correct"]
PHASES: tuple[Phase, ...] = ("explore", "instruct", "correct")


class ConfigError(ValueError):
    """A setting that does not exist or does not fit; the message names it and what was expected."""


@dataclass
class SceneConfig:
    """The embedded data set, drawn when no `--images` are given."""

    num_train: int = 200
    """Scenes to learn from, >= 1. [ours]"""
    num_eval: int = 48
    """Held-out scenes, >= 1. [ours]"""
    size: int = 128
    """Side of a scene in pixels, >= 32. [ours]"""


@dataclass
class ExploreConfig:
    """Phase 1, self-exploration: clustering of patch features into pseudo-labels."""

    features: str = "descriptor"
    """`descriptor` (weight-free) or the name of a timm ViT, e.g. `vit_base_patch8_224.dino` [paper: DINO ViT-B/8]."""
    thresholds: tuple[float, ...] = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    """Similarities at which the merge tree is cut, falling. [sibling]"""


@dataclass
class ModelConfig:
    """The segmentation model of phases 2 and 3."""

    backbone: str = "vit_tiny_patch16_224"
    """Name of a timm ViT (`vit_*`) or of a hierarchical timm backbone."""


@dataclass
class LossConfig:
    """Matching and losses of phases 2 and 3."""

    num_points: int = 12544
    """Points sampled for matching and for the mask losses. [sibling]"""


@dataclass
class OptimConfig:
    """Optimiser and schedule, shared by phases 2 and 3."""

    learning_rate: float = 1e-4
    """Peak learning rate of AdamW, > 0. [sibling]"""
    backbone_factor: float = 0.1
    """The backbone ViT learns at this share of the learning rate. [sibling]"""
    weight_decay: float = 0.05
    """Weight decay of matrices; vectors (norms, biases) and embeddings have none. [sibling]"""
    clip_norm: float = 0.01
    """Gradients are clipped to this total norm; 0 switches clipping off. [sibling]"""
    warmup_steps: int = 20
    """Steps of linear warm-up. [ours]"""
    final_factor: float = 0.01
    """The cosine schedule ends at this share of the peak. [ours]"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward passes. bf16 autocast is for GPUs: on a CPU without matrix units it is far slower."""
    max_bad_steps: int = 10
    """This many steps in a row with a non-finite loss end the run; a single one is reported and skipped. [ours]"""


@dataclass
class ViewConfig:
    """Training views of a photo."""

    size: int = 512
    """Side of the square training view in pixels (photos are padded, never squashed). [ours]"""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random resize, relative to fitting the photo into the view. [sibling: large-scale jitter]"""
    num_workers: int = 0
    """Processes that decode and augment; 0 means in the training process."""
    cache_mb: int = 256
    """Decoded small photos kept in memory, in MB, per process."""


@dataclass
class InstructConfig:
    """Phase 2, self-instruction: the model learns the pseudo-labels."""

    num_steps: int = 2000
    """Optimiser steps, >= 1."""
    batch_size: int = 8
    """Images a step, over all processes. [sibling: 16]"""


@dataclass
class CorrectConfig:
    """Phase 3, self-correction: a student learns from the initial labels and from its own EMA teacher."""

    num_steps: int = 1000
    """Optimiser steps, >= 1."""
    batch_size: int = 8
    """Images a step, over all processes. [sibling: 16]"""
    learning_rate_factor: float = 0.5
    """Peak learning rate of this phase relative to phase 2's. [ours]"""
    ema_decay: float = 0.9996
    """The teacher's momentum. [sibling] Short runs need a smaller one: its memory is 1 / (1 - decay) steps."""
    label_weight: tuple[float, float] = (1.0, 0.0)
    """Weight of the initial-label branch, from start to end by cosine. [sibling]"""
    teacher_weight: tuple[float, float] = (2.0, 3.0)
    """Weight of the teacher branch, from start to end by cosine. [sibling]"""
    score_thresholds: tuple[float, float, float] = (0.3, 0.5, 0.7)
    """A teacher mask becomes a label above this score: small, medium, large. One threshold starves the small. [ours]"""
    size_limits: tuple[float, float] = (32.0**2, 96.0**2)
    """Areas in pixels of the photo scaled to 640 on its long side that part small, medium and large. [COCO]"""
    theta_cover: float = 0.75
    """Coverage from which a teacher mask counts as inside another. [sibling]"""
    max_labels: int = 100
    """Teacher labels kept per image, best scores first. [ours]"""


@dataclass
class InferConfig:
    """From the model's outputs to a forest."""

    size: int = 512
    """Long side to which a photo is resized for the model, in pixels."""
    max_masks: int = 1000
    """At most this many masks an image. [paper: AR@1000]"""
    min_score: float = 0.0
    """Masks that score less are dropped, 0..1."""
    nms_iou: float = 0.9
    """Of two masks with a higher IoU only the better stays. [sibling]"""
    ancestor_threshold: float = 0.5
    """Probability from which mask i counts as an ancestor of mask j. [ours]"""
    theta_cover: float = 0.9
    """Share of a child that must lie in its parent. [sibling]"""


@dataclass
class Config:
    """A run."""

    preset: str = "tiny"
    """The preset that the other defaults came from: see `sohes/presets.py`."""
    seed: int = 0
    """Of everything random: scenes, weights, views, sampled points."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    instruct: InstructConfig = field(default_factory=InstructConfig)
    correct: CorrectConfig = field(default_factory=CorrectConfig)
    infer: InferConfig = field(default_factory=InferConfig)


def to_dict(config: Any) -> dict[str, Any]:  # noqa: ANN401 - any of the dataclasses above
    """A config as JSON-ready nested dictionaries."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(cls: type, values: dict[str, Any], where: str = "config") -> Any:  # noqa: ANN401
    """The inverse of `to_dict`. Raises ConfigError for an unknown key, naming the nearest known one."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown setting '{key}'{hint}")
        arguments[key] = _convert(hints[key], value, f"{where}.{key}")
    return cls(**arguments)


def load(path: Path) -> Config:
    """Read a `config.json`. Raises ConfigError when it is not one."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return from_dict(Config, values, where=str(path))


def _convert(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    """JSON knows no tuples and no paths; everything else must already have the declared type."""
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [h for h in typing.get_args(hint) if h is not type(None)]
        return None if value is None else _convert(options[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(value)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where} = {value!r}, expected one of {typing.get_args(hint)}")
        return value
    if hint is Path:
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise ConfigError(f"{where} = {value!r}, expected {hint.__name__}")
    return value
