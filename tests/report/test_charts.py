# SPDX-License-Identifier: Apache-2.0
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from sohes.report.charts import Series, curve, format_number, histogram, nice_ticks, share_bar, smooth, steps_chart


def parse(svg):
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    return root


def points(root, css):
    lines = [e for e in root.iter("polyline") if css in e.get("class").split()]
    return [[tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in lines]


def test_curve_runs_left_to_right_and_ends_at_the_mean_of_the_last_values():
    ys = [10.0 - 0.05 * i for i in range(100)]
    root = parse(curve(Series("loss", range(100), ys), "total <loss>"))
    (mean,), (raw,) = points(root, "line"), points(root, "raw")
    assert len(mean) == len(raw) == 100
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(raw))  # falling: y grows downwards
    assert root.get("aria-label") == "total <loss>: from 9.95 to 5.1 over 100 steps"


def test_curve_does_not_let_one_spike_flatten_the_rest():
    ys = [1.0 + 0.01 * (i % 2) for i in range(400)]
    ys[200] = 1e6
    root = parse(curve(Series("loss", range(400), ys), "t", height=200))
    (raw,), (mean,) = points(root, "raw"), points(root, "line")
    calm = [y for _, y in raw[:150]]
    assert max(calm) - min(calm) > 150
    assert all(0 <= y <= 200 for _, y in raw + mean)


@pytest.mark.parametrize("ys", [[3.0], [2.0, 2.0, 2.0], [float("nan"), 1.0, float("inf"), 2.0], [0.0, 0.0]])
def test_curve_of_odd_values_stays_inside_the_picture(ys):
    root = parse(curve(Series("x", range(len(ys)), ys), "t", width=200, height=100))
    for line in points(root, "line"):
        assert all(0 <= x <= 200 and 0 <= y <= 100 for x, y in line)


def test_curve_without_finite_values_is_nothing():
    assert curve(Series("x", [0], [float("nan")]), "t") == ""


def test_long_curve_is_thinned_and_keeps_its_last_point():
    (line,) = points(parse(curve(Series("x", range(100_000), [float(i) for i in range(100_000)]), "t")), "line")
    assert len(line) <= 402
    assert line[-1][0] == pytest.approx(460 - 52)


def test_steps_chart_labels_every_line_without_overlap():
    series = [Series(name, [0, 1, 2], [0.1, 0.2, value]) for name, value in [("a", 0.30), ("b", 0.301), ("c", 0.302)]]
    root = parse(steps_chart(["explore", "instruct", "correct"], series, "Recall"))
    labels = [(e.text, float(e.get("y"))) for e in root.iter("text") if "end" in (e.get("class") or "")]
    assert [text for text, _ in labels] == ["a 30.0", "b 30.1", "c 30.2"]
    heights = sorted(y for _, y in labels)
    assert all(b - a >= 12.9 for a, b in pairwise(heights))
    assert "a 10.0, 20.0, 30.0" in root.get("aria-label")


def test_steps_chart_skips_missing_phases():
    root = parse(steps_chart(["explore", "instruct"], [Series("f1", [1], [0.5]), Series("none", [], [])], "H"))
    assert len(points(root, "line")) == 1
    assert steps_chart(["explore"], [Series("none", [], [])], "H") == ""


def test_steps_chart_leaves_out_names_that_have_no_room():
    names = [str(10**k) for k in range(8)]
    for width in (800, 300):
        root = parse(steps_chart(names, [Series("a", range(8), [0.1 * k for k in range(8)])], "R", width=width))
        places = [(float(e.get("x")), e.text) for e in root.iter("text") if e.get("text-anchor") == "middle"]
        assert all(b - a > 3 * (len(p) + len(q)) for (a, p), (b, q) in pairwise(places))
        assert places[-1][1] == "10000000"
        assert len(places) == (8 if width == 800 else len(places)) >= 2


def test_share_bar_fills_its_width():
    root = parse(share_bar([("ok", 3), ("failed", 1)], "photos", width=400))
    assert [float(e.get("width")) for e in root.iter("rect")] == [300, 100]
    assert root.get("aria-label") == "photos: ok 75 %, failed 25 %"
    assert share_bar([("ok", 0)], "photos") == ""


def test_histogram_counts_every_value():
    values = [0, 0, 1, 5, 5, 5]
    root = parse(histogram(values, "masks"))
    heights = [float(e.get("height")) for e in root.iter("rect")]
    assert [round(3 * h / max(heights)) for h in heights] == [2, 1, 0, 0, 0, 3]
    assert "median 5" in root.get("aria-label")
    assert len([*parse(histogram([0.1, 0.1], "x")).iter("rect")]) == 1
    assert len([*parse(histogram(list(range(1000)), "x")).iter("rect")]) <= 25
    assert histogram([], "x") == ""


def test_smooth():
    assert smooth([1, 2, 3, 4], 0) == [1, 2, 3, 4]
    assert smooth([1, 2, 3, 4], 1) == [1.5, 2, 3, 3.5]
    assert smooth([], 3) == []


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 600, 5, [0, 100, 200, 300, 400, 500, 600]),
        (2, 2, 3, [2]),
        (-1, 1, 2, [-1, 0, 1]),
        (1e-5, 9e-5, 3, [2e-5, 4e-5, 6e-5, 8e-5]),
    ],
)
def test_nice_ticks(low, high, count, expected):
    assert nice_ticks(low, high, count) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12500.4, "12,500"),
        (125.0, "125"),
        (1.25, "1.25"),
        (0.0123, "0.0123"),
        (5e-5, "5e-5"),
        (6.94e-10, "6.9e-10"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text


def test_names_are_escaped():
    svg = share_bar([("<b>&", 1), ('"q"', 1)], 'a "title" <x>')
    parse(svg)
    assert not re.search(r"<b>|<x>", svg)
