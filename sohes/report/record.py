# SPDX-License-Identifier: Apache-2.0
"""The small files of a run folder as one record. Any of them may be missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sohes.configs.run import PHASES

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """The small files of a run folder; photos and masks are read later, when they are drawn.

    config, env: the JSON objects, {} when missing.
    metrics: rows per phase by ascending step; the later row if a step was repeated (a resumed run).
    results: scores per phase, in the order of the phases.
    manifest: one row per photo of phase 1.
    times: one row per file of labels: seconds of phase 1, in total and by stage.
    scorings: one row per scored phase: number of photos, and seconds.
    problems: files that could not be read, one line each.
    """

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    metrics: dict[str, list[Row]]
    results: dict[str, dict[str, float | None]]
    manifest: list[Row]
    times: list[Row]
    scorings: list[Row]
    problems: list[str]


def read_run(path: Path) -> RunRecord:
    """The record of a run folder. Raises FileNotFoundError if it does not exist."""
    if not path.is_dir():
        raise FileNotFoundError(f"no run folder at {path}")
    problems: list[str] = []
    config, env, results = (_read_object(path / f"{name}.json", problems) for name in ("config", "env", "results"))
    return RunRecord(
        path=path,
        config=config,
        env=env,
        metrics=_by_phase(_read_rows(path / "metrics.jsonl", problems)),
        results={phase: results[phase] for phase in _phases_first(results) if isinstance(results[phase], dict)},
        manifest=list(_read_rows(path / "labels" / "manifest.jsonl", problems)),
        times=list(_read_rows(path / "explore.jsonl", problems)),
        scorings=list(_read_rows(path / "scoring.jsonl", problems)),
        problems=problems,
    )


def status_counts(manifest: Iterable[Row]) -> Counter[str]:
    """Number of photos per status: {"ok": 120, "empty": 3, "failed": 1}."""
    return Counter(split_status(row)[0] for row in manifest)


def failure_reasons(manifest: Iterable[Row]) -> Counter[str]:
    """Number of photos per reason of failure."""
    split = (split_status(row) for row in manifest)
    return Counter(reason for status, reason in split if status == "failed")


def split_status(row: Row) -> tuple[str, str]:
    """Status and reason of a manifest row, in two fields or in one as `failed: reason`."""
    status, _, reason = str(row.get("status", "unknown")).partition(":")
    return status.strip(), reason.strip() or str(row.get("reason") or "")


def training_seconds(rows: list[Row]) -> float:
    """Seconds of training of a phase. `time` counts from the start of the process: it falls when a run is resumed."""
    total = previous = 0.0
    for row in rows:
        now = float(row.get("time", previous))
        if now < previous:
            total += previous
        previous = now
    return total + previous


def _read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name}: expected an object, got {type(value).__name__}")
        return {}
    return value


def _read_rows(path: Path, problems: list[str]) -> Iterable[Row]:
    if not path.is_file():
        return
    damaged = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                damaged += bool(line.strip())  # the last line of a killed run may be incomplete
                continue
            if isinstance(row, dict):
                yield row
    if damaged:
        problems.append(f"{path.name}: {damaged} damaged line{'s' if damaged > 1 else ''} skipped")


def _by_phase(rows: Iterable[Row]) -> dict[str, list[Row]]:
    steps: dict[str, dict[int, Row]] = {}
    for row in rows:
        if isinstance(row.get("step"), int) and "phase" in row:
            steps.setdefault(str(row["phase"]), {})[row["step"]] = row
    return {phase: [steps[phase][step] for step in sorted(steps[phase])] for phase in _phases_first(steps)}


def _phases_first(names: Iterable[str]) -> list[str]:
    names = list(names)
    return [p for p in PHASES if p in names] + [n for n in names if n not in PHASES]
