# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.train`: a folder of photos in; a model that segments entities and their parts, and a report, out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from sohes import config as configuration
from sohes.cli import fail_clearly, parse
from sohes.config import PHASES, Config, Phase
from sohes.data.coco import LabelSet
from sohes.data.scenes import write_scenes
from sohes.data.sources import ImageList, list_images
from sohes.engine.run import Run, RunError, open_run, write_json
from sohes.env import collect_env
from sohes.evaluation.tables import format_results
from sohes.forest import Forest
from sohes.labels.features import build_extractor
from sohes.models.segmenter import Segmenter
from sohes.phases.correct import correct
from sohes.phases.explore import explore, label_image
from sohes.phases.instruct import instruct
from sohes.phases.scoring import GroundTruth, find_ground_truth, score_phase
from sohes.presets import get_preset
from sohes.report import write_report

# Held-out scenes are drawn from other seeds than those to learn from.
_EVAL_SEED = 1_000_003


@dataclass
class Arguments:
    """Learn to segment entities and their parts from raw photos, without labels.

    With no arguments: draws scenes, runs all three phases on them in minutes on a CPU, and reports.
    """

    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    out: Path = Path("runs/default")
    """Folder of the run: config, labels, checkpoints, weights, scores and report.html."""
    resume: bool = False
    """Go on with the run in --out, from its files. Its settings are taken from there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train: auto takes a GPU if there is one."""


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    with fail_clearly("sohes.train"):
        default = Arguments(config=_base_config(given))
        train_run(parse(Arguments, given, prog="python -m sohes.train", default=default))
    return 0


def train_run(args: Arguments) -> Run:
    """The whole job: the data, then each phase followed by its evaluation, then the report.

    Raises SohesError for everything a person can mend: wrong paths, settings, weights, a run folder in use.
    """
    config = args.config
    device = pick_device(args.device)
    check_inputs(config)
    run = open_run(args.out, config, args.resume)
    write_json(run.path / "env.json", collect_env())
    run.log(f"run folder {run.path}, preset {config.preset}, device {device}, seed {config.seed}")

    images, ground_truth = prepare_data(run, config)
    for phase in PHASES:
        if phase not in config.phases:
            continue
        if phase == "explore":
            explore(images, run.path, config.explore, log=run.log)
        elif run.is_trained(phase):
            run.log(f"{phase}: trained before, see {run.weights(phase)}")
        elif phase == "instruct":
            instruct(run, config, open_labels(run, images.root), device)
        else:
            correct(run, config, open_labels(run, images.root), device)
        if ground_truth is not None and phase not in run.read_results():
            score_phase(run, phase, segmenter_of(run, phase, config, device), ground_truth)

    report = write_report(run.path, ground_truth.annotations, ground_truth.image_root) if ground_truth else None
    report = report or write_report(run.path)
    print(format_results(run.read_results()))
    run.log(f"report: {report}")
    return run


def pick_device(name: str) -> torch.device:
    """Raises RunError when a GPU is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: torch sees no CUDA device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_inputs(config: Config) -> None:
    """Find wrong paths before anything is written."""
    if not config.phases:
        raise RunError(f"--phases: name at least one of {', '.join(PHASES)}")
    if config.images:
        list_images(config.images)
    if config.eval is not None:
        find_ground_truth(config.eval)


def prepare_data(run: Run, config: Config) -> tuple[ImageList, GroundTruth | None]:
    """The photos to learn from, and the ground truth to score on.

    Scenes are drawn where no photos are given.
    """
    ground_truth = None if config.eval is None else find_ground_truth(config.eval)
    if config.images:
        return list_images(config.images), ground_truth
    scenes = config.scenes
    learn = write_scenes(run.path / "scenes" / "train", scenes.num_train, scenes.size, config.seed)
    if ground_truth is None:
        held_out = run.path / "scenes" / "eval"
        write_scenes(held_out, scenes.num_eval, scenes.size, config.seed + _EVAL_SEED)
        ground_truth = find_ground_truth(held_out)
    run.log(f"{scenes.num_train} scenes drawn to learn from")
    return list_images(learn / "images"), ground_truth


def open_labels(run: Run, image_root: Path) -> LabelSet:
    """The labels of phase 1. Raises RunError when it has not run or found nothing."""
    if not run.labels.is_dir():
        raise RunError(f"{run.path} has no labels yet: add explore to --phases")
    labels = LabelSet(run.labels, image_root)
    if len(labels) == 0:
        raise RunError(f"phase 1 found no label in any photo, see {run.labels / 'manifest.jsonl'}")
    return labels


def segmenter_of(run: Run, phase: Phase, config: Config, device: torch.device) -> Callable[[Tensor], Forest]:
    """The function photo -> forest that stands for a phase: clustering itself, or the trained model."""
    if phase == "explore":
        extractor = build_extractor(config.explore)
        return lambda image: label_image(image, extractor, config.explore)
    segmenter = Segmenter.from_pretrained(run.weights(phase), device=device)
    return lambda image: segmenter([image])[0]


def _base_config(given: list[str]) -> Config:
    """What the other options change: the preset, or the stored settings of the run to resume."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="tiny")
    early.add_argument("--out", type=Path, default=Arguments.out)
    early.add_argument("--resume", action="store_true")
    known, _ = early.parse_known_args(given)
    if known.resume:
        return configuration.load(known.out / "config.json")
    return get_preset(known.preset)


if __name__ == "__main__":
    sys.exit(main())
