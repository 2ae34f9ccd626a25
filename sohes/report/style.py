# SPDX-License-Identifier: Apache-2.0
"""Style sheet and script of the report: plain CSS and a few lines of JavaScript. The page works without the script."""

CSS = """
:root {
  --ink: #1d1f23; --soft: #5c626b; --faint: #8b919a; --rule: #e3e4e8; --paper: #ffffff; --wash: #f6f6f8;
  --c0: #0072b2; --c1: #c25400; --c2: #00855f; --c3: #a8498a; --c4: #8a6d00; --c5: #3f6fd8;
  --c6: #7a4a2a; --c7: #6b7280;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  --some-tile: 14rem;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e7e8ea; --soft: #a4a9b1; --faint: #7d838c; --rule: #34373d; --paper: #17181b; --wash: #202226;
    --c0: #56b4e9; --c1: #f08a3c; --c2: #2fc59a; --c3: #df95c5; --c4: #e0c23c; --c5: #93b4ff;
    --c6: #c99a74; --c7: #9aa1ac;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3rem 2rem 5rem; max-width: 82rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 var(--sans); font-variant-numeric: tabular-nums;
}
h1, h2 { font-family: var(--serif); font-weight: 600; line-height: 1.2; letter-spacing: -0.005em; }
h1 { font-size: 2.1rem; margin: 0.2rem 0 0.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.4rem; margin: 3.2rem 0 0.5rem; padding-top: 1.1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; font-weight: 600; margin: 1.6rem 0 0.4rem; }
p { max-width: 44rem; margin: 0.4rem 0 0.8rem; }
.over { font-size: 0.8rem; color: var(--soft); margin: 0; }
.meta, .note, figcaption, .caption { color: var(--soft); font-size: 0.875rem; }
.note { max-width: 48rem; }
.problem { border-left: 3px solid var(--c1); padding: 0.2rem 0 0.2rem 0.8rem; }
a { color: inherit; }

.keys { display: flex; flex-wrap: wrap; gap: 0.6rem 2.8rem; margin: 1.6rem 0 0; padding: 0; }
.keys div { display: flex; flex-direction: column-reverse; }
.keys dt { font-size: 0.8rem; color: var(--soft); }
.keys dd { margin: 0; font-family: var(--serif); font-size: 1.75rem; line-height: 1.25; }
.keys dd small { font: 0.8rem var(--sans); color: var(--soft); margin-left: 0.3em; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.34rem 0.6rem; text-align: right; white-space: nowrap; }
#results { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; margin: 0.6rem 0 1rem; }
#results th:first-child { min-width: 10.5rem; }
#results td, #results th + th { min-width: 4.2rem; }
th { font-weight: 500; color: var(--soft); font-size: 0.8rem; vertical-align: bottom; }
thead th { border-bottom: 1px solid var(--faint); }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
th:first-child, td.text { text-align: left; }
th:first-child, td.text:first-child { padding-left: 0; }
tbody th { color: var(--ink); font-size: 0.9rem; font-weight: 400; }
td.text { white-space: normal; }
td.best { font-weight: 700; }
.group { border-left: 1px solid var(--rule); }
.none { color: var(--faint); }
:is(#scores, #differences) tbody > tr > * { vertical-align: top; }
td small { display: block; font-size: 0.75rem; color: var(--soft); font-weight: 400; line-height: 1.2; }

.on-narrow { display: none; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-end; margin: 0.8rem 0; }
.charts figure, .curves figure { margin: 0; }
.curves { display: grid; grid-template-columns: minmax(18rem, 27.5rem) 1fr; gap: 1rem 2rem; align-items: start; }
.curves .charts { margin: 0; gap: 0.8rem 1.2rem; }
@media (max-width: 62rem) { .curves { grid-template-columns: 1fr; } }
figcaption { margin: 0 0 0.1rem; }
.chart { display: block; max-width: 100%; height: auto; }
.chart.wide { width: 100%; height: 1.4rem; border-radius: 2px; }
.chart text { font: 11px var(--sans); }
.chart .end { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.tick { fill: var(--soft); }
.grid { stroke: var(--rule); stroke-width: 1; }
.reference { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 3 3; }
polyline { fill: none; stroke-linejoin: round; }
.line { stroke-width: 1.8; }
.raw { stroke-width: 1; opacity: 0.28; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.4rem; padding: 0; margin: 0.4rem 0 0; list-style: none; }
.legend li { font-size: 0.875rem; }
.legend i { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 2px; margin-right: 0.45em; }

.views { position: relative; }
.views > input { position: absolute; opacity: 0; pointer-events: none; }
.views > label {
  display: inline-block; padding: 0.2rem 0.7rem; margin: 0 0.1rem 0.6rem 0; border: 1px solid var(--rule);
  border-radius: 999px; font-size: 0.875rem; color: var(--soft); cursor: pointer;
}
.views > input:checked + label { border-color: var(--ink); color: var(--ink); }
.views > input:focus-visible + label { outline: 2px solid var(--c0); outline-offset: 2px; }
.sliders { display: inline-flex; flex-wrap: wrap; gap: 0 1.4rem; margin-left: 1.2rem; color: var(--soft); }
.sliders[hidden] { display: none; }
.sliders label { font-size: 0.875rem; display: inline-flex; align-items: center; gap: 0.5rem; }
.sliders input { width: 7rem; accent-color: var(--c0); }
.photo { margin: 0 0 1.8rem; break-inside: avoid; }
.photo > .caption { margin-bottom: 0.25rem; overflow-wrap: anywhere; }
.row {
  display: grid; gap: 0.6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(var(--tile, var(--some-tile)), 100%), 1fr));
}
.row figure { margin: 0; }
.row figcaption { margin: 0.15rem 0 0; line-height: 1.35; }
.row figcaption b { font-weight: 600; color: var(--ink); }
.stack { position: relative; overflow: hidden; background: var(--wash); }
.stack img { display: block; width: 100%; height: auto; }
.stack .over-photo { position: absolute; inset: 0; height: 100%; display: none; opacity: var(--fade, 1); }
.stack .under { filter: grayscale(0.8); }
.stack .nothing { display: none; position: absolute; inset: auto 0 0 0; padding: 0.2rem 0.5rem; font-size: 0.8rem;
  color: #fff; background: rgb(0 0 0 / 0.45); }

details { margin: 0.6rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: 0.9rem; }
details table { margin: 0.6rem 0; }
code, .mono { font-family: var(--mono); font-size: 0.84em; overflow-wrap: anywhere; }
.settings { columns: 24rem; column-gap: 3rem; }
.settings section { break-inside: avoid; margin-bottom: 1rem; }
.settings h3 { margin: 0.2rem 0; }
.settings th, .settings td { white-space: normal; padding: 0.14rem 0; font-size: 0.84rem; border: 0 !important; }
.settings table { width: 100%; margin: 0; }
.settings td { padding-left: 1.2rem; font-family: var(--mono); font-size: 0.78rem; overflow-wrap: anywhere; }
.settings th { color: var(--soft); }

@media (max-width: 40rem) {
  :root { --some-tile: 10rem; }
  body { padding: 1.5rem 1rem 3rem; }
  .sliders { margin-left: 0; }
  .on-wide { display: none; }
  .on-narrow { display: block; }
  .curves > figure .chart text { font-size: 14px; }
  #results { gap: 1rem; }
  #results > .scroll, #results table { width: 100%; }
  #results table { table-layout: fixed; }
  #results th:first-child { min-width: 0; width: 40%; }
  #results td, #results th + th { min-width: 0; }
  th, td { padding: 0.34rem 0.4rem; }
}
@media print {
  :root {
    --ink: #000; --soft: #444; --faint: #777; --rule: #ccc; --paper: #fff; --wash: #f4f4f4; --tile: 12rem;
    --c0: #0072b2; --c1: #c25400; --c2: #00855f; --c3: #a8498a; --c4: #8a6d00; --c5: #3f6fd8;
    --c6: #7a4a2a; --c7: #6b7280;
  }
  @page { margin: 14mm; }
  html { font-size: 10px; }
  body {
    padding: 0; font-size: 1rem; max-width: none; -webkit-print-color-adjust: exact; print-color-adjust: exact;
  }
  h2 { margin-top: 2rem; break-after: avoid; }
  h3 { break-after: avoid; }
  .sliders, .views > label { display: none; }
  .views > input:checked + label { display: inline-block; }
  figure, tr { break-inside: avoid; }
  th, td { padding: 0.25rem 0.5rem; }
  .charts { gap: 1rem; }
  .charts figure { width: calc(33% - 1rem); }
  .curves { grid-template-columns: 2fr 3fr; gap: 1rem; }
  .chart:not(.wide) { width: 100%; }
}
"""

# Two sliders; each sets a CSS variable of the photo section. Without the script they do nothing and stay hidden.
SCRIPT = """
for (const slider of document.querySelectorAll("[data-variable]")) {
  const photos = document.getElementById("photos");
  const apply = () => photos.style.setProperty(slider.dataset.variable, slider.value + (slider.dataset.unit || ""));
  slider.addEventListener("input", apply);
  slider.closest(".sliders").hidden = false;
}
"""


def color_rules(count: int) -> str:
    """CSS of the chart colours c0, c1, ...: strokes of lines; fills of bars, dots and labels; keys of legends."""
    rules = []
    for index in range(count):
        color = f"var(--c{index})"
        rules.append(f"polyline.c{index} {{ stroke: {color}; }} .legend .c{index} {{ background: {color}; }}")
        rules.append(f":is(.dot, .end, .fill).c{index} {{ fill: {color}; }}")
    return "\n".join(rules)


def view_rules(views: tuple[str, ...]) -> str:
    """CSS that shows, for the checked radio button `view-<i>`, the overlays of view i of the photos below it."""
    rules = []
    for index, view in enumerate(views):
        scope = f"#view-{index}:checked ~ .photo"
        rules.append(f"{scope} .v{index} {{ display: block; }}")
        if view == "contours":
            rules.append(f"{scope} .under {{ filter: grayscale(0.8) brightness(0.5); }}")
    return "\n".join(rules)
