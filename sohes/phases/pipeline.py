# SPDX-License-Identifier: Apache-2.0
"""The whole job of `sohes.train`: prepare the data, run the three phases, score each, write the report.

1. `explore`: each photo is clustered into a forest of pseudo-labels; writes `labels/`.
2. `instruct`: a segmentation model learns these labels; writes `weights/instruct/`.
3. `correct`: the model learns from the labels and from its own EMA teacher; writes `weights/correct/`.

After each phase, its masks are compared with the ground truth, if there is one: `predictions/`, `results.json`.
Everything is written into the run folder (`sohes/engine/run.py`), and a run that was stopped continues from there.
Settings and their defaults are in `sohes/configs`, the training loop and checkpoints in `sohes/engine`, colours in
`sohes/visual`, the page in `sohes/report`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sohes.configs.run import PHASES, Config, Phase
from sohes.data.coco import LabelSet
from sohes.data.scenes import write_scenes
from sohes.data.sources import ImageList, list_images
from sohes.engine.run import CONFIG_FILE, Run, RunError, check_run, remove_failed_start, start_run
from sohes.evaluation.datasets.convert import convert_dataset
from sohes.evaluation.tables import format_results
from sohes.labels.features import FeatureExtractor
from sohes.labels.pipeline import label_image
from sohes.models.segmenter import Segmenter
from sohes.phases.checks import check_config, check_inputs, check_needs, check_part
from sohes.phases.correct import correct
from sohes.phases.explore import explore, prepare
from sohes.phases.instruct import instruct
from sohes.phases.plan import next_steps, plan_job
from sohes.phases.scoring import GroundTruth, find_ground_truth, list_photos, open_eval_dataset, score_phase
from sohes.report import write_report
from sohes.structures.forest import Forest
from sohes.utils.distributed import World, gather, on_main
from sohes.utils.streams import say

# Added to the seed of the held-out scenes, so that they differ from those to learn from.
_EVAL_SEED_OFFSET = 1_000_003


@dataclass(frozen=True)
class TrainJob:
    """A run to start or to resume. out: its folder. resume: continue the run in `out`. part: (K, N), make only the
    Kth of N parts of the labels; None: all of them."""

    config: Config
    out: Path
    resume: bool = False
    part: tuple[int, int] | None = None


def train_run(job: TrainJob, device: torch.device, world: World) -> Run:
    """Check the job, create or reopen its run folder, and run its phases. All processes of `world` call this.

    Raises SohesError for wrong paths, settings or weights, or a run folder that is in use.
    """
    config = job.config
    check_config(config, world.size)
    check_part(job.part, config, world)
    given = check_inputs(config)
    # A job that a launcher restarts, and jobs that make parts of the same labels, continue an existing run.
    again = max(gather(world.restarts)) > 0 or job.part is not None
    on_main(lambda: check_run(job.out, config, job.resume or (again and (job.out / CONFIG_FILE).is_file())))
    on_main(lambda: check_needs(job.out, config))
    extractor = prepare(config.explore, device) if "explore" in config.phases else None
    is_new = on_main(lambda: start_run(job.out, config, job.resume, again))
    is_alone = world.is_main and job.part is None  # a run shared with other jobs must not be removed
    with remove_failed_start(job.out) if is_new and is_alone else nullcontext():
        return run_phases(job, given, extractor, device, world)


def run_phases(
    job: TrainJob, given: ImageList | None, extractor: FeatureExtractor | None, device: torch.device, world: World
) -> Run:
    """Run the phases of the job, each followed by its scores, then the report, in an existing run folder.

    given: the photos of `--images`; None: scenes are drawn. extractor: of phase 1, if that is to run.
    """
    config, run = job.config, Run(job.out, world.is_main)
    _log_start(run, config, given, device, world)
    on_main(lambda: draw_scenes(run, config))
    on_main(lambda: convert_ground_truth(run, config))
    images, ground_truth = find_data(run, config, given)
    on_main(lambda: set_plan(run, config, len(images), ground_truth, world))

    for phase in PHASES:
        if phase not in config.phases:
            continue
        if phase == "explore":
            is_complete = run_explore(run, job, images, extractor, world)
            if not is_complete:
                run.log("explore: parts of other jobs are still missing; the last job finishes the phase")
                return run
        elif run.is_trained(phase):
            run.log(f"{phase}: trained before, see {run.weights(phase)}")
        elif phase == "instruct":
            instruct(run, config, open_labels(run, images.root), device, world)
        else:
            correct(run, config, open_labels(run, images.root), device, world)
        if ground_truth is not None and phase not in run.read_results():
            # Two jobs that make the last parts may both score the run.
            number = 0 if job.part is None else job.part[0]
            score_phase(run, phase, segmenter_of(run, phase, config, extractor, device), ground_truth, world, number)

    on_main(lambda: finish_run(run, ground_truth, device))
    return run


def run_explore(run: Run, job: TrainJob, images: ImageList, extractor: FeatureExtractor | None, world: World) -> bool:
    """Make the labels of the job. Returns whether the labels of all parts are complete."""
    summary = explore(
        images,
        run.path,
        job.config.explore,
        extractor=extractor,
        world=world if job.part is None else World(*job.part),
        wait=job.part is None,
        log=run.log,
    )
    return summary.is_complete


def _log_start(run: Run, config: Config, given: ImageList | None, device: torch.device, world: World) -> None:
    run.log(f"run folder {run.path}, preset {config.preset}, device {device}, seed {config.seed}")
    if given is not None and len(given.skipped):
        run.log(str(given.skipped))
    if config.images and config.preset == "tiny":
        run.log("preset tiny is made for drawn scenes, with coarse labels; for photos see --preset cpu, small, base")
    if world.size > 1:
        run.log(f"{world.size} processes, {config.engine.sharding}, start {world.restarts + 1}")


def draw_scenes(run: Run, config: Config) -> None:
    """Without `--images`, draw scenes to learn from, and without `--eval`, scenes to score on."""
    if config.images:
        return
    scenes = config.scenes
    write_scenes(run.path / "scenes" / "train", scenes.num_train, scenes.size, config.seed)
    if config.eval is None:
        write_scenes(run.path / "scenes" / "eval", scenes.num_eval, scenes.size, config.seed + _EVAL_SEED_OFFSET)
    run.log(f"{scenes.num_train} scenes drawn to learn from")


def convert_ground_truth(run: Run, config: Config) -> None:
    """With `--eval-dataset`, write its ground truth as COCO JSON into the run folder."""
    dataset = open_eval_dataset(config)
    if dataset is not None and config.eval_dataset is not None:
        convert_dataset(dataset, run.truth(config.eval_dataset), config.eval_num_images)


def find_data(run: Run, config: Config, given: ImageList | None) -> tuple[ImageList, GroundTruth | None]:
    """The photos to learn from, `given` or drawn scenes, and the ground truth to score on, if there is one."""
    drawn = run.path / "scenes"
    images = given or list_images(drawn / "train" / "images")
    dataset = open_eval_dataset(config)
    if dataset is not None and config.eval_dataset is not None:
        return images, GroundTruth(run.truth(config.eval_dataset), dataset.image_root, dataset)
    if config.eval is not None:
        return images, find_ground_truth(config.eval)
    return images, None if config.images else find_ground_truth(drawn / "eval")


def set_plan(run: Run, config: Config, num_photos: int, ground_truth: GroundTruth | None, world: World) -> None:
    """Give the log the plan of the job, from which it estimates the remaining time."""
    num_scored = 0 if ground_truth is None else len(list_photos(ground_truth))
    run.log.job = plan_job(run, config, num_photos, num_scored, world)


def open_labels(run: Run, image_root: Path) -> LabelSet:
    """The labels of phase 1. Raises RunError if there are none."""
    if not run.labels.is_dir():
        raise RunError(f"{run.path} has no labels yet: add explore to --phases")
    labels = LabelSet(run.labels, image_root)
    if len(labels) == 0:
        raise RunError(f"phase 1 found no label in any photo, see {run.labels / 'manifest.jsonl'}")
    return labels


def segmenter_of(
    run: Run, phase: Phase, config: Config, extractor: FeatureExtractor | None, device: torch.device
) -> Callable[[Tensor], Forest]:
    """The function photo -> forest whose masks are scored for a phase: clustering for phase 1, else the model."""
    if phase == "explore":
        if extractor is None:
            raise ValueError("expected the extractor of phase 1")
        return lambda image: label_image(image, extractor, config.explore)
    segmenter = Segmenter.from_pretrained(run.weights(phase), device=device)
    infer = segmenter.infer_config
    scored = Segmenter(segmenter.model, segmenter.model_config, replace(infer, min_score=infer.eval_min_score))
    return lambda image: scored([image])[0]


def finish_run(run: Run, ground_truth: GroundTruth | None, device: torch.device) -> None:
    """Write report.html, print the scores, and log what to do next."""
    if ground_truth is None:
        report = write_report(run.path, device=device)
    else:
        report = write_report(run.path, ground_truth.annotations, ground_truth.image_root, device=device)
    say(format_results(run.read_results()))
    run.log(f"report: {report}")
    run.log(next_steps(run, report))
