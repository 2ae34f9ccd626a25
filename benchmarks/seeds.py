# SPDX-License-Identifier: Apache-2.0
"""Mean and standard deviation of the scores of the default run over seeds, per phase, and with other parents.

    OMP_NUM_THREADS=2 python benchmarks/seeds.py runs/seeds --seeds 0 1 2
    OMP_NUM_THREADS=2 python benchmarks/seeds.py runs/no-head --seeds 0 1 2 --model.no-ancestor-head

Scenes, weights, views and points all depend on the seed. Runs are in FOLDER/seed-K: finished ones are only read,
interrupted ones are resumed. Other options are passed to `sohes.train`. Prints three tables, in per cent, as mean and
standard deviation over seeds: the scores of every phase; the gain of each phase over the one before, also per seed; and
ancestor F1 of the masks of phase 3 with parents from the ancestor head and from coverage alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sohes.configs.run import PHASES
from sohes.data.coco import LabelSet, write_coco
from sohes.evaluation import score_files
from sohes.evaluation.tables import COMPARED
from sohes.structures.forest import Forest, build_forest

Scores = Mapping[str, Mapping[str, float | None]]
GAINS = ("AR@1000", "AR@100", "AR@10", "AP", "parent_recall")
COVERS = (0.8, 0.9)


def run_seed(out: Path, seed: int, options: Sequence[str]) -> None:
    """Runs the default run of one seed in a process of its own, or resumes it."""
    started = ["--resume"] if (out / "config.json").is_file() else ["--seed", str(seed), *options]
    subprocess.run([sys.executable, "-m", "sohes.train", "--out", str(out), *started], check=True)


def coverage_f1(run: Path, cover: float) -> float:
    """Ancestor F1 of the masks of phase 3 with parents from coverage alone."""
    found = LabelSet(run / "predictions" / "correct.json", run)
    images, annotations = [], []
    for image in found:
        forest = Forest(image.forest.masks, image.forest.scores, build_forest(image.forest.masks, cover))
        annotations += forest.to_coco(image.image_id, len(annotations) + 1)
        height, width = image.size
        images.append({"id": image.image_id, "file_name": image.path.name, "width": width, "height": height})
    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder, "coverage.json"), images, annotations)
        truth = run / "scenes" / "eval" / "annotations.json"
        return score_files(truth, Path(folder, "coverage.json")).summary()["ancestor_f1"]


def spread(values: Sequence[float]) -> str:
    """`31.2 +- 0.8`: mean and standard deviation over seeds, in per cent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} +- {100 * deviation:.1f}"


def print_scores(runs: Sequence[Scores]) -> None:
    metrics = [name for name in COMPARED if name != "masks_per_image" and runs[0][PHASES[0]].get(name) is not None]
    print("| phase | " + " | ".join(metrics) + " |\n|" + " --- |" * (len(metrics) + 1))
    for phase in PHASES:
        print(
            f"| {phase} | " + " | ".join(spread([run[phase][name] or 0.0 for run in runs]) for name in metrics) + " |"
        )


def print_gains(runs: Sequence[Scores]) -> None:
    print("\n| gain | " + " | ".join(GAINS) + " |\n|" + " --- |" * (len(GAINS) + 1))
    for before, after in itertools.pairwise(PHASES):
        cells = []
        for name in GAINS:
            gains = [run[after][name] - run[before][name] for run in runs]
            cells.append(f"{spread(gains)} ({', '.join(f'{100 * gain:+.1f}' for gain in gains)})")
        print(f"| {before} -> {after} | " + " | ".join(cells) + " |")


def print_ancestors(folders: Sequence[Path], runs: Sequence[Scores]) -> None:
    rows = {"ancestor head": [run["correct"]["ancestor_f1"] for run in runs]}
    for cover in COVERS:
        rows[f"coverage of {cover} alone"] = [coverage_f1(folder, cover) for folder in folders]
    print("\n| parents from | ancestor F1 |\n| --- | --- |")
    for name, values in rows.items():
        print(f"| {name} | {spread(values)} ({', '.join(f'{100 * value:.1f}' for value in values)}) |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args, options = parser.parse_known_args()
    folders = [args.folder / f"seed-{seed}" for seed in args.seeds]
    for seed, folder in zip(args.seeds, folders, strict=True):
        run_seed(folder, seed, options)
    runs = [json.loads((folder / "results.json").read_text()) for folder in folders]
    print_scores(runs)
    print_gains(runs)
    print_ancestors(folders, runs)


if __name__ == "__main__":
    main()
