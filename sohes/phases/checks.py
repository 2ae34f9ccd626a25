# SPDX-License-Identifier: Apache-2.0
"""Checks of a training run before its folder is created: settings, paths, weights, optional packages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sohes.configs.checks import find_conflicts
from sohes.configs.io import ConfigError
from sohes.configs.run import PHASES, Config
from sohes.data.sources import ImageList, list_images
from sohes.data.tars import split_member
from sohes.engine.run import Run, RunError, import_tensorboard
from sohes.models.backbone import build_backbone
from sohes.models.segmenter_model import build_model
from sohes.phases.scoring import find_ground_truth, list_photos, open_eval_dataset
from sohes.utils.distributed import World


def check_config(config: Config, num_processes: int = 1) -> None:
    """Raises ConfigError with a line for each setting that is out of range or conflicts with others."""
    problems = find_conflicts(config, num_processes)
    if not problems and "instruct" in config.phases:
        # On the meta device: takes no memory, and downloads no weights.
        try:
            with torch.device("meta"):
                build_model(replace(config.model, backbone_weights=""))
        except (ValueError, TypeError, AssertionError) as error:  # also of timm
            problems = [f"model: {error}"]
    if problems:
        raise ConfigError("settings that do not fit:\n  " + "\n  ".join(problems))


def check_part(part: tuple[int, int] | None, config: Config, world: World) -> None:
    """Raises RunError if --part is wrong, or conflicts with other options."""
    if part is None:
        return
    number, count = part
    if not 0 <= number < count:
        raise RunError(f"--part {number} {count}: expected the first from 0 to one below the second")
    if config.phases != ("explore",) or world.size > 1:
        raise RunError("--part: expected --phases explore, in jobs of one process each")


def check_inputs(config: Config) -> ImageList | None:
    """The photos to learn from, None if none are given. Raises SohesError for wrong paths of photos or ground truth."""
    if not config.phases:
        raise RunError(f"--phases: name at least one of {', '.join(PHASES)}")
    if config.eval_num_images is not None and config.eval_dataset is None:
        raise RunError(f"--eval-num-images {config.eval_num_images} goes with --eval-dataset NAME")
    if open_eval_dataset(config) is None and config.eval is not None:
        _check_photos(config.eval)
    return list_images(config.images) if config.images else None


def check_needs(run: Path, config: Config) -> None:
    """Check that the phases have what they need: labels, weights of earlier phases and the backbone, TensorBoard.

    run: the folder of the run, which may not exist yet.

    Raises RunError, WeightsError, ConfigError.
    """
    needed = Run(run, is_main=False)
    to_train = [phase for phase in ("instruct", "correct") if phase in config.phases and not needed.is_trained(phase)]
    if "explore" not in config.phases and not needed.labels.is_dir():
        raise RunError(f"{run} has no labels yet: add explore to --phases")
    if "correct" in to_train and "instruct" not in config.phases and not needed.is_trained("instruct"):
        raise RunError(f"{run} has no weights of instruct, from which correct starts: add instruct to --phases")
    if to_train and config.engine.tensorboard:
        import_tensorboard()
    if "instruct" in to_train and config.model.backbone_weights:
        try:
            build_backbone(config.model)
        except ValueError as error:  # names that timm does not know are found by check_config
            raise ConfigError(f"model: {error}") from error


def _check_photos(path: Path) -> None:
    """Raises RunError or BadInput if there is no ground truth in `path`, or its photos are missing."""
    truth = find_ground_truth(path)
    paths = [truth.image_root / name for _, name in list_photos(truth)]
    missing = [photo for photo in paths if not photo.exists() and split_member(photo) is None]
    if missing:
        raise RunError(f"--eval {path}: {len(missing)} of {len(paths)} photos are missing, the first {missing[0]}")
