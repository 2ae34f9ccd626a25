# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.evaluate`: how good predicted masks are, class-agnostic, with their hierarchy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from sohes.cli import fail_clearly, parse
from sohes.config import BaselineConfig, BaselineName, ExploreConfig, load
from sohes.engine.console import Progress
from sohes.engine.distributed import World, find_world, on_main, process_group
from sohes.evaluation import BadInput, Plan, score
from sohes.evaluation.datasets.convert import choose_evenly, convert_dataset
from sohes.evaluation.datasets.registry import DataSetName, open_dataset
from sohes.evaluation.tables import format_summary, granularity, per_image, summarize, to_json, write_rows
from sohes.files import write_whole


@dataclass
class Arguments:
    """Score predicted masks against true ones: class-agnostic average recall and precision as COCO counts them
    (equal to pycocotools), and how well the hierarchy agrees; docs/evaluation.md has the formulas. Prints percentages,
    n/a where a metric is not defined. Under torchrun or srun the processes share the images, see --shards."""

    pred: Path
    """Predictions with scores: COCO JSON, or a bare list of COCO results. With --baseline they are written here."""
    gt: Path | None = None
    """Ground truth, COCO JSON: RLE or polygons; crowds, annotators and parents are understood."""
    dataset: DataSetName | None = None
    """Instead of --gt: the data set whose official layout lies under --root; see docs/datasets.md. It is converted
    once, into a file beside --pred. Predictions of photos that are not in it are left out."""
    root: Path | None = None
    """Folder of --dataset."""
    num_images: int | None = None
    """Take only so many images of --dataset, at equal distances, >= 1. Default: all."""
    baseline: BaselineName | None = None
    """Predict with a classical segmenter, or with the best nodes of phase 1's merge tree (an oracle that sees the
    truth: the ceiling of phase 1), and score that."""
    explore: Path | None = None
    """Run folder whose settings of phase 1 tree-oracle takes. Default: phase 1's own defaults."""
    out: Path | None = None
    """Write the metrics here as JSON: fractions from 0 to 1, null where not defined, and the granularity curve."""
    per_image: Path | None = None
    """Write a table with one line for each image here: JSON lines where the name ends in .jsonl, else CSV."""
    max_dets: tuple[int, ...] = (1, 10, 100, 1000)
    """How many of an image's best predictions count, each at least 1; AP and AR by size use the largest."""
    iou_type: Literal["mask", "box", "both"] = "mask"
    """What is compared. Metrics of boxes have names that begin with box-."""
    class_aware: bool = False
    """Match within categories (category_id), as COCO's detection metrics do, and take the mean over them. Default:
    categories are not looked at."""
    threads: int | None = None
    """Images scored at a time, >= 1. Default: as many as torch uses (OMP_NUM_THREADS)."""
    shards: Path | None = None
    """Folder that keeps what is scored, 64 images a file: the same command goes on from there after a kill. Several
    processes must have one that all can reach."""


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    with fail_clearly("sohes.evaluate"):
        args = parse(Arguments, given, prog="python -m sohes.evaluate")
        world = find_world()
        with nullcontext() if world.size == 1 else process_group(world, torch.device("cpu")):
            evaluate(args, world)
    return 0


def evaluate(args: Arguments, world: World) -> None:
    """Score, print, write. Raises BadInput for everything a person can mend."""
    if not args.max_dets or min(args.max_dets) < 1 or len(set(args.max_dets)) < len(args.max_dets):
        raise BadInput(f"--max-dets: expected different numbers from 1 up, got {list(args.max_dets)}")
    if args.threads is not None and args.threads < 1:
        raise BadInput(f"--threads {args.threads}: expected at least 1")
    if world.size > 1 and args.shards is None:
        raise BadInput(f"{world.size} processes need --shards, a folder that all can reach")
    for path in (args.out, args.per_image):
        if path is not None and not path.parent.is_dir():
            raise BadInput(f"{path}: the folder {path.parent} does not exist")
    truth = on_main(lambda: find_truth(args))
    plan = Plan(
        max_dets=args.max_dets,
        iou_types=("mask", "box") if args.iou_type == "both" else (args.iou_type,),
        class_aware=args.class_aware,
        threads=args.threads,
        shards=args.shards,
        world=world,
        ignore_others=args.dataset is not None,
    )
    with _progress("evaluate") as on_image:
        evaluators = score(truth, args.pred, plan, on_image if world.is_main else None)
    if not world.is_main:
        return
    results = summarize(evaluators)
    print(format_summary(results))
    if args.out is not None:
        write_whole(args.out, to_json(results | granularity(evaluators)))
    if args.per_image is not None:
        write_rows(args.per_image, per_image(evaluators))


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (images done, images in all) that shows progress from its first call on."""
    with ExitStack() as stack:
        progress = None

        def on_image(_: int, total: int) -> None:
            nonlocal progress
            if progress is None:  # the files are read and agree: from here on it takes a while
                progress = stack.enter_context(Progress(total, title, "images"))
            progress.update(1)

        yield on_image


def find_truth(args: Arguments) -> Path:
    """The ground truth as COCO JSON, converted from a data set where one is named; runs the baseline asked for."""
    if (args.gt is None) == (args.dataset is None):
        raise BadInput("expected either --gt FILE or --dataset NAME --root FOLDER")
    if args.dataset is None:
        given = {"--root": args.root, "--num-images": args.num_images, "--baseline": args.baseline}
        for option, value in given.items():
            if value is not None:
                raise BadInput(f"{option} goes with --dataset")
        return args.gt
    if args.root is None:
        raise BadInput(f"--dataset {args.dataset} needs --root, the folder it lies in")
    if args.num_images is not None and args.num_images < 1:
        raise BadInput(f"--num-images {args.num_images}: expected at least 1")
    if args.explore is not None and args.baseline != "tree-oracle":
        raise BadInput("--explore goes with --baseline tree-oracle")
    if args.baseline is None and not args.pred.is_file():  # before a long conversion
        raise BadInput(f"{args.pred}: no such file")
    dataset = open_dataset(args.dataset, args.root)
    truth = args.pred.with_name(f"{args.pred.stem}.{args.dataset}.json")
    with _progress(f"read {args.dataset}") as on_image:
        convert_dataset(dataset, truth, args.num_images, on_image)
    if args.baseline is not None:
        # Here, as phase 1's features take seconds to import.
        from sohes.baselines.run import make_baseline, predict_dataset

        explore = ExploreConfig() if args.explore is None else load(args.explore / "config.json").explore
        baseline = make_baseline(args.baseline, BaselineConfig(), explore)
        keys = choose_evenly(dataset.keys(), args.num_images)
        with _progress(args.baseline) as on_image:
            predict_dataset(baseline, args.baseline, dataset, keys, args.pred, on_image)
    return truth


if __name__ == "__main__":
    sys.exit(main())
