# SPDX-License-Identifier: Apache-2.0
"""Small charts as inline SVG. Colours are CSS classes `c0`, `c1`, ... of the page, light or dark as its theme."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_MAX_POINTS = 400  # per line; a chart is not wide enough to show more
_LABEL_GAP = 13  # pixels between the labels of two lines
NUM_COLORS = 8


@dataclass(frozen=True)
class Series:
    """One line: `ys[i]` over `xs[i]`; xs ascend."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


def curve(
    series: Series, title: str, *, width: int = 460, height: int = 220, color: int = 0, noisy: bool = True
) -> str:
    """A curve over training steps with its last value as a label. noisy: values faint, their running mean on top.

    The vertical axis spans the middle 96 % of the values; spikes are clipped, so that they do not flatten the rest.
    """
    finite = [(x, y) for x, y in zip(series.xs, series.ys, strict=True) if math.isfinite(y)]
    if not finite:
        return ""
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    means = smooth(ys, len(ys) // 40) if noisy else ys
    ranked = sorted(ys)
    trim = len(ys) // 50
    low, high = ranked[trim], ranked[-1 - trim]
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # a constant: a straight line at half height
        low, high = low - 0.5 * abs(low), high + 0.5 * abs(high)
    label = format_number(means[-1])
    frame = _Frame(width, height, xs[0], xs[-1], low, high, right=52)
    return _svg(
        width,
        height,
        f"{title}: from {format_number(means[0])} to {label} over {len(ys)} steps",
        frame.axes(_x_ticks(xs[0], xs[-1], width), nice_ticks(low, high, max(2, height // 60))),
        frame.line(xs, ys, f"raw c{color}") if noisy else "",
        frame.line(xs, means, f"line c{color}"),
        f'<text class="end c{color}" x="{frame.x(xs[-1]) + 5:.1f}" y="{frame.y(means[-1]) + 4:.1f}">{label}</text>',
    )


def steps_chart(categories: Sequence[str], series: Sequence[Series], title: str, *, width: int = 380) -> str:
    """Lines over a few named steps (the phases), each labelled at its end.

    `xs` of a series are indices into `categories`. Values are shares 0..1, shown as per cent.
    """
    series = [s for s in series if len(s.ys)]
    if not series:
        return ""
    height, top = 230, max(max(s.ys) for s in series)
    labels = [f"{one.name} {100 * one.ys[-1]:.1f}" for one in series]
    right = max(118, 12 + 6 * max(map(len, labels)))  # pixels: characters of a long name take less than 6 each
    frame = _Frame(width, height, 0, max(len(categories) - 1, 1), 0, max(top, 0.01), right=right, left=44)
    every = _tick_stride(categories, frame.x(1) - frame.x(0))
    parts = [
        frame.axes([], nice_ticks(0, max(top, 0.01), 4), percent=True),
        *(
            f'<text class="tick" x="{frame.x(i):.1f}" y="{height - 6}" text-anchor="middle">{escape(name)}</text>'
            for i, name in enumerate(categories)
            if (len(categories) - 1 - i) % every == 0
        ),
    ]
    ends = _spread([frame.y(s.ys[-1]) for s in series], _LABEL_GAP, height - 30)
    for index, (one, end, label) in enumerate(zip(series, ends, labels, strict=True)):
        color = f"c{index % NUM_COLORS}"
        parts.append(frame.line(one.xs, one.ys, f"line {color}"))
        for x, y in zip(one.xs, one.ys, strict=True):
            parts.append(f'<circle class="dot {color}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>')
        x = frame.x(one.xs[-1]) + 9
        parts.append(f'<text class="end {color}" x="{x:.1f}" y="{end + 4:.1f}">{escape(label)}</text>')
    described = "; ".join(f"{s.name} " + ", ".join(f"{100 * y:.1f}" for y in s.ys) for s in series)
    return _svg(width, height, f"{title} after {', '.join(categories)}: {described}", *parts)


def interval_chart(
    rows: Sequence[tuple[str, float, float, float]],
    title: str,
    references: Sequence[tuple[str, float]] = (),
    *,
    width: int = 420,
    left: int = 150,
) -> str:
    """One row per (name, value, low, high), drawn as a dot with a whisker; references as dashed lines.

    Values are shares 0..1, shown as per cent. NaN as low and high: no whisker; NaN as value: "nothing to find".
    """
    ends = [end for row in rows for end in row[1:] if math.isfinite(end)] + [value for _, value in references]
    if not ends:
        return ""
    top, step = 14 * len(references) + 6, 26
    height = top + step * len(rows) + 26
    reach = 0.08 * (max(ends) - min(ends)) or 0.02
    low, high = max(0.0, min(ends) - reach), min(1.0, max(ends) + reach)
    frame = _Frame(width, height, low, high, 0, 1, left=left, right=54, top=top)
    parts = []
    for tick in nice_ticks(low, high, max(2, (width - left) // 70)):
        x = frame.x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 22}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 6}" text-anchor="middle">{100 * tick:.3g}</text>')
    for index, (name, value) in enumerate(sorted(references, key=lambda item: -item[1])):
        x, line = frame.x(value), 14 * index + 11
        parts.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{line + 3}" y2="{height - 22}"/>')
        text = f"{escape(name)} {100 * value:.1f}"
        parts.append(f'<text class="tick" x="{x - 4:.1f}" y="{line}" text-anchor="end">{text}</text>')
    for index, (name, value, least, most) in enumerate(rows):
        y, color = top + step * (index + 0.5), f"c{index % NUM_COLORS}"
        label = name if len(name) <= left // 7 else name[: left // 7 - 1] + "…"
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        if not math.isfinite(value):
            parts.append(f'<text class="tick" x="{left + 4}" y="{y + 4}">nothing to find</text>')
            continue
        known = [end for end in (least, value, most) if math.isfinite(end)]
        points = " ".join(f"{frame.x(end):.1f},{y}" for end in known)
        parts.append(f'<polyline class="line {color}" points="{points}"/>')
        parts.append(f'<circle class="dot {color}" cx="{frame.x(value):.1f}" cy="{y}" r="4"/>')
        parts.append(f'<text class="end {color}" x="{frame.x(known[-1]) + 7:.1f}" y="{y + 4}">{100 * value:.1f}</text>')
    named = [f"{name} {100 * value:.1f}" for name, value, _, _ in rows if math.isfinite(value)]
    return _svg(width, height, f"{title}: {'; '.join(named)}", *parts)


def share_bar(parts: Sequence[tuple[str, float]], title: str, *, width: int = 900, height: int = 22) -> str:
    """One horizontal bar split into shares, coloured `c0` onward; the caller adds a legend."""
    total = sum(value for _, value in parts)
    if total <= 0:
        return ""
    pieces, left = [], 0.0
    for index, (name, value) in enumerate(parts):
        wide = width * value / total
        pieces.append(
            f'<rect class="fill c{index % NUM_COLORS}" x="{left:.2f}" y="0" width="{wide:.2f}" height="{height}">'
            f"<title>{escape(name)}: {100 * value / total:.1f} %</title></rect>"
        )
        left += wide
    described = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in parts)
    return _svg(width, height, f"{title}: {described}", *pieces, stretch=True)


def histogram(values: Sequence[float], title: str, *, width: int = 380, height: int = 180, bins: int = 24) -> str:
    """Number of values per bin, as bars. Bins of integers have an integer width."""
    if not values:
        return ""
    low, high = min(values), max(values)
    step = max((high - low) / bins, 1e-9)
    if all(float(v).is_integer() for v in values):
        step = max(1, math.ceil((high - low + 1) / bins))
    counts = [0] * (int((high - low) // step) + 1)
    for value in values:
        counts[int((value - low) // step)] += 1
    frame = _Frame(width, height, low, low + step * len(counts), 0, max(counts), right=12)
    bars = []
    for index, count in enumerate(counts):
        left, right = frame.x(low + step * index), frame.x(low + step * (index + 1))
        top, bottom = frame.y(count), frame.y(0)
        bars.append(
            f'<rect class="fill c0" x="{left + 0.5:.2f}" y="{top:.2f}" width="{max(right - left - 1, 0.5):.2f}" '
            f'height="{bottom - top:.2f}"/>'
        )
    axes = frame.axes(_x_ticks(low, low + step * len(counts), width), nice_ticks(0, max(counts), 3))
    median = sorted(values)[len(values) // 2]
    described = f"{title}: {len(values)} values from {format_number(low)} to {format_number(high)}"
    return _svg(width, height, f"{described}, median {format_number(median)}", axes, *bars)


def smooth(values: Sequence[float], radius: int) -> list[float]:
    """Running mean over each value and up to `radius` neighbours on either side, fewer at the ends."""
    sums = list(itertools.accumulate(values, initial=0.0))
    spans = [(max(0, i - radius), min(len(values), i + radius + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) within low..high."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(math.floor(high / step + 1e-9) - first + 1)]


def format_number(value: float) -> str:
    """Three digits, no trailing zeros: 12,500, 125, 12.5, 1.25, 0.0123, 5e-5."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 1e-3:
        return f"{value:.3g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


@dataclass(frozen=True)
class _Frame:
    """Maps data coordinates to the pixels of a plot with margins."""

    width: int
    height: int
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    left: int = 46
    right: int = 12
    top: int = 10
    bottom: int = 24

    def x(self, value: float) -> float:
        span = (self.x_high - self.x_low) or 1
        return self.left + (self.width - self.left - self.right) * (value - self.x_low) / span

    def y(self, value: float) -> float:
        span = (self.y_high - self.y_low) or 1
        share = min(max((value - self.y_low) / span, -0.02), 1.02)  # spikes are clipped at the edge of the plot
        return self.height - self.bottom - (self.height - self.top - self.bottom) * share

    def axes(self, x_ticks: Sequence[float], y_ticks: Sequence[float], percent: bool = False) -> str:
        right = self.width - self.right
        parts = []
        for tick in y_ticks:
            y, text = self.y(tick), f"{100 * tick:.3g}" if percent else format_number(tick)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        for tick in x_ticks:
            text = f'text-anchor="middle">{format_number(tick)}</text>'
            parts.append(f'<text class="tick" x="{self.x(tick):.1f}" y="{self.height - 6}" {text}')
        return "".join(parts)

    def line(self, xs: Sequence[float], ys: Sequence[float], css: str) -> str:
        stride = max(1, math.ceil(len(xs) / _MAX_POINTS))
        kept = [*range(0, len(xs) - 1, stride), len(xs) - 1]
        points = " ".join(f"{self.x(xs[i]):.1f},{self.y(ys[i]):.1f}" for i in kept)
        return f'<polyline class="{css}" points="{points}"/>'


def _x_ticks(low: float, high: float, width: int) -> list[float]:
    return nice_ticks(low, high, max(2, width // 110))


def _tick_stride(names: Sequence[str], spacing: float) -> int:
    """The n for which every n-th label fits: labels are `spacing` pixels apart, a character is 6 pixels wide."""
    return max(1, math.ceil((6 * max(map(len, names), default=0) + 8) / max(spacing, 1)))


def _spread(positions: Sequence[float], gap: float, bottom: float) -> list[float]:
    """Positions of labels moved apart to at least `gap`, in the same order, none below `bottom`."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = list(positions)
    for above, below in itertools.pairwise(order):
        placed[below] = max(placed[below], placed[above] + gap)
    limit = bottom
    for index in reversed(order):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def _svg(width: int, height: int, label: str, *parts: str, stretch: bool = False) -> str:
    shape = ' preserveAspectRatio="none"' if stretch else ""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}"{shape} role="img" '
        f'aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'
    )
