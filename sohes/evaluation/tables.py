# SPDX-License-Identifier: Apache-2.0
"""Metrics as text and as files: percentages with one digit, "n/a" where a metric is not defined."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

COMPARED = (
    *("AR@1000", "AR@100", "AR@10", "AR-small", "AR-medium", "AR-large"),
    *("AP", "AP50", "parent_recall", "ancestor_f1", "masks_per_image"),
)
COUNTS = ("num_images", "masks_per_image", "true_masks", "predicted_masks")  # not fractions

Metrics = Mapping[str, float | None]


def format_results(results: Mapping[str, Metrics]) -> str:
    """A table with one row for each named set of metrics (a phase, a run), one column for each of ``COMPARED``."""
    columns = [name for name in COMPARED if any(name in metrics for metrics in results.values())]
    rows = [["", *columns]]
    rows += [[name, *(_text(key, metrics.get(key)) for key in columns)] for name, metrics in results.items()]
    return _align(rows)


def format_summary(metrics: Metrics) -> str:
    """All metrics of one set, one a line."""
    return _align([[name, _text(name, value)] for name, value in metrics.items()])


def to_json(metrics: Metrics) -> str:
    """JSON of one set of metrics; NaN becomes null."""
    return json.dumps({name: _or_none(value) for name, value in metrics.items()}, indent=1) + "\n"


def write_csv(path: Path, rows: Sequence[Mapping[str, float | str]]) -> None:
    """One line for each row under a line of names; a metric that is not defined is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _or_none(value) for name, value in row.items()})


def _or_none(value: float | str | None) -> float | str | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(name: str, value: float | None) -> str:
    if _or_none(value) is None:
        return "n/a"
    if name in COUNTS:
        return f"{value:.0f}" if name != "masks_per_image" else f"{value:.1f}"
    return f"{100 * value:.1f}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
