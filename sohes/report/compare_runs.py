# SPDX-License-Identifier: Apache-2.0
"""The comparison page from run folders or files of predictions: find, score, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor

from sohes.configs.evaluate import CompareConfig
from sohes.configs.run import PHASES
from sohes.data.images import read_annotated
from sohes.evaluation import BadInput, Plan, score
from sohes.evaluation.bootstrap import collect_sums
from sohes.evaluation.checks import align_ids
from sohes.evaluation.coco_index import CocoIndex
from sohes.report.compare import ComparedRun, write_comparison
from sohes.report.compare_photos import PhotoSource, run_names
from sohes.report.photos import ground_truth_of_run
from sohes.report.record import read_run

ShowProgress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def compare_runs(
    given: Sequence[Path],
    truth: Path,
    out: Path,
    dataset: str | None,
    read_photo: Callable[[str], Tensor],
    plan: Plan,
    progress: ShowProgress,
    config: CompareConfig,
) -> list[ComparedRun]:
    """Score every run on `truth` and write the page `out`.

    given: files of predictions, or folders of training runs, whose last phase is taken. dataset: the name under which
    `truth` was converted, None for other ground truth. read_photo: file name of the truth -> uint8 [3, H, W]. plan: of
    masks, class-agnostic. progress: title -> a context with a callback (done, total).

    Raises BadInput: a run has no predictions, or they do not fit the truth.
    """
    paths, names = [find_predictions(path) for path in given], run_names(given)
    if len(set(names)) < len(names):
        raise BadInput(f"--compare: expected different runs, got {', '.join(map(str, given))}")
    runs, indices = [], {}
    gt = CocoIndex(truth)
    for name, path in zip(names, paths, strict=True):
        with progress(f"score {name}") as on_image:
            evaluator = score(truth, path, plan, on_image)["mask"]
        runs.append(ComparedRun(name, path, evaluator.summary(), collect_sums(evaluator)))
        indices[name] = CocoIndex(path)
        align_ids(gt, indices[name])
    source = PhotoSource(dataset or truth.name, gt, indices, read_photo)
    write_comparison(out, runs, source, dataset, config)
    return runs


def find_predictions(path: Path) -> Path:
    """The file itself, or the predictions of the last phase of a run folder. Raises BadInput if there are none."""
    if path.is_dir():
        found = [path / "predictions" / f"{phase}.json" for phase in reversed(PHASES)]
        return next((file for file in found if file.is_file()), None) or _refuse(path, "run folder with predictions/")
    return path if path.is_file() else _refuse(path, "file of predictions or run folder")


def truth_of_run(path: Path) -> Path:
    """The ground truth that a run folder was scored on. Raises BadInput if the path is no run folder or has none."""
    found = ground_truth_of_run(read_run(path)) if path.is_dir() else None
    if found is None:
        raise BadInput(f"{path} does not say what it was scored on: give --gt, or --dataset and --root")
    return found


def photo_reader(truth: Path) -> Callable[[str], Tensor]:
    """A reader of photos by file name, from `images/` beside the ground truth if there is one, else from its folder."""
    beside = truth.parent / "images"
    root = beside if beside.is_dir() else truth.parent
    return lambda name: read_annotated(root / name)


def _refuse(path: Path, expected: str) -> Path:
    raise BadInput(f"--compare {path}: expected a {expected}")
