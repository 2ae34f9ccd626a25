# SPDX-License-Identifier: Apache-2.0
"""The section of merge trees, cut by a slider, and of masks before and after refinement."""

from __future__ import annotations

import json
from html import escape

from sohes.report.trees import Closeup, TreePanels, TreePicture

TREE_CSS = """
.cutter { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5rem 1rem; margin: 0.6rem 0 0.8rem;
  color: var(--soft); font-size: 0.875rem; }
.cutter[hidden] { display: none; }
.cutter input { flex: 1 1 16rem; max-width: 32rem; accent-color: var(--c0); }
.tree canvas, .tree figure > img { display: block; width: 100%; height: auto; }
.tree .closeup { position: relative; overflow: hidden; background: var(--wash); }
.tree .closeup img { display: block; width: 100%; height: auto; }
.tree .closeup img + img { position: absolute; inset: 0; height: 100%; }
@media print { .cutter { display: none; } }
"""

# Inflates each tree, and at every move of the slider paints the regions of that cut in their mean colours.
TREE_SCRIPT = """
const inflate = async (text) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint16Array(await new Response(stream).arrayBuffer());
};
const grow = async (figure) => {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [places, joined] = await Promise.all([inflate(data.places), inflate(data.joined)]);
  const photo = figure.closest(".row").querySelector("img");
  await photo.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = data.size;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(photo, 0, 0, canvas.width, canvas.height);
  const colors = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const picture = context.createImageData(canvas.width, canvas.height);
  const regionOf = new Uint16Array(joined.length + 1);
  const still = figure.querySelector("img");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", still.alt);
  still.replaceWith(canvas);
  return (share) => {
    const [similarity, merges, count] = data.cuts[Math.round(share * (data.cuts.length - 1))];
    for (let k = 0; k < joined.length; k++) regionOf[k + 1] = regionOf[k] + (joined[k] >= merges ? 1 : 0);
    const sums = new Float64Array(4 * (regionOf[joined.length] + 1));
    for (let p = 0; p < places.length; p++) {
      const at = 4 * regionOf[places[p]];
      for (let c = 0; c < 3; c++) sums[at + c] += colors[4 * p + c];
      sums[at + 3] += 1;
    }
    const width = canvas.width, out = picture.data;
    for (let p = 0; p < places.length; p++) {
      const region = regionOf[places[p]], at = 4 * region;
      const isRim = ((p + 1) % width && regionOf[places[p + 1]] !== region) ||
        (p + width < places.length && regionOf[places[p + width]] !== region);
      for (let c = 0; c < 3; c++) out[4 * p + c] = isRim ? 255 : sums[at + c] / sums[at + 3];
      out[4 * p + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
    const cut = merges ? `cut at similarity ${similarity.toFixed(3)}` : "no merge yet";
    figure.querySelector("output").textContent = `${cut}: ${count.toLocaleString("en")} region${count > 1 ? "s" : ""}`;
  };
};
if (window.DecompressionStream) {
  Promise.all([...document.querySelectorAll(".cut")].map(grow)).then((paint) => {
    const cutter = document.querySelector(".cutter"), slider = cutter.querySelector("input");
    const apply = () => paint.forEach((one) => one(slider.value / slider.max));
    slider.addEventListener("input", apply);
    cutter.hidden = false;
    apply();
  });
}
"""

_INITIAL_POSITION = 0.62  # of the slider, from 0 (all patches) to 1 (one region)


def trees_section(panels: TreePanels) -> str:
    """Labelled photos, each with the cut of its merge tree at the slider, and one mask enlarged."""
    if not panels.pictures:
        return ""
    note = (
        "Phase 1 merges the two most similar neighbours again and again, which gives one tree per photo. A cut at a "
        "similarity shows the regions alive just before the first merge below it; candidates are regions of many cuts."
    )
    if any(picture.closeup is not None for picture in panels.pictures):
        note += " Close up, one mask made of square patches, and as it is with these settings."
    slider = (
        '<div class="cutter" hidden><label for="cut">cut: all leaves</label><input type="range" id="cut" min="0" '
        f'max="1000" value="{round(1000 * _INITIAL_POSITION)}"><span>one region</span></div>'
    )
    photos = "".join(_picture(picture) for picture in panels.pictures)
    return f'<section><h2>Merge trees</h2><p class="note">{note}</p>{slider}{photos}</section>'


def _picture(picture: TreePicture) -> str:
    height, width = picture.size
    name = escape(picture.name, quote=True)
    size = f'width="{width}" height="{height}"'
    data = {"size": [width, height], "cuts": [[round(s, 4), m, n] for s, m, n in picture.cuts]}
    data |= {"places": picture.places, "joined": picture.joined}
    regions = f"{picture.cuts[0][2]:,} leaves, {len(picture.cuts)} cuts"
    figures = [
        f'<figure><img src="{picture.uri}" {size} alt="{name}"><figcaption>photo</figcaption></figure>',
        f'<figure class="cut"><img src="{picture.still}" {size} alt="{name}: a cut of its merge tree">'
        f"<figcaption><b>merge tree</b> <output>{regions}</output></figcaption>"
        f'<script type="application/json">{json.dumps(data)}</script></figure>',
    ]
    if picture.closeup is not None:
        figures += _closeup(picture.closeup, name)
    return f'<div class="photo tree"><div class="caption">{name}</div><div class="row">{"".join(figures)}</div></div>'


def _closeup(closeup: Closeup, name: str) -> list[str]:
    height, width = closeup.size
    figures = []
    for title, uri, detail in (
        ("square patches", closeup.before, f"IoU with refined {closeup.iou:.2f}"),
        ("refined", closeup.after, ""),
    ):
        figures.append(
            f'<figure><div class="closeup"><img src="{closeup.uri}" width="{width}" height="{height}" '
            f'alt="a part of {name}"><img src="{uri}" alt="outline of one mask, {title}"></div>'
            f"<figcaption><b>{title}</b> {detail}</figcaption></figure>"
        )
    return figures
