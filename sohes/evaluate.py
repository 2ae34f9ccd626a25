# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.evaluate`: how good predicted masks are, class-agnostic, with their hierarchy."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sohes.cli import fail_clearly, parse
from sohes.engine.console import Progress
from sohes.evaluation import BadInput, score_files
from sohes.evaluation.tables import format_summary, to_json, write_csv


@dataclass
class Arguments:
    """Score predicted masks against true ones: class-agnostic average recall and precision as COCO counts them
    (equal to pycocotools), parent recall and ancestor F1. Prints percentages, n/a where a metric is not defined."""

    gt: Path
    """Ground truth, COCO JSON: RLE or polygons; crowds, annotators and parents are understood."""
    pred: Path
    """Predictions with scores: COCO JSON, or a bare list of COCO results."""
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
    with ExitStack() as stack:
        progress = None

        def on_image(_: int, total: int) -> None:
            nonlocal progress
            if progress is None:  # the files are read and agree: from here on it takes a while
                progress = stack.enter_context(Progress(total, "evaluate", "images"))
            progress.update(1)

        evaluator = score_files(args.gt, args.pred, max_dets=args.max_dets, on_image=on_image)
    summary = evaluator.summary()
    print(format_summary(summary))
    if args.out is not None:
        args.out.write_text(to_json(summary), encoding="utf-8")
    if args.per_image is not None:
        write_csv(args.per_image, evaluator.per_image())


if __name__ == "__main__":
    sys.exit(main())
