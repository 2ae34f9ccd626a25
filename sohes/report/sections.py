# SPDX-License-Identifier: Apache-2.0
"""The sections of a report as HTML: functions of the run record that return "" if there is nothing to show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sohes.report import charts, published
from sohes.report.charts import Series, format_number
from sohes.report.record import RunRecord, failure_reasons, split_status, status_counts, training_seconds
from sohes.utils.estimate import format_seconds

PHASE_TITLES = {
    "explore": "Phase 1, explore",
    "instruct": "Phase 2, instruct",
    "correct": "Phase 3, correct",
}
# Columns of the results table by group: key in results.json -> heading. Shares are shown in per cent.
RESULT_GROUPS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("Mask average recall", {"AR@1000": "@1000", "AR@100": "@100", "AR@10": "@10", "AR@1": "@1"}),
    ("AR@1000 by size", {"AR-small": "small", "AR-medium": "medium", "AR-large": "large"}),
    ("Average precision", {"AP": "AP", "AP50": "AP50", "AP75": "AP75"}),
    ("AP by size", {"AP-small": "small", "AP-medium": "medium", "AP-large": "large"}),
    (
        "Hierarchy",
        {
            "parent_recall": "parent recall",
            "ancestor_f1": "ancestor F1",
            "level_accuracy": "levels",
            "edit_similarity": "edits",
        },
    ),
    ("Counts", {"num_images": "images", "masks_per_image": "masks / image"}),
)
COUNTS = {"num_images": "{:,.0f}", "masks_per_image": "{:,.1f}", "true_masks": "{:,.0f}", "predicted_masks": "{:,.0f}"}
_NO_CURVE = {"step", "time", "loss", "data_seconds"}
_CHARTS = (
    ("Average recall", {"AR@1000": "all", "AR-large": "large", "AR-medium": "medium", "AR-small": "small"}),
    ("Average precision", {"AP50": "AP50", "AP": "AP", "AP75": "AP75"}),
    ("Hierarchy", {"parent_recall": "parent recall", "ancestor_f1": "ancestor F1"}),
)


def format_score(key: str, value: float | None) -> str:
    """A value of results.json as the table prints it: shares 0..1 in per cent with one decimal, null as a dash."""
    if value is None:
        return "–"
    return COUNTS[key].format(value) if key in COUNTS else f"{100 * value:.1f}"


def phase_title(phase: str) -> str:
    return PHASE_TITLES.get(phase, phase)


def results_section(run: RunRecord) -> str:
    """Table of all scores after each phase, best in bold, and charts of them."""
    if not run.results:
        return ""
    tables = "".join(_group_table(title, rows, run.results) for title, rows in _result_groups(run.results))
    note = (
        "In per cent, class-agnostic, on the held-out photos; the best value of a row is bold. Recall is the mean "
        "over IoU thresholds .50 to .95 with up to 1000, 100, 10 or 1 masks per photo; small, medium and large are "
        "COCO's areas. Where the ground truth does not name every entity, precision counts true finds as errors."
    )
    return (
        f'<section><h2>Results</h2><div id="results">{tables}</div><p class="note">{note}</p>'
        f"{_result_charts(run.results)}{granularity_chart(run.results)}{reference_table()}</section>"
    )


def _group_table(title: str, rows: Mapping[str, str], results: Mapping[str, Mapping[str, Any]]) -> str:
    """One group of scores as a table narrow enough for a phone: a row per score, a column per phase."""
    head = "".join(f'<th scope="col">{escape(phase)}</th>' for phase in results)
    body = []
    for key, heading in rows.items():
        cells = "".join(_score_cell(results, phase, key) for phase in results)
        body.append(f'<tr><th scope="row">{escape(heading)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">{escape(title)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def training_section(run: RunRecord) -> str:
    """Curves of every trained phase: total loss, its terms, images per second."""
    parts = []
    for phase, rows in run.metrics.items():
        total = _curve(rows, "loss", f"{phase_title(phase)}, total loss", width=440, height=270, color=0)
        keys = [key for row in rows[-1:] for key in row if key not in _NO_CURVE and _is_number(row[key])]
        figures = []
        for key in sorted(keys, key=lambda k: ("loss" not in k, keys.index(k))):
            title, color = f"{phase_title(phase)}, {_metric_name(key)}", 1 if "loss" in key else 2
            chart = _curve(rows, key, title, width=220, height=120, color=color, noisy=key != "lr")
            if chart:
                figures.append(f"<figure><figcaption>{escape(_metric_name(key))}</figcaption>{chart}</figure>")
        if total or figures:
            figure = f"<figure><figcaption>total loss</figcaption>{total}</figure>"
            steps = f"{len(rows):,} step{'s' if len(rows) != 1 else ''}"
            parts.append(f"<h3>{phase_title(phase)}: {steps}</h3>")
            small = f'<div class="charts">{"".join(figures)}</div>'
            parts.append(f'<div class="curves">{figure}{small}</div>')
    if not parts:
        return ""
    note = "Over optimiser steps: every step faint, the running mean strong; the number at the end is its last value."
    return f'<section><h2>Training</h2><p class="note">{note}</p>{"".join(parts)}</section>'


def labels_section(run: RunRecord) -> str:
    """Status of the photos of phase 1, reasons of failure, and statistics of the labels."""
    if not run.manifest:
        return ""
    counts = status_counts(run.manifest)
    known = [status for status in ("ok", "empty", "failed") if counts[status]]
    shares = [(status, counts[status]) for status in [*known, *sorted(set(counts) - set(known))]]
    parts = [
        charts.share_bar(shares, "How the photos ended").replace('class="chart"', 'class="chart wide"'),
        _legend([(name, f"{value:,} photo{'s' if value != 1 else ''}") for name, value in shares]),
    ]
    reasons = failure_reasons(run.manifest)
    if reasons:
        failed = "".join(
            f'<tr><td class="text">{escape(reason)}</td><td>{count:,}</td></tr>'
            for reason, count in reasons.most_common(12)
        )
        more = f'<p class="note">and {len(reasons) - 12} more reasons</p>' if len(reasons) > 12 else ""
        head = '<thead><tr><th scope="col">why photos failed</th><th scope="col">photos</th></tr></thead>'
        parts.append(f'<div class="scroll"><table>{head}<tbody>{failed}</tbody></table></div>{more}')
    figures, rows = [], []
    good = [row for row in run.manifest if split_status(row)[0] != "failed"]
    for key in _numeric_keys(good):
        values = [float(row[key]) for row in good if _is_number(row.get(key))]
        if len(set(values)) > 1:
            chart = charts.histogram(values, f"{_metric_name(key)} per photo")
            figures.append(f"<figure><figcaption>{escape(_metric_name(key))} per photo</figcaption>{chart}</figure>")
        ranked = sorted(values)
        cells = (ranked[0], ranked[len(ranked) // 2], ranked[-1], sum(values) / len(values))
        numbers = "".join(f"<td>{format_number(round(value, 2))}</td>" for value in cells)
        rows.append(f'<tr><th scope="row">{escape(_metric_name(key))}</th>{numbers}</tr>')
    if figures:
        parts.append(f'<div class="charts">{"".join(figures)}</div>')
    if rows:
        names = ("per photo", "least", "median", "most", "mean")
        head = "".join(f'<th scope="col">{name}</th>' for name in names)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        parts.append(f'<div class="scroll">{table}</div>')
    return f"<section><h2>Pseudo-labels of phase 1</h2>{''.join(parts)}</section>"


def time_section(run: RunRecord) -> str:
    """Time by phase, and by stage within phase 1."""
    phases, scoring = phase_seconds(run), scoring_seconds(run)
    if not phases:
        return ""
    rows = []
    for phase, seconds in phases.items():
        metrics = run.metrics.get(phase, [])
        pace = [row["images_per_second"] for row in metrics if _is_number(row.get("images_per_second"))]
        waited = sum(row["data_seconds"] for row in metrics if _is_number(row.get("data_seconds")))
        median = format_number(sorted(pace)[len(pace) // 2]) if pace else "–"
        if phase == "explore" and (
            labelled := sum(row["images"] for row in run.times if _is_number(row.get("images")))
        ):
            median = format_number(labelled / seconds)
        share = f"{100 * waited / seconds:.0f} %" if pace and seconds > 0 else "–"
        rows.append(
            f'<tr><th scope="row">{phase_title(phase)}</th><td>{format_seconds(seconds)}</td>'
            f"<td>{median}</td><td>{share}</td></tr>"
        )
    if scoring:
        scored = sum(row["images"] for row in run.scorings if _is_number(row.get("images")))
        rows.append(
            f'<tr><th scope="row">Scoring after the phases</th><td>{format_seconds(scoring)}</td>'
            f"<td>{format_number(scored / scoring)}</td><td>–</td></tr>"
        )
    heads = ("phase", "time", "photos / s", "waiting for data")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    parts = [f'<div class="scroll">{table}</div>']
    for title, shares in (
        ("By phase", phases | ({"scoring": scoring} if scoring else {})),
        ("Within phase 1, over all threads", stage_seconds(run)),
    ):
        if len(shares) < 2:
            continue
        bar = charts.share_bar(list(shares.items()), title).replace('class="chart"', 'class="chart wide"')
        named = [(phase_title(name), format_seconds(seconds)) for name, seconds in shares.items()]
        parts.append(f"<h3>{title}</h3>{bar}{_legend(named)}")
    return f"<section><h2>Time</h2>{''.join(parts)}</section>"


def settings_section(run: RunRecord) -> str:
    """The configuration by group, and the environment."""
    parts = []
    if run.config:
        loose = {key: value for key, value in run.config.items() if not isinstance(value, dict)}
        groups = {"run": loose, **{key: value for key, value in run.config.items() if isinstance(value, dict)}}
        tables = "".join(_settings_table(name, values) for name, values in groups.items() if values)
        parts.append(f'<details><summary>Settings</summary><div class="settings">{tables}</div></details>')
    if run.env:
        tables = _settings_table("", run.env)
        parts.append(f'<details><summary>Environment</summary><div class="settings">{tables}</div></details>')
    return f"<section><h2>Settings and environment</h2>{''.join(parts)}</section>" if parts else ""


def phase_seconds(run: RunRecord) -> dict[str, float]:
    """Wall time per phase, for the phases that recorded it."""
    trained = {phase: training_seconds(rows) for phase, rows in run.metrics.items()}
    return {phase: s for phase, s in {"explore": explore_seconds(run), **trained}.items() if s > 0}


def explore_seconds(run: RunRecord) -> float:
    """Wall time of phase 1: the longest of its processes, each summed over the starts of a resumed run."""
    ranks: dict[object, float] = {}
    for row in run.times:
        if _is_number(row.get("elapsed")):
            ranks[row.get("rank")] = ranks.get(row.get("rank"), 0.0) + row["elapsed"]
    return max(ranks.values(), default=0.0)


def scoring_seconds(run: RunRecord) -> float:
    """Wall time of segmenting and scoring the held-out photos after every phase."""
    return sum(row["seconds"] for row in run.scorings if _is_number(row.get("seconds")))


def stage_seconds(run: RunRecord) -> dict[str, float]:
    """Seconds of phase 1 by stage, summed over threads and processes."""
    stages: dict[str, float] = {}
    for row in run.times:
        for stage, value in dict(row.get("seconds") or {}).items():
            if _is_number(value):
                stages[stage] = stages.get(stage, 0.0) + value
    return stages


def _result_groups(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, str]]]:
    """Groups of scores that some phase has, then a group of all other scores."""
    present = {key for scores in results.values() for key, value in scores.items() if not isinstance(value, list)}
    groups = [(title, {k: h for k, h in columns.items() if k in present}) for title, columns in RESULT_GROUPS]
    known = {key for _, columns in RESULT_GROUPS for key in columns}
    others = {key: key for scores in results.values() for key in scores if key in present - known}
    return [(title, columns) for title, columns in [*groups, ("Others", others)] if columns]


def _score_cell(results: Mapping[str, Mapping[str, Any]], phase: str, key: str) -> str:
    value = results[phase].get(key)
    values = [scores[key] for scores in results.values() if scores.get(key) is not None]
    # Values that are equal after rounding are all bold.
    top = format_score(key, max(values)) if len(values) > 1 and key not in COUNTS else None
    css = "none" if value is None else "best" if format_score(key, value) == top else ""
    attributes = f' class="{css}"' if css else ""
    exact = "" if value is None else f' data-value="{value!r}"'
    name = f'data-phase="{escape(phase)}" data-key="{escape(key)}"'
    return f"<td {name}{exact}{attributes}>{format_score(key, value)}</td>"


def _result_charts(results: Mapping[str, Mapping[str, Any]]) -> str:
    if len(results) < 2:
        return ""
    figures = []
    for title, columns in _CHARTS:
        series = []
        for key, name in columns.items():
            points = [(i, s[key]) for i, s in enumerate(results.values()) if s.get(key) is not None]
            series.append(Series(name, [x for x, _ in points], [y for _, y in points]))
        chart = charts.steps_chart(list(results), series, title)
        if chart:
            figures.append(f"<figure><figcaption>{title}, per cent</figcaption>{chart}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>'


def granularity_chart(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Recall by the number of masks per photo, one line per phase or run; "" if the results do not have it."""
    curves = {name: scores["granularity"] for name, scores in results.items() if scores.get("granularity")}
    limits = sorted({row["max_dets"] for rows in curves.values() for row in rows})
    series = []
    for name, rows in curves.items():
        points = [(limits.index(row["max_dets"]), row["AR"]) for row in rows if row["AR"] is not None]
        series.append(Series(name, [x for x, _ in points], [y for _, y in points]))
    title, ticks = "Average recall by the number of masks", [f"{limit:,}" for limit in limits]
    wide, narrow = (charts.steps_chart(ticks, series, title, width=width) for width in (780, 380))
    if not wide:
        return ""
    # Drawn twice: the wide chart is unreadable when shrunk to the width of a phone.
    caption = f"{title} that count per photo, best first, per cent"
    return (
        f'<div class="charts"><figure><figcaption>{caption}</figcaption><div class="on-wide">{wide}</div>'
        f'<div class="on-narrow">{narrow}</div></figure></div>'
    )


def reference_table() -> str:
    """Tables of published results, folded."""
    return (
        '<details class="reference"><summary>Published numbers, for orientation only</summary>'
        '<p class="note">Mask AR@1000 in per cent as the papers report it. The photos and the scale differ from this '
        "run's: these numbers cannot be compared with those above.</p>"
        f"{_reference_rows(('method', '', *published.DATA_SETS), published.RECALL)}"
        '<p class="note">Older segment proposals on COCO val2014, other photos again, by the number of masks that '
        "count per photo, and what of each was learned from human labels.</p>"
        f"{_reference_rows(('method', 'human labels', 'AR@10', 'AR@100', 'AR@1000'), published.PROPOSALS)}</details>"
    )


def _reference_rows(columns: Sequence[str], rows: Sequence[tuple[str, str, Sequence[float]]]) -> str:
    """A table of (method, remark, figures in per cent)."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(method)}</th><td class="text none">{escape(remark)}</td>'
        f"{''.join(f'<td>{value:.1f}</td>' for value in values)}</tr>"
        for method, remark, values in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _curve(
    rows: Sequence[Mapping[str, Any]], key: str, title: str, *, width: int, height: int, color: int, noisy: bool = True
) -> str:
    points = [(row["step"], float(row[key])) for row in rows if _is_number(row.get(key))]
    if len(points) < 2 or not any(value for _, value in points):
        return ""
    series = Series(key, [x for x, _ in points], [y for _, y in points])
    return charts.curve(series, title, width=width, height=height, color=color, noisy=noisy)


def _metric_name(key: str) -> str:
    """`teacher_loss_class` -> `teacher: class loss`; `num_masks` -> `masks`; `lr` -> `learning rate`."""
    if key == "lr":
        return "learning rate"
    branch, found, part = key.partition("loss_")
    if found:
        prefix = branch.strip("_")
        return f"{prefix + ': ' if prefix else ''}{part.replace('_', ' ')} loss"
    return key.removeprefix("num_").replace("_per_second", " / s").replace("_", " ")


def _numeric_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the counts in rows of the manifest, in the order of their first appearance."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if _is_number(value))
    return [key for key in keys if key not in ("seconds", "image_id", "id", "index", "width", "height", "shard")]


def _legend(items: Sequence[tuple[str, str]]) -> str:
    entries = "".join(
        f'<li><i class="c{index % charts.NUM_COLORS}"></i>{escape(name)} <span class="meta">{escape(value)}</span></li>'
        for index, (name, value) in enumerate(items)
    )
    return f'<ul class="legend">{entries}</ul>'


def _settings_table(title: str, values: Mapping[str, Any]) -> str:
    rows = []
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value)
        rows.append(f'<tr><th scope="row">{escape(key)}</th><td>{escape(text) or "–"}</td></tr>')
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f"<section>{head}<table><tbody>{''.join(rows)}</tbody></table></section>"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
