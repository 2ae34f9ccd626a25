# SPDX-License-Identifier: Apache-2.0
"""The work of `python -m sohes.evaluate`: score predictions, or compare several runs, and write the results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from sohes.baselines.other_annotators import write_others
from sohes.configs.evaluate import BaselineConfig, EvaluateConfig
from sohes.configs.run import ExploreConfig, load
from sohes.evaluation import BadInput, Plan, score
from sohes.evaluation.datasets.base import DataSet
from sohes.evaluation.datasets.convert import choose_evenly, convert_dataset
from sohes.evaluation.datasets.registry import open_dataset
from sohes.evaluation.results import EARLIER, OutputKind, is_result
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
from sohes.utils.distributed import World, on_main
from sohes.utils.files import write_whole
from sohes.utils.streams import say

_KINDS: Mapping[str, OutputKind] = {"--out": "metrics", "--per-image": "table"}


def check_options(config: EvaluateConfig, world: World) -> None:
    """Raises BadInput for the first option that does not go with the others; ranges were checked before."""
    if not config.max_dets or len(set(config.max_dets)) < len(config.max_dets):
        raise BadInput(f"--max-dets: expected different numbers, got {list(config.max_dets)}")
    if world.size > 1 and config.shards is None:
        raise BadInput(f"{world.size} processes need --shards, a folder that all can reach")
    by_others = config.baseline == "other-annotators"
    if (config.pred is None and not by_others) == (not config.compare):
        raise BadInput("expected either --pred FILE or --compare RUN RUN ...")
    has_truth = config.gt is not None or config.dataset is not None or config.compare
    if (config.gt is not None and config.dataset is not None) or not has_truth:
        raise BadInput("expected either --gt FILE or --dataset NAME --root FOLDER")
    is_oracle = True if config.baseline == "tree-oracle" else None
    scored = config.pred or by_others or None
    for option, value, other, needed in (
        ("--root", config.root, "--dataset", config.dataset),
        ("--dataset", config.dataset, "--root, the folder it lies in", config.root),
        ("--num-images", config.num_images, "--dataset", config.dataset),
        ("--baseline", None if by_others else config.baseline, "--dataset", config.dataset),
        ("--explore", config.explore, "--baseline tree-oracle", is_oracle),
        ("--baseline", config.baseline, "--pred", scored),
        ("--per-image", config.per_image, "--pred", scored),
        ("--shards", config.shards, "--pred", config.pred),
        ("--iou-type", None if config.iou_type == "mask" else config.iou_type, "--pred", scored),
        ("--class-aware", config.class_aware or None, "--pred", scored),
        ("a launch of several processes", True if world.size > 1 else None, "--pred", config.pred),
    ):
        if value is not None and needed is None:
            raise BadInput(f"{option} goes with {other}")
    if world.is_main:
        others = {"--gt": config.gt, "--pred": config.pred} | {f"--compare {path}": path for path in config.compare}
        for option, path in (("--out", config.out), ("--per-image", config.per_image)):
            if path is not None:
                check_output(option, path, others, "page" if config.compare and option == "--out" else _KINDS[option])
                others[option] = path


def check_output(option: str, path: Path, others: Mapping[str, Path | None], kind: OutputKind) -> None:
    """Raises BadInput if the file cannot be written, is one of the ``others`` (by option), or holds something else than
    an earlier result of this kind. Computes nothing."""
    for other, taken in others.items():
        if taken is not None and os.path.realpath(path) == os.path.realpath(taken) and not _is_special(path):
            raise BadInput(f"{option} {path}: the same file as {other}, expected another")
    if not path.parent.is_dir():
        raise BadInput(f"{option} {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise BadInput(f"{option} {path}: a folder, expected a file")
    if _is_special(path):
        return
    try:
        with TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass
    except OSError as error:
        raise BadInput(f"{option} {path}: cannot be written, {error.strerror}") from error
    if path.exists() and not is_result(path, kind):
        what = EARLIER[kind]
        raise BadInput(f"{option} {path}: exists and is no {what}, so it is not replaced: give another file")


def run_evaluation(config: EvaluateConfig, world: World) -> None:
    """Evaluate or compare with options that ``check_options`` accepts."""
    if config.compare:
        compare(config)
    elif config.pred is not None:
        evaluate(config, config.pred, world)
    else:  # of the baseline other-annotators, see check_options
        with TemporaryDirectory(prefix="sohes-evaluate-") as folder:
            evaluate(config, Path(folder) / "others.json", world)


def evaluate(config: EvaluateConfig, pred: Path, world: World) -> None:
    """Score the predictions, print the metrics, write the requested files. Raises BadInput."""
    truth, measured = on_main(lambda: find_truth(config, pred))
    plan = Plan(
        max_dets=config.max_dets,
        iou_types=("mask", "box") if config.iou_type == "both" else (config.iou_type,),
        class_aware=config.class_aware,
        threads=config.threads,
        shards=config.shards,
        world=world,
        ignore_others=config.dataset is not None,
    )
    with _progress("evaluate") as on_image:
        evaluations = score(truth, pred, plan, on_image if world.is_main else None)
    if not world.is_main:
        return
    results = summarize(evaluations) | measured
    try:
        say(format_summary(results))
    finally:  # the files are written even if the output stream is closed
        if config.out is not None:
            write_whole(config.out, to_json(results | granularity(evaluations)))
        if config.per_image is not None:
            write_rows(config.per_image, per_image(evaluations))


def find_truth(config: EvaluateConfig, pred: Path) -> tuple[Path, dict[str, float]]:
    """The ground truth as COCO JSON, and what was measured of the baseline. Converts the data set and runs the
    baseline, if these are given."""
    if config.baseline == "other-annotators":
        return predict_others(config, pred)
    dataset = _open_dataset(config)
    if dataset is None:
        assert config.gt is not None  # see check_options
        return config.gt, {}
    if config.baseline is None and not pred.is_file():  # before a long conversion
        raise BadInput(f"{pred}: no such file")
    truth = _convert(config, dataset, pred)
    if config.baseline is None:
        return truth, {}
    # Imported here, as phase 1's features take seconds to import.
    from sohes.baselines.run import make_baseline, predict_dataset

    explore = ExploreConfig() if config.explore is None else load(config.explore / "config.json").explore
    baseline = make_baseline(config.baseline, BaselineConfig(), explore)
    keys = choose_evenly(dataset.keys(), config.num_images)
    started = time.monotonic()
    with _progress(config.baseline) as on_image:
        predict_dataset(baseline, config.baseline, dataset, keys, pred, on_image)
    return truth, _seconds(started, len(keys))


def predict_others(config: EvaluateConfig, pred: Path) -> tuple[Path, dict[str, float]]:
    """Write the segments of each annotator's colleagues to ``pred``; see ``find_truth``."""
    if config.gt is not None and not config.gt.exists():
        raise BadInput(f"{config.gt}: no such file")
    dataset = _open_dataset(config) or open_dataset("plain", config.gt or Path())
    keys = choose_evenly(dataset.keys(), config.num_images)
    truth = pred.with_name(f"{pred.stem}.annotators.json")
    started = time.monotonic()
    with _progress("other-annotators") as on_image:
        num_photos = write_others(dataset, keys, pred, truth, BaselineConfig(), on_image)
    return truth, _seconds(started, num_photos)


def compare(config: EvaluateConfig) -> None:
    """Score all runs in the same way, print their scores, write the page. Raises BadInput."""
    # Imported here, as drawing pages and pictures takes a second to import.
    from sohes.report.compare_runs import compare_runs, find_predictions, photo_reader, truth_of_run

    out = config.out or Path("compare.html")
    if config.out is None:
        check_output("--out", out, {}, "page")
    for path in config.compare:
        find_predictions(path)
    dataset = _open_dataset(config)
    if dataset is None:
        truth = config.gt or truth_of_run(config.compare[0])
        read_photo = photo_reader(truth)
    else:
        truth, read_photo = _convert(config, dataset, out), dataset.read_image
    plan = Plan(max_dets=config.max_dets, threads=config.threads, ignore_others=dataset is not None)
    runs = compare_runs(config.compare, truth, out, config.dataset, read_photo, plan, _progress, config.bootstrap)
    say(format_results({run.name: run.summary for run in runs}))
    say(f"comparison: {out}")


def _seconds(started: float, num_photos: int) -> dict[str, float]:
    """The metric of a baseline's speed: wall time, files included."""
    return {"seconds_per_photo": (time.monotonic() - started) / num_photos if num_photos else float("nan")}


def _open_dataset(config: EvaluateConfig) -> DataSet | None:
    if config.dataset is None or config.root is None:
        return None
    return open_dataset(config.dataset, config.root)


def _convert(config: EvaluateConfig, dataset: DataSet, beside: Path) -> Path:
    """The data set as COCO JSON, in a file in the folder of ``beside``."""
    with _progress(f"read {config.dataset}") as on_image:
        path = beside.with_name(f"{beside.stem}.{config.dataset}.json")
        return convert_dataset(dataset, path, config.num_images, on_image)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (images done, images in total) that shows a progress bar from its first call on."""
    with ExitStack() as stack:
        progress: Progress | None = None

        def on_image(_: int, total: int) -> None:
            nonlocal progress
            if progress is None:  # the input files are read and checked by now
                progress = stack.enter_context(Progress(total, title, "images"))
            progress.update(1)

        yield on_image


def _is_special(path: Path) -> bool:
    """Whether the path is a device or a pipe."""
    return path.exists() and not path.is_file()
