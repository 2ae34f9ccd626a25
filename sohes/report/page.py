# SPDX-License-Identifier: Apache-2.0
"""The report of a run as one self-contained HTML file."""

from __future__ import annotations

from html import escape
from pathlib import Path

import torch

from sohes.report.charts import NUM_COLORS
from sohes.report.features import features_section
from sohes.report.photos import GROUND_TRUTH, MISSES, VIEWS, Overlay, Photo, PhotoPanels, collect_photos
from sohes.report.record import RunRecord, read_run, status_counts
from sohes.report.sections import (
    format_score,
    labels_section,
    phase_seconds,
    phase_title,
    results_section,
    scoring_seconds,
    settings_section,
    time_section,
    training_section,
)
from sohes.report.style import CSS, SCRIPT, color_rules, view_rules
from sohes.report.tree_section import TREE_CSS, TREE_SCRIPT, trees_section
from sohes.report.trees import TreePanels, collect_trees
from sohes.utils.estimate import format_seconds
from sohes.utils.files import write_whole


def write_report(
    run: Path,
    gt_json: Path | None = None,
    image_root: Path | None = None,
    num_photos: int = 6,
    device: torch.device | None = None,
) -> Path:
    """Write `report.html` into a run folder, from the files in that folder, and return its path.

    Args:
        run: the run folder. Missing parts (a phase, the evaluation, the ground truth) are left out.
        gt_json: COCO ground truth of the held-out photos; default: the one in the configuration of the run.
        image_root: the folder its file names are relative to; default: `images/` beside it, or its own folder.
        num_photos: photos to show, >= 0.
        device: where merge trees are computed again. Default: the current GPU if there is one.

    Raises: FileNotFoundError if the run folder does not exist.
    """
    record = read_run(run)
    photos = collect_photos(record, gt_json, image_root, num_photos)
    html = render(record, photos, collect_trees(record, (num_photos + 1) // 2, device))
    path = run / "report.html"
    write_whole(path, html)
    return path


def render(run: RunRecord, panels: PhotoPanels, trees: TreePanels) -> str:
    """The HTML page."""
    sections = [
        results_section(run),
        photos_section(panels),
        trees_section(trees),
        features_section(run.path),
        training_section(run),
        labels_section(run),
        time_section(run),
        settings_section(run),
    ]
    if not any(sections):
        sections = ["<section><p>This folder holds no results yet.</p></section>"]
    name = escape(run.path.resolve().name)
    problems = "".join(
        f'<p class="note problem">{escape(p)}</p>' for p in [*run.problems, *panels.problems, *trees.problems]
    )
    script = SCRIPT + (TREE_SCRIPT if trees.pictures else "")
    body = problems + "".join(sections)
    return html_page(f"{name}: SOHES run", _header(run, name), body, panels.photos, script)


def html_page(title: str, header: str, body: str, photos: list[Photo], script: str = SCRIPT) -> str:
    """A complete HTML page. title, header, body: HTML; photos: the photos that `photos_section` put into `body`."""
    style = "\n".join((CSS, TREE_CSS, color_rules(NUM_COLORS), view_rules(VIEWS), _photo_rules(photos)))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head>"
        f"<body><header>{header}</header><main>{body}</main>"
        f"<script>{script}</script></body></html>\n"
    )


def photos_section(panels: PhotoPanels) -> str:
    """Photos with the forests of each phase, one view at a time, chosen by radio buttons."""
    if not panels.photos:
        return ""
    buttons = []
    has_truth = any(overlay.missed is not None for photo in panels.photos for overlay in photo.overlays)
    for index, view in enumerate(VIEWS):
        if view == MISSES and not has_truth:
            continue
        checked = " checked" if index == 0 else ""
        label = "all levels" if view == "all" else view
        buttons.append(f'<input type="radio" name="view" id="view-{index}"{checked}>')
        buttons.append(f'<label for="view-{index}">{label}</label>')
    sliders = (
        '<span class="sliders" hidden>'
        '<label>opacity <input type="range" min="0" max="1" step="0.05" value="1" data-variable="--fade"></label>'
        '<label>size <input type="range" min="8" max="40" step="1" value="14" data-variable="--tile" '
        'data-unit="rem"></label></span>'
    )
    note = (
        f"{panels.source}. A child is drawn in a variation of its parent's colour, smaller masks over larger ones; a "
        "picture shows the best 60 of its masks."
        + (" Misses: true masks whose best prediction has an IoU below 0.5, beside the truth." if has_truth else "")
    )
    photos = "".join(_photo(index, photo) for index, photo in enumerate(panels.photos))
    return (
        f'<section><h2>Photos</h2><p class="note">{note}</p>'
        f'<div class="views" id="photos">{"".join(buttons)}{sliders}{photos}</div></section>'
    )


def _photo(index: int, photo: Photo) -> str:
    height, width = photo.size
    name = escape(photo.name)
    figures = [
        f'<figure><div class="stack"><img src="{photo.uri}" width="{width}" height="{height}" alt="{name}"></div>'
        "<figcaption>photo</figcaption></figure>"
    ]
    figures += [_overlay(index, photo, overlay) for overlay in photo.overlays]
    return f'<div class="photo"><div class="caption">{name}</div><div class="row">{"".join(figures)}</div></div>'


def _overlay(index: int, photo: Photo, overlay: Overlay) -> str:
    height, width = photo.size
    title = phase_title(overlay.title)
    drawn, by_level = sum(overlay.counts), " · ".join(str(count) for count in overlay.counts)
    masks = f"{overlay.total} mask{'s' if overlay.total != 1 else ''}"
    if drawn < overlay.total:
        masks = f"best {drawn} of {masks}"
    depth = f", by level {by_level}" if len(overlay.counts) > 1 else ""
    layers = []
    for number, view in enumerate(VIEWS):
        if overlay.title == GROUND_TRUTH and view == MISSES:
            continue  # the view of misses shows the whole truth beside the misses of each phase
        if view in overlay.pictures:
            shown = f"{masks}{depth}" if view == "all" else f"{view} of {masks}"
            alt = escape(f"{title}, {shown}: {photo.name}", quote=True)
            views = (
                f"v{number} v{VIEWS.index(MISSES)}" if overlay.title == GROUND_TRUTH and view == "all" else f"v{number}"
            )
            layers.append(f'<img class="over-photo {views}" src="{overlay.pictures[view]}" alt="{alt}">')
        else:
            nothing = "nothing missed" if view == MISSES else f"no mask at {view}"
            layers.append(f'<span class="nothing v{number}">{nothing}</span>')
    return (
        f'<figure><div class="stack" style="aspect-ratio: {width} / {height}">'
        f'<div class="under p{index}"></div>{"".join(layers)}</div>'
        f"<figcaption><b>{escape(title)}</b> {masks}{depth}{_missed(overlay)}</figcaption></figure>"
    )


def _missed(overlay: Overlay) -> str:
    if overlay.missed is None or overlay.title == GROUND_TRUTH:
        return ""
    return f"; misses {overlay.missed[0]} of {overlay.missed[1]}"


def _photo_rules(photos: list[Photo]) -> str:
    """CSS that stores each photo once, as the background of all its overlays."""
    base = ".under { position: absolute; inset: 0; background-size: 100% 100%; }\n"
    return base + "\n".join(f".p{i} {{ background-image: url({photo.uri}); }}" for i, photo in enumerate(photos))


def _header(run: RunRecord, name: str) -> str:
    facts = []
    if run.config.get("preset"):
        facts.append(f"preset {run.config['preset']}")
    if "seed" in run.config:
        facts.append(f"seed {run.config['seed']}")
    facts += [f"{key} {run.env[key]}" for key in ("sohes", "python") if run.env.get(key)]
    packages = run.env.get("packages")
    if isinstance(packages, dict) and packages.get("torch"):
        facts.append(f"torch {packages['torch']}")
    gpus = run.env.get("gpus")
    if gpus:
        facts.append(", ".join(map(str, gpus)))
    elif run.env.get("cpus"):
        facts.append(f"{run.env['cpus']} CPUs")
    return (
        f'<p class="over">SOHES run</p><h1>{name}</h1><p class="meta">{escape(" · ".join(facts))}</p>'
        f"{_key_figures(run)}"
    )


def _key_figures(run: RunRecord) -> str:
    """The main scores, the number of photos and the time, as HTML."""
    figures: list[tuple[str, str, str]] = []
    if run.results:
        first, last = next(iter(run.results.values())), list(run.results.values())[-1]
        for key, label in (("AR@1000", "AR@1000"), ("parent_recall", "parent recall"), ("AP", "AP")):
            before, now = first.get(key), last.get(key)
            if now is not None:
                change = ""
                if len(run.results) > 1 and before is not None:
                    change = f"{100 * (now - before):+.1f} since phase 1".replace("-", "−")
                figures.append((label, format_score(key, now), change))
    if run.manifest:
        counts = status_counts(run.manifest)
        failed = f"{counts['failed']:,} failed" if counts["failed"] else ""
        figures.append(("photos learned from", f"{counts['ok']:,}", failed))
    phases, scoring = sum(phase_seconds(run).values()), scoring_seconds(run)
    if phases:
        extra = f"{format_seconds(scoring)} of it scoring" if scoring else ""
        figures.append(("phases and scoring" if scoring else "in all phases", format_seconds(phases + scoring), extra))
    items = "".join(
        f"<div><dt>{label}</dt><dd>{value}{f'<small>{extra}</small>' if extra else ''}</dd></div>"
        for label, value, extra in figures
    )
    return f'<dl class="keys">{items}</dl>' if items else ""
