# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.evaluate`: how good predicted masks are, class-agnostic, with their hierarchy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sohes.baselines.run import BaselineName, make_baseline, predict_dataset
from sohes.cli import fail_clearly, parse
from sohes.config import BaselineConfig, ExploreConfig, load
from sohes.engine.console import Progress
from sohes.evaluation import BadInput, score_files
from sohes.evaluation.datasets.convert import choose_evenly, convert_dataset
from sohes.evaluation.datasets.registry import DataSetName, open_dataset
from sohes.evaluation.tables import format_summary, to_json, write_csv


@dataclass
class Arguments:
    """Score predicted masks against true ones: class-agnostic average recall and precision as COCO counts them
    (equal to pycocotools), parent recall and ancestor F1. Prints percentages, n/a where a metric is not defined."""

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
    """Write the metrics here as JSON: fractions from 0 to 1, null where not defined."""
    per_image: Path | None = None
    """Write a CSV table with one line for each image here."""
    max_dets: tuple[int, ...] = (1, 10, 100, 1000)
    """How many of an image's best predictions count, each at least 1; AP and AR by size use the largest."""


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    with fail_clearly("sohes.evaluate"):
        evaluate(parse(Arguments, given, prog="python -m sohes.evaluate"))
    return 0


def evaluate(args: Arguments) -> None:
    """Score, print, write. Raises BadInput for everything a person can mend."""
    if not args.max_dets or min(args.max_dets) < 1 or len(set(args.max_dets)) < len(args.max_dets):
        raise BadInput(f"--max-dets: expected different numbers from 1 up, got {list(args.max_dets)}")
    for path in (args.out, args.per_image):
        if path is not None and not path.parent.is_dir():
            raise BadInput(f"{path}: the folder {path.parent} does not exist")
    truth = find_truth(args)
    with _progress("evaluate") as on_image:
        evaluator = score_files(
            truth, args.pred, max_dets=args.max_dets, on_image=on_image, ignore_others=args.dataset is not None
        )
    summary = evaluator.summary()
    print(format_summary(summary))
    if args.out is not None:
        args.out.write_text(to_json(summary), encoding="utf-8")
    if args.per_image is not None:
        write_csv(args.per_image, evaluator.per_image())


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
        explore = ExploreConfig() if args.explore is None else load(args.explore / "config.json").explore
        baseline = make_baseline(args.baseline, BaselineConfig(), explore)
        keys = choose_evenly(dataset.keys(), args.num_images)
        with _progress(args.baseline) as on_image:
            predict_dataset(baseline, args.baseline, dataset, keys, args.pred, on_image)
    return truth


if __name__ == "__main__":
    sys.exit(main())
