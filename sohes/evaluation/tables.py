# SPDX-License-Identifier: Apache-2.0
"""Metrics as text and files: percentages with one decimal, "n/a" if a metric is not defined."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sohes.evaluation.metrics import Evaluation
from sohes.evaluation.protocol import IouType
from sohes.utils.files import write_whole

COMPARED = (
    *("AR@1000", "AR@100", "AR@10", "AR-small", "AR-medium", "AR-large"),
    *("AP", "AP50", "parent_recall", "ancestor_f1", "masks_per_image"),
)
COUNTS = {  # not fractions: their formats
    "num_images": ".0f",
    "masks_per_image": ".1f",
    "true_masks": ".0f",
    "predicted_masks": ".0f",
    "seconds_per_photo": ".2f",
}
SHARED = ("image", *COUNTS)  # the same for masks and boxes

Metrics = Mapping[str, float | None]
Evaluations = Mapping[IouType, Evaluation]


def format_results(results: Mapping[str, Metrics]) -> str:
    """A table with one row per named set of metrics (a phase, a run) and one column per metric of ``COMPARED``."""
    columns = [name for name in COMPARED if any(name in metrics for metrics in results.values())]
    rows = [["", *columns]]
    rows += [[name, *(_text(key, metrics.get(key)) for key in columns)] for name, metrics in results.items()]
    return _align(rows)


def format_summary(metrics: Metrics) -> str:
    """All metrics of one set, one per line."""
    return _align([[name, _text(name, value)] for name, value in metrics.items()])


def summarize(evaluations: Evaluations) -> dict[str, float]:
    """``Evaluation.summary`` of all IoU types; names of box metrics begin with ``box-``."""
    results: dict[str, float] = {}
    for iou_type, evaluation in evaluations.items():
        results |= _named(iou_type, evaluation.summary())
    return results


def granularity(evaluations: Evaluations) -> dict[str, list[dict[str, float]]]:
    """``Evaluation.granularity`` of each IoU type, as ``granularity`` and ``box-granularity``."""
    return {_prefix(iou_type) + "granularity": evaluation.granularity() for iou_type, evaluation in evaluations.items()}


def per_image(evaluations: Evaluations) -> list[dict[str, float | str]]:
    """``Evaluation.per_image`` of all IoU types, one row per image."""
    tables = [[_named(iou_type, row) for row in evaluation.per_image()] for iou_type, evaluation in evaluations.items()]
    return [{name: value for row in rows for name, value in row.items()} for rows in zip(*tables, strict=True)]


def to_json(metrics: Mapping[str, Any]) -> str:
    """JSON of one set of metrics; NaN becomes null, also within lists and dictionaries."""
    return json.dumps(none_for_nan(metrics), indent=1) + "\n"


def write_rows(path: Path, rows: Sequence[Mapping[str, float | str]]) -> None:
    """Write a table: JSON lines if the name ends in .jsonl, else CSV with a header. An undefined metric is null or
    empty."""
    text = io.StringIO()
    if path.suffix == ".jsonl":
        text.writelines(json.dumps(none_for_nan(row)) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(none_for_nan, rows))
    write_whole(path, text.getvalue())


def _prefix(iou_type: IouType) -> str:
    return "" if iou_type == "mask" else "box-"


def _named(iou_type: IouType, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics with the prefix of the IoU type, except those in ``SHARED``."""
    return {name if name in SHARED else _prefix(iou_type) + name: value for name, value in metrics.items()}


def none_for_nan(value: Any) -> Any:
    """The value with None in place of NaN, also within lists and dictionaries, for JSON."""
    if isinstance(value, Mapping):
        return {name: none_for_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [none_for_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "n/a"
    if name in COUNTS:
        return format(value, COUNTS[name])
    return f"{100 * value:.1f}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
