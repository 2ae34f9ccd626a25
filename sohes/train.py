# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.train`: a folder of photos in; a model that segments entities and their parts, and a report, out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from sohes.commands import answer_help

if __name__ == "__main__":
    answer_help("train", sys.argv[1:])  # before torch is imported, which takes seconds

import torch
from torch import Tensor

from sohes.cli import base_config, fail_clearly, parse
from sohes.config import PHASES, Config, Phase
from sohes.config_checks import check_config
from sohes.data.coco import LabelSet
from sohes.data.scenes import write_scenes
from sohes.data.sources import ImageList, list_images
from sohes.devices import DeviceName, pick_device
from sohes.engine.distributed import World, find_world, gather, on_main, process_group
from sohes.engine.run import CONFIG_FILE, Run, RunError, check_run, start_run, withdrawn_on_failure
from sohes.evaluation.datasets.convert import convert_dataset
from sohes.evaluation.datasets.registry import open_dataset
from sohes.evaluation.tables import format_results
from sohes.forest import Forest
from sohes.labels.features import FeatureExtractor
from sohes.models.segmenter import Segmenter
from sohes.options import FLAT
from sohes.phases.correct import correct
from sohes.phases.explore import explore, label_image, prepare
from sohes.phases.instruct import instruct
from sohes.phases.plan import next_steps, plan_job
from sohes.phases.scoring import GroundTruth, find_ground_truth, list_photos, score_phase
from sohes.presets import get_preset
from sohes.report import write_report
from sohes.streams import say
from sohes.train_checks import check_inputs, check_needs, check_part

# Held-out scenes are drawn from other seeds than those to learn from.
_EVAL_SEED = 1_000_003


@dataclass
class Arguments:
    """Learn to segment entities and their parts from raw photos, without labels.

    With no arguments: draws scenes, runs all three phases on them in minutes on a CPU, and reports.
    """

    config: Config = field(default_factory=Config, metadata=FLAT)
    out: Path = Path("runs/default")
    """Folder of the run: config, labels, checkpoints, weights, scores and report.html."""
    resume: bool = False
    """Go on with the run in --out, from its files. Its settings are taken from there; of them, `phases` and `engine`
    may change, and the number of processes. Jobs that torchrun or SLURM start again go on by themselves."""
    part: tuple[int, int] | None = None
    """K N, with --phases explore: make the Kth of N parts of the labels, K from 0 to N - 1, as in an array job. Jobs
    share nothing but --out and run in any order, also one after the other; the last one finishes the phase."""
    device: DeviceName = "auto"
    """Where to train: auto takes a GPU if there is one."""


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    with fail_clearly("sohes.train"):
        world = find_world()
        default = Arguments(config=base_config(given, Config, Arguments.out, get_preset))
        args = parse(Arguments, given, prog="python -m sohes.train", default=default)
        device = pick_device(args.device, world.local_rank)
        with process_group(world, device, timedelta(minutes=args.config.engine.timeout_minutes)):
            train_run(args, device, world)
    return 0


def train_run(args: Arguments, device: torch.device, world: World) -> Run:
    """The whole job: the data, then each phase followed by its evaluation, then the report.

    Every process of the `world` calls this; the main one writes. Raises SohesError for everything a person can mend:
    wrong paths, settings, weights, a run folder in use.
    """
    config = args.config
    check_config(config, world.size)
    check_part(args.part, config, world)
    given = check_inputs(config)
    # A launcher that starts a job again means to go on with it; so do the jobs that make the parts of one phase.
    again = max(gather(world.restarts)) > 0 or args.part is not None
    on_main(lambda: check_run(args.out, config, args.resume or (again and (args.out / CONFIG_FILE).is_file())))
    on_main(lambda: check_needs(args.out, config))
    extractor = prepare(config.explore, device) if "explore" in config.phases else None
    is_new = on_main(lambda: start_run(args.out, config, args.resume, again))
    alone = world.is_main and args.part is None  # a run of other jobs is not this one's to withdraw
    with withdrawn_on_failure(args.out) if is_new and alone else nullcontext():
        return run_phases(args, given, extractor, device, world)


def run_phases(
    args: Arguments, given: ImageList | None, extractor: FeatureExtractor | None, device: torch.device, world: World
) -> Run:
    """The phases of a run whose folder is there. given: the photos named. extractor: of phase 1, if that is to run."""
    config, run = args.config, Run(args.out, world.is_main)
    run.log(f"run folder {run.path}, preset {config.preset}, device {device}, seed {config.seed}")
    if given is not None and len(given.left_out):
        run.log(str(given.left_out))
    if config.images and config.preset == "tiny":
        run.log("preset tiny is made for drawn scenes, with coarse labels; for photos see --preset cpu, small, base")
    if world.size > 1:
        run.log(f"{world.size} processes, {config.engine.sharding}, start {world.restarts + 1}")

    on_main(lambda: draw_scenes(run, config))
    on_main(lambda: convert_truth(run, config))
    images, ground_truth = find_data(run, config, given)
    on_main(lambda: plan(run, config, len(images), ground_truth, world))
    for phase in PHASES:
        if phase not in config.phases:
            continue
        if phase == "explore":
            labelling = world if args.part is None else World(*args.part)
            summary = explore(
                images,
                run.path,
                config.explore,
                extractor=extractor,
                world=labelling,
                wait=args.part is None,
                log=run.log,
            )
            if not summary.is_complete:
                run.log("explore: parts of other jobs are still missing; the last job finishes the phase")
                return run
        elif run.is_trained(phase):
            run.log(f"{phase}: trained before, see {run.weights(phase)}")
        elif phase == "instruct":
            instruct(run, config, open_labels(run, images.root), device, world)
        else:
            correct(run, config, open_labels(run, images.root), device, world)
        if ground_truth is not None and phase not in run.read_results():
            # Two jobs may both find themselves the last.
            job = 0 if args.part is None else args.part[0]
            score_phase(run, phase, segmenter_of(run, phase, config, extractor, device), ground_truth, world, job)
    on_main(lambda: finish_run(run, ground_truth, device))
    return run


def plan(run: Run, config: Config, num_photos: int, ground_truth: GroundTruth | None, world: World) -> None:
    """Let the log know what is to come."""
    num_scored = 0 if ground_truth is None else len(list_photos(ground_truth))
    run.log.job = plan_job(run, config, num_photos, num_scored, world)


def finish_run(run: Run, ground_truth: GroundTruth | None, device: torch.device) -> None:
    """Report, and print the scores."""
    truth = (ground_truth.annotations, ground_truth.image_root) if ground_truth else ()
    report = write_report(run.path, *truth, device=device)
    say(format_results(run.read_results()))
    run.log(f"report: {report}")
    run.log(next_steps(run, report))


def draw_scenes(run: Run, config: Config) -> None:
    """Where no photos are given: scenes to learn from, and others to score on where no ground truth is given."""
    if config.images:
        return
    scenes = config.scenes
    write_scenes(run.path / "scenes" / "train", scenes.num_train, scenes.size, config.seed)
    if config.eval is None:
        write_scenes(run.path / "scenes" / "eval", scenes.num_eval, scenes.size, config.seed + _EVAL_SEED)
    run.log(f"{scenes.num_train} scenes drawn to learn from")


def convert_truth(run: Run, config: Config) -> None:
    """Where a data set is named to score on: its ground truth as COCO JSON, in the run folder."""
    if config.eval_dataset is not None:
        dataset = open_dataset(config.eval_dataset, config.eval)
        convert_dataset(dataset, run.truth(config.eval_dataset), config.eval_num_images)


def find_data(run: Run, config: Config, given: ImageList | None) -> tuple[ImageList, GroundTruth | None]:
    """The photos to learn from, those given or drawn scenes, and the ground truth to score on."""
    drawn = run.path / "scenes"
    images = given or list_images(drawn / "train" / "images")
    if config.eval_dataset is not None:
        dataset = open_dataset(config.eval_dataset, config.eval)
        return images, GroundTruth(run.truth(config.eval_dataset), dataset.image_root, dataset)
    if config.eval is not None:
        return images, find_ground_truth(config.eval)
    return images, None if config.images else find_ground_truth(drawn / "eval")


def open_labels(run: Run, image_root: Path) -> LabelSet:
    """The labels of phase 1. Raises RunError when it has not run or found nothing."""
    if not run.labels.is_dir():
        raise RunError(f"{run.path} has no labels yet: add explore to --phases")
    labels = LabelSet(run.labels, image_root)
    if len(labels) == 0:
        raise RunError(f"phase 1 found no label in any photo, see {run.labels / 'manifest.jsonl'}")
    return labels


def segmenter_of(
    run: Run, phase: Phase, config: Config, extractor: FeatureExtractor | None, device: torch.device
) -> Callable[[Tensor], Forest]:
    """The function photo -> forest that stands for a phase: clustering itself, or the trained model."""
    if phase == "explore":
        return lambda image: label_image(image, extractor, config.explore)
    segmenter = Segmenter.from_pretrained(run.weights(phase), device=device)
    infer = segmenter.infer_config
    scored = Segmenter(segmenter.model, segmenter.model_config, replace(infer, min_score=infer.eval_min_score))
    return lambda image: scored([image])[0]


if __name__ == "__main__":
    sys.exit(main())
