# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.evaluate`: how good predicted masks are, class-agnostic, with their hierarchy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Literal

from sohes.cli.short_help import answer_help

if __name__ == "__main__":
    answer_help("evaluate", sys.argv[1:])  # before torch is imported, which takes seconds

import torch

from sohes.cli.command import fail_clearly, parse
from sohes.cli.options import check_ranges
from sohes.configs.evaluate import BaselineConfig, CompareConfig
from sohes.configs.ranges import at_least, between
from sohes.configs.run import BaselineName, DataSetName, ExploreConfig, load
from sohes.evaluation import BadInput, Plan, score
from sohes.evaluation.datasets.base import DataSet
from sohes.evaluation.datasets.convert import choose_evenly, convert_dataset
from sohes.evaluation.datasets.registry import open_dataset
from sohes.evaluation.protocol import MOST_DETS
from sohes.evaluation.tables import (
    format_results,
    format_summary,
    granularity,
    per_image,
    summarize,
    to_json,
    write_rows,
)
from sohes.utils.console import Progress
from sohes.utils.distributed import World, find_world, on_main, process_group
from sohes.utils.files import write_whole
from sohes.utils.streams import say


@dataclass
class Arguments:
    """Score predicted masks against true ones: class-agnostic average recall and precision as COCO counts them
    (equal to pycocotools), and how well the hierarchy agrees; docs/evaluation.md has the formulas. Prints percentages,
    n/a where a metric is not defined. Under torchrun or srun the processes share the images, see --shards."""

    pred: Path | None = None
    """Predictions with scores: COCO JSON, or a bare list of COCO results. With --baseline they are written here."""
    gt: Path | None = None
    """Ground truth, COCO JSON: RLE or polygons; crowds, annotators and parents are understood."""
    dataset: DataSetName | None = None
    """Instead of --gt: the data set whose official layout lies under --root; see docs/datasets.md. It is converted
    once, into a file beside --pred. Predictions of photos that are not in it are left out."""
    root: Path | None = None
    """Folder of --dataset."""
    num_images: Annotated[int | None, at_least(1)] = None
    """Take only so many images of --dataset, at equal distances. Default: all."""
    baseline: BaselineName | None = None
    """Predict with a classical segmenter, or with the best nodes of phase 1's merge tree (an oracle that sees the
    truth: the ceiling of phase 1), and score that."""
    explore: Path | None = None
    """Run folder whose settings of phase 1 tree-oracle takes. Default: phase 1's own defaults."""
    compare: tuple[Path, ...] = ()
    """Instead of one file of predictions: several, or run folders, to set side by side in a page with confidence
    intervals and pictures. Where no ground truth is named, that of the first run folder is taken."""
    bootstrap: CompareConfig = field(default_factory=CompareConfig)
    out: Path | None = None
    """Write the metrics here as JSON: fractions from 0 to 1, null where not defined, and the granularity curve. Of
    a comparison: the page, by default compare.html."""
    per_image: Path | None = None
    """Write a table with one line for each image here: JSON lines where the name ends in .jsonl, else CSV."""
    max_dets: Annotated[tuple[int, ...], between(1, MOST_DETS)] = (1, 10, 100, 1000)
    """How many of an image's best predictions count: different numbers, of which AP and AR by size use the largest."""
    iou_type: Literal["mask", "box", "both"] = "mask"
    """What is compared. Metrics of boxes have names that begin with box-."""
    class_aware: bool = False
    """Match within categories (category_id), as COCO's detection metrics do, and take the mean over them. Default:
    categories are not looked at."""
    threads: Annotated[int | None, between(1, 1024)] = None
    """Images scored at a time. Default: as many as torch uses (OMP_NUM_THREADS)."""
    shards: Path | None = None
    """Folder that keeps what is scored, 64 images a file: the same command goes on from there after a kill. Several
    processes must have one that all can reach."""


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    with fail_clearly("sohes.evaluate"):
        args = parse(Arguments, given, prog="python -m sohes.evaluate")
        world = find_world()
        check_options(args, world)
        with nullcontext() if world.size == 1 else process_group(world, torch.device("cpu")):
            compare(args) if args.compare else evaluate(args, world)
    return 0


def check_options(args: Arguments, world: World) -> None:
    """Raises BadInput or OptionError for the first option that does not fit, or that does not go with the others."""
    check_ranges(args)
    if not args.max_dets or len(set(args.max_dets)) < len(args.max_dets):
        raise BadInput(f"--max-dets: expected different numbers, got {list(args.max_dets)}")
    if world.size > 1 and args.shards is None:
        raise BadInput(f"{world.size} processes need --shards, a folder that all can reach")
    if (args.pred is None) == (not args.compare):
        raise BadInput("expected either --pred FILE or --compare RUN RUN ...")
    if (args.gt is not None and args.dataset is not None) or not (args.gt or args.dataset or args.compare):
        raise BadInput("expected either --gt FILE or --dataset NAME --root FOLDER")
    is_oracle = True if args.baseline == "tree-oracle" else None
    single = args.pred
    for option, value, other, needed in (
        ("--root", args.root, "--dataset", args.dataset),
        ("--dataset", args.dataset, "--root, the folder it lies in", args.root),
        ("--num-images", args.num_images, "--dataset", args.dataset),
        ("--baseline", args.baseline, "--dataset", args.dataset),
        ("--explore", args.explore, "--baseline tree-oracle", is_oracle),
        ("--baseline", args.baseline, "--pred", single),
        ("--per-image", args.per_image, "--pred", single),
        ("--shards", args.shards, "--pred", single),
        ("--iou-type", None if args.iou_type == "mask" else args.iou_type, "--pred", single),
        ("--class-aware", args.class_aware or None, "--pred", single),
        ("a launch of several processes", True if world.size > 1 else None, "--pred", single),
    ):
        if value is not None and needed is None:
            raise BadInput(f"{option} goes with {other}")
    if world.is_main:
        others = {"--gt": args.gt, "--pred": args.pred} | {f"--compare {path}": path for path in args.compare}
        for option, path in (("--out", args.out), ("--per-image", args.per_image)):
            if path is not None:
                check_output(option, path, others)
                others[option] = path


def check_output(option: str, path: Path, others: Mapping[str, Path | None]) -> None:
    """Raises BadInput where a file could not be written, or would take the place of one of the ``others`` (by option),
    before anything is computed for it."""
    for other, taken in others.items():
        if taken is not None and os.path.realpath(path) == os.path.realpath(taken) and not is_special(path):
            raise BadInput(f"{option} {path}: the same file as {other}, expected another")
    if not path.parent.is_dir():
        raise BadInput(f"{option} {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise BadInput(f"{option} {path}: a folder, expected a file")
    if is_special(path):
        return
    try:
        with TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass
    except OSError as error:
        raise BadInput(f"{option} {path}: cannot be written, {error.strerror}") from error


def is_special(path: Path) -> bool:
    """A device or a pipe, which is written to as it is."""
    return path.exists() and not path.is_file()


def evaluate(args: Arguments, world: World) -> None:
    """Score, print, write. Raises BadInput for everything a person can mend."""
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
        evaluations = score(truth, args.pred, plan, on_image if world.is_main else None)
    if not world.is_main:
        return
    results = summarize(evaluations)
    try:
        say(format_summary(results))
    finally:  # files do not depend on a stream
        if args.out is not None:
            write_whole(args.out, to_json(results | granularity(evaluations)))
        if args.per_image is not None:
            write_rows(args.per_image, per_image(evaluations))


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
    if args.dataset is None:
        return args.gt
    if args.baseline is None and not args.pred.is_file():  # before a long conversion
        raise BadInput(f"{args.pred}: no such file")
    dataset = open_dataset(args.dataset, args.root)
    truth = convert(args, dataset, args.pred)
    if args.baseline is not None:
        # Here, as phase 1's features take seconds to import.
        from sohes.baselines.run import make_baseline, predict_dataset

        explore = ExploreConfig() if args.explore is None else load(args.explore / "config.json").explore
        baseline = make_baseline(args.baseline, BaselineConfig(), explore)
        keys = choose_evenly(dataset.keys(), args.num_images)
        with _progress(args.baseline) as on_image:
            predict_dataset(baseline, args.baseline, dataset, keys, args.pred, on_image)
    return truth


def convert(args: Arguments, dataset: DataSet, beside: Path) -> Path:
    """The data set as COCO JSON, in a file beside `beside`."""
    with _progress(f"read {args.dataset}") as on_image:
        path = beside.with_name(f"{beside.stem}.{args.dataset}.json")
        return convert_dataset(dataset, path, args.num_images, on_image)


def compare(args: Arguments) -> None:
    """Score all runs alike, print their scores, write the page. Raises BadInput."""
    # Here, as what draws pages and pictures takes a second to import.
    from sohes.report.compare_runs import compare_runs, find_predictions, photo_reader, truth_of_run

    out = args.out or Path("compare.html")
    if args.out is None:
        check_output("--out", out, {})
    for path in args.compare:
        find_predictions(path)
    if args.dataset is not None:
        dataset = open_dataset(args.dataset, args.root)
        truth, read_photo = convert(args, dataset, out), dataset.read_image
    else:
        truth = args.gt or truth_of_run(args.compare[0])
        read_photo = photo_reader(truth)
    plan = Plan(max_dets=args.max_dets, threads=args.threads, ignore_others=args.dataset is not None)
    runs = compare_runs(args.compare, truth, out, args.dataset, read_photo, plan, _progress, args.bootstrap)
    say(format_results({run.name: run.summary for run in runs}))
    say(f"comparison: {out}")


if __name__ == "__main__":
    sys.exit(main())
