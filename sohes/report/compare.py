# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side on one ground truth, as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import isnan
from pathlib import Path

from sohes.configs.evaluate import CompareConfig
from sohes.evaluation.bootstrap import MIN_PHOTOS, Bootstrap, Interval, PhotoSums, defined_metrics
from sohes.evaluation.results import PAGE_MARK
from sohes.report import charts
from sohes.report.compare_photos import SIZES, Miss, PhotoSource, choose_photos, find_misses
from sohes.report.page import html_page, photos_section
from sohes.report.published import COLUMN_OF, published_recall
from sohes.report.sections import format_score, reference_table
from sohes.utils.files import write_whole

_HEADINGS = {"masks_per_image": "masks / photo", "ancestor_f1": "ancestor F1"}  # others as they are, spaced


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """The scores of one run. name: unique among the runs. summary: `Evaluation.summary()`."""

    name: str
    predictions: Path
    summary: dict[str, float]
    sums: PhotoSums


def write_comparison(
    path: Path, runs: Sequence[ComparedRun], source: PhotoSource, dataset: str | None, config: CompareConfig
) -> Path:
    """Write the page and return its path.

    runs: at least one, over the same photos; differences are taken to the first. dataset: its name in sohes.evaluate,
    for the published rows.
    """
    write_whole(path, render_comparison(runs, source, dataset, config))
    return path


def render_comparison(
    runs: Sequence[ComparedRun], source: PhotoSource, dataset: str | None, config: CompareConfig
) -> str:
    """The HTML page."""
    bootstrap = Bootstrap(len(runs[0].sums.photos), config.resamples, config.level, config.seed)
    sums = {run.name: run.sums for run in runs}
    panels = choose_photos(sums, source, config.photos)
    misses, problems = find_misses(sums, source, config.misses)
    sections = [
        scores_section(runs, bootstrap, dataset, config),
        differences_section(runs, bootstrap, config),
        photos_section(panels),
        misses_section(misses, [run.name for run in runs]),
    ]
    notes = "".join(f'<p class="note problem">{escape(one)}</p>' for one in [*panels.problems, *problems])
    title = " · ".join(run.name for run in runs)
    facts = [source.name, f"{len(runs[0].sums.photos):,} photos", f"{runs[0].summary['num_images']:,.0f} annotations"]
    if runs[0].summary["num_images"] == len(runs[0].sums.photos):  # one annotator each
        facts.pop()
    header = f'<p class="over">{PAGE_MARK}</p><h1>{escape(title)}</h1><p class="meta">{escape(" · ".join(facts))}</p>'
    return html_page(escape(f"{title}: {PAGE_MARK}"), header, notes + "".join(sections), panels.photos)


def scores_section(
    runs: Sequence[ComparedRun], bootstrap: Bootstrap, dataset: str | None, config: CompareConfig
) -> str:
    """Table of all metrics with their intervals and of published recall, and charts of recall by size."""
    with_interval = defined_metrics([run.sums for run in runs])
    columns = [
        name
        for name in runs[0].summary
        if name != "num_images" and any(not isnan(run.summary.get(name, float("nan"))) for run in runs)
    ]
    head = "".join(f'<th scope="col">{escape(_heading(name))}</th>' for name in columns)
    body = []
    for run in runs:
        cells = []
        for name in columns:
            value = run.summary.get(name, float("nan"))
            text = format_score(name, None if isnan(value) else value)
            interval = bootstrap.interval(run.sums, name) if name in with_interval else None
            cells.append(f'<td data-key="{escape(name)}">{text}{_range(interval)}</td>')
        body.append(f'<tr><th scope="row">{escape(run.name)}</th>{"".join(cells)}</tr>')
    published = published_recall(dataset)
    for method, scale, value in published if "AR@1000" in columns else ():
        cells = [f'<td class="none">{100 * value:.1f}</td>' if name == "AR@1000" else "<td></td>" for name in columns]
        row = f'<th scope="row" class="none">{escape(method)}, {escape(scale)} (published)</th>'
        body.append(f"<tr>{row}{''.join(cells)}</tr>")
    figures = []
    for name in ("AR@1000", *(f"AR-{size}" for size in SIZES)):
        if name not in with_interval:
            continue
        rows = []
        for run in runs:
            interval = bootstrap.interval(run.sums, name)
            rows.append((run.name, interval.value, interval.low, interval.high))
        lines = [(method, value) for method, _, value in published] if name == "AR@1000" else []
        chart = charts.interval_chart(rows, name, lines)
        figures.append(f"<figure><figcaption>{name}, per cent</figcaption>{chart}</figure>")
    note = (
        f"In per cent, class-agnostic. Below a value: its {100 * config.level:g} % interval from {config.resamples:,} "
        f"bootstrap resamples of the photos (seed {config.seed}; annotators of one photo go together). Average "
        "precision ranks the predictions of all photos together and has no interval here; nor has what fewer than "
        f"{MIN_PHOTOS} photos have to find."
    )
    if dataset is not None and published:
        note += (
            f" Published rows are for {COLUMN_OF[dataset]} as the papers report it: AR@1000, other weights and scale."
        )
    table = f'<table id="scores"><thead><tr><th>run</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return (
        f'<section><h2>Scores</h2><div class="scroll">{table}</div><p class="note">{note}</p>'
        f'<div class="charts">{"".join(figures)}</div>{"" if published else reference_table()}</section>'
    )


def differences_section(runs: Sequence[ComparedRun], bootstrap: Bootstrap, config: CompareConfig) -> str:
    """Table of differences of each run to the first, paired by photo."""
    if len(runs) < 2:
        return ""
    base = runs[0]
    defined = defined_metrics([run.sums for run in runs])
    names = [name for name in base.summary if name in defined]
    head = "".join(f'<th scope="col">{escape(_heading(name))}</th>' for name in names)
    body = []
    for run in runs[1:]:
        cells = []
        for name in names:
            change = bootstrap.difference(run.sums, base.sums, name)
            text = "–" if isnan(change.value) else _signed(change.value)
            css = ' class="best"' if change.excludes_zero else ""
            cells.append(f'<td data-key="{escape(name)}"{css}>{text}{_range(change, signed=True)}</td>')
        body.append(f'<tr><th scope="row">{escape(run.name)}</th>{"".join(cells)}</tr>')
    note = (
        f"Points above or below {base.name}, with the interval of the paired difference: every resample draws the same "
        f"photos for both. Bold where the {100 * config.level:g} % interval leaves out zero."
    )
    table = f'<table id="differences"><thead><tr><th>run</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    heading = f"<h2>Against {escape(base.name)}</h2>"
    return f'<section>{heading}<div class="scroll">{table}</div><p class="note">{escape(note)}</p></section>'


def misses_section(misses: dict[str, list[Miss]], names: Sequence[str]) -> str:
    """True masks that no run finds, by size, each as a crop of its photo."""
    if not any(misses.values()):
        return ""
    parts = []
    for size, found in misses.items():
        figures = []
        for miss in found:
            ious = ", ".join(f"{name} {iou:.2f}" for name, iou in zip(names, miss.best_ious, strict=True))
            caption = f"{miss.area:,} px; best IoU {ious}"
            alt = escape(f"{miss.photo}: {caption}", quote=True)
            image = f'<div class="stack"><img src="{miss.uri}" alt="{alt}"></div>'
            figures.append(
                f"<figure>{image}<figcaption>{escape(caption)}<br>{escape(miss.photo)}</figcaption></figure>"
            )
        if figures:
            parts.append(f'<h3>{size}</h3><div class="row" style="--tile: 10rem">{"".join(figures)}</div>')
    note = (
        "True masks, outlined, that no run covers with an IoU of 0.5, from the photos with the most misses of that "
        "size (COCO's: up to 32 x 32, up to 96 x 96 pixels, and above)."
    )
    return f'<section><h2>Misses by size</h2><p class="note">{note}</p>{"".join(parts)}</section>'


def _heading(name: str) -> str:
    return _HEADINGS.get(name, name.replace("_", " "))


def _range(interval: Interval | None, signed: bool = False) -> str:
    if interval is None or isnan(interval.low):
        return ""
    ends = [_signed(end) if signed else f"{100 * end:.1f}" for end in (interval.low, interval.high)]
    return f"<small>{ends[0]} to {ends[1]}</small>"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
