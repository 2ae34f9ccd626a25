# SPDX-License-Identifier: Apache-2.0
"""The run folder: paths of its files, its start and its logs. A kill at any moment loses nothing already written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from sohes.configs.io import to_dict
from sohes.configs.pretrain import PretrainConfig
from sohes.configs.run import Config, Phase, load
from sohes.ops.environment import collect_env
from sohes.utils.console import RunLog
from sohes.utils.errors import SohesError
from sohes.utils.files import write_whole, write_whole_once

if TYPE_CHECKING:  # an optional package, imported only when it is used
    from torch.utils.tensorboard import SummaryWriter

PhaseName = Phase | Literal["pretrain"]

CONFIG_FILE, ENV_FILE = "config.json", "env.json"
# Results of a run. While none exist, the folder can be started again with other settings.
_RESULT_PATTERNS = ("labels/shard-*", "checkpoints/*/step-*", "weights/*/*", "predictions/*.json", "results.json")
# Everything a run writes into its folder. A folder with other files and no run is not a place for one.
_RUN_NAMES = {
    *(CONFIG_FILE, ENV_FILE, "log.txt", "metrics.jsonl", "explore.jsonl", "scoring.jsonl", "results.json"),
    *("report.html", "features.png", "features", "labels", "checkpoints", "weights", "predictions", "scenes", "eval"),
    "tensorboard",
}
# Settings that may change when a run is resumed.
_CHANGEABLE_SETTINGS = ("phases", "engine.", "explore.max_failures", "explore.num_workers", "explore.patience")


class RunError(SohesError, ValueError):
    """A run folder cannot be used as asked; the message says what to do."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. Creates missing folders."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


@dataclass
class Run:
    """A run folder. Its files show which phases are finished; there is no separate state."""

    path: Path
    is_main: bool = True
    """Whether this process writes files and logs: only one of several does."""
    log: RunLog = field(init=False)

    def __post_init__(self) -> None:
        if self.is_main:
            self.path.mkdir(parents=True, exist_ok=True)
        self.log = RunLog(self.path / "log.txt" if self.is_main else None, console=self.is_main)

    @property
    def labels(self) -> Path:
        return self.path / "labels"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    def weights(self, phase: PhaseName) -> Path:
        return self.path / "weights" / phase

    def checkpoints(self, phase: PhaseName) -> Path:
        return self.path / "checkpoints" / phase

    def predictions(self, phase: PhaseName) -> Path:
        return self.path / "predictions" / f"{phase}.json"

    def truth(self, dataset: str) -> Path:
        """Ground truth in COCO format, converted from a data set."""
        return self.path / "eval" / f"{dataset}.json"

    def is_trained(self, phase: PhaseName) -> bool:
        return (self.weights(phase) / "model.safetensors").is_file()

    def read_results(self) -> dict[str, dict[str, float | None]]:
        """Scores by phase, {} before the first evaluation. Raises RunError if the file holds something else."""
        results: dict[str, dict[str, float | None]] = {}
        if not self.results.is_file():
            return results
        try:
            results = json.loads(self.results.read_text())
        except ValueError as error:
            raise RunError(f"{self.results} is not JSON: {error}") from error
        if not isinstance(results, dict):
            raise RunError(f"{self.results}: expected scores by phase")
        return results

    def add_result(self, phase: PhaseName, scores: dict[str, Any]) -> None:
        """Add the scores of a phase, numbers or lists, to results.json; NaN becomes null."""
        clean = {key: None if value != value else value for key, value in scores.items()}
        write_json(self.results, {**self.read_results(), phase: clean})

    def add_scoring_time(self, phase: PhaseName, num_images: int, seconds: float) -> None:
        """Append a line to scoring.jsonl: how long the evaluation of a phase took."""
        row = {"phase": phase, "images": num_images, "seconds": round(seconds, 3)}
        with (self.path / "scoring.jsonl").open("a", encoding="ascii") as file:
            file.write(json.dumps(row) + "\n")

    @contextmanager
    def open_metrics(self, phase: PhaseName, start_step: int, tensorboard: bool = False) -> Iterator[Metrics]:
        """A writer for the metrics of steps from `start_step` on. Raises RunError if TensorBoard is not installed."""
        if not self.is_main:
            yield Metrics(None, phase, start_step)
            return
        board = open_tensorboard(self.path / "tensorboard" / phase, start_step) if tensorboard else None
        metrics = Metrics(self.path / "metrics.jsonl", phase, start_step, board)
        try:
            yield metrics
        finally:
            metrics.close()


class Metrics:
    """Appends rows to `metrics.jsonl`, first deleting those of steps from `start_step` on, which are repeated.

    Writes nothing without a path. board: TensorBoard writer that gets the same numbers.
    """

    def __init__(
        self, path: Path | None, phase: PhaseName, start_step: int, board: SummaryWriter | None = None
    ) -> None:
        self.phase = phase
        self.started = time.time()
        self._board = board
        self._file: TextIO | None = None
        if path is not None:
            if path.is_file():
                _drop_rows(path, phase, start_step)
            self._file = path.open("a", buffering=1)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._file is None:
            return
        row = {"phase": self.phase, "step": step, "time": round(time.time() - self.started, 3)}
        self._file.write(json.dumps({**row, **{k: float(f"{v:.6g}") for k, v in values.items()}}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def open_tensorboard(folder: Path, start_step: int) -> SummaryWriter:
    """A TensorBoard writer that resumes at `start_step`. Raises RunError if the package is not installed."""
    return import_tensorboard()(folder, purge_step=start_step)


def import_tensorboard() -> type[SummaryWriter]:
    """The class of TensorBoard's writer. Raises RunError if the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError(
            "engine.tensorboard needs a package that is not installed: pip install 'sohes[tensorboard]'"
        ) from error
    return SummaryWriter


def _drop_rows(path: Path, phase: PhaseName, start_step: int) -> None:
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line truncated by a kill
        if row["phase"] != phase or row["step"] < start_step:
            kept.append(line)
    write_whole(path, "".join(line + "\n" for line in kept))


def check_run(path: Path, config: Config | PretrainConfig, resume: bool) -> None:
    """Check that `open_run` can open this folder, without writing.

    Raises RunError when a new run would overwrite an old one, when there is nothing to resume, when a setting that
    changes the result (all but `phases`, `engine` and a few) differs on resume, or when the path is not a folder.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"--out {path}: expected a folder, this is a file")
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise RunError(f"--out {path}: expected a path in UTF-8, since safetensors opens no other") from error
    stored = path / CONFIG_FILE
    if path.is_dir() and not stored.is_file():
        others = sorted(one.name for one in path.iterdir() if one.name not in _RUN_NAMES and one.name[0] != ".")
        if others:
            name = os.fsencode(others[0]).decode(errors="backslashreplace")
            raise RunError(f"--out {path}: expected a new or empty folder, it holds {name}")
    if stored.is_file() and not resume:
        raise RunError(f"{path} already holds a run: continue it with --resume, or choose another --out")
    if resume and not stored.is_file():
        raise RunError(f"--resume: {path} holds no run (no config.json)")
    if resume:
        before, now = (_flatten(to_dict(c)) for c in (load(stored, type(config)), config))
        changed = [
            f"{key} ({before.get(key)} then, {now[key]} now)"
            for key in now
            if before.get(key) != now[key] and not key.startswith(_CHANGEABLE_SETTINGS)
        ]
        if changed:
            raise RunError(f"--resume: {path} was started with other settings: {', '.join(changed)}")


def open_run(path: Path, config: Config | PretrainConfig, resume: bool) -> Run:
    """Create a run folder, or open an old one with `resume`.

    Raises RunError as `check_run`, also when another process creates the same folder at the same time.
    """
    check_run(path, config, resume)
    run = Run(path)
    text = json.dumps(to_dict(config), indent=1) + "\n"
    if not write_whole_once(path / CONFIG_FILE, text):
        check_run(path, config, resume)  # raises if another process has just created the run
        write_whole(path / CONFIG_FILE, text)
    return run


def start_run(path: Path, config: Config | PretrainConfig, resume: bool, again: bool) -> bool:
    """Create or open the run folder and write env.json. Returns whether it is a new run.

    again: continue an existing run even without `resume`, because a launcher has restarted the job, or because it is
    one of several jobs that share a phase.

    Raises RunError as `check_run`.
    """
    exists = (path / CONFIG_FILE).is_file()
    try:
        run = open_run(path, config, resume or (again and exists))
    except RunError:
        if not again or exists or not (path / CONFIG_FILE).is_file():
            raise
        run, exists = open_run(path, config, True), True  # another of these jobs was faster
    write_json(run.path / ENV_FILE, collect_env())
    run.log.close()
    return not (resume or exists)


@contextmanager
def remove_failed_start(path: Path) -> Iterator[None]:
    """On an error in a new run without results, delete its config, so that a corrected command can use the folder.

    A kill and Ctrl-C are not errors: such a run can be resumed.
    """
    try:
        yield
    except Exception:
        if not any(next(path.glob(pattern), None) for pattern in _RESULT_PATTERNS):
            for name in (CONFIG_FILE, ENV_FILE):
                (path / name).unlink(missing_ok=True)
        raise


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
