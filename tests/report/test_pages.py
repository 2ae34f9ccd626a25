# SPDX-License-Identifier: Apache-2.0
"""How pages look in a browser: nothing is cut off or too small to read, from a phone to a wide screen."""

import json

import pytest
from report.browser import CHROMIUM, Browser
from report.run_folder import write_run

from sohes.evaluate import main
from sohes.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

WIDTHS = (390, 1024, 1440)
READABLE = 8.5  # pixels of the screen, of the smallest letters of a chart

# Elements that reach beyond the right edge without a box of their own that scrolls.
TOO_WIDE = """[...document.querySelectorAll("body *")].filter((one) => {
  for (let box = one.parentElement; box; box = box.parentElement)
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(box).overflowX)) return false;
  return one.getBoundingClientRect().right > innerWidth + 1;
}).map((one) => one.outerHTML.slice(0, 80))"""
SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll("svg text")].filter((one) => one.getClientRects().length)
  .map((one) => one.getScreenCTM().a * parseFloat(getComputedStyle(one).fontSize)))"""
SCROLLED_TABLES = """[...document.querySelectorAll("#results .scroll")]
  .filter((one) => one.scrollWidth > one.clientWidth).length"""
# Of every pair of labels of one chart that are shown: do they lie on each other?
OVERLAPS = """[...document.querySelectorAll("svg")].flatMap((chart) => {
  const labels = [...chart.querySelectorAll(".tick")].map((one) => [one.textContent, one.getBoundingClientRect()]);
  return labels.flatMap(([a, p], k) => labels.slice(k + 1).filter(([b, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
    && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4).map(([b]) => `${a} on ${b}`));
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with every section."""
    run = write_run(tmp_path_factory.mktemp("run"))
    results = json.loads((run / "results.json").read_text())
    limits = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    for shift, scores in enumerate(results.values()):
        rows = [{"max_dets": k, "masks_per_image": k, "AR": (k / 2000) ** 0.5 + shift / 20} for k in limits]
        scores |= {
            "granularity": rows,
            "AR-large": 0.8,
            "AP-small": 0.1,
            "AP-medium": 0.2,
            "AP-large": 0.3,
            "AP75": 0.1,
        }
    (run / "results.json").write_text(json.dumps(results))
    (run / "scoring.jsonl").write_text(json.dumps({"phase": "explore", "images": 4, "seconds": 9.0}) + "\n")
    return write_report(run)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_fits_the_screen(browser, page, width):
    browser.show(page, width)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(TOO_WIDE) == []
    assert browser.ask(SCROLLED_TABLES) == 0
    assert browser.ask(SMALLEST_TEXT) >= READABLE
    assert browser.ask(OVERLAPS) == []


def test_every_picture_loads_and_has_a_text(browser, page):
    browser.show(page, 1024)
    assert browser.ask("document.images.length") > 50
    assert browser.ask("[...document.images].filter((one) => !one.alt.trim() || !one.naturalWidth).length") == 0


def test_the_view_of_misses_shows_the_truth_and_says_nothing_of_it(browser, page):
    browser.show(page, 1024)
    browser.ask("[...document.querySelectorAll('.views > label')].find((one) => one.textContent == 'misses').click()")
    shown = browser.ask(
        """[...document.querySelectorAll(".photo .row")].map((row) => [...row.querySelectorAll("figure")].slice(1).map(
        (figure) => [...figure.querySelectorAll(".over-photo, .nothing")].filter((one) => one.getClientRects().length)
        .map((one) => one.alt || one.textContent).join()))"""
    )
    truth, explore, instruct, _ = shown[0]
    assert truth.startswith("ground truth, 3 masks")
    assert explore == "nothing missed"
    assert instruct.startswith("Phase 2, instruct, misses of 3 masks")


def test_light_and_dark(browser, page):
    color = "getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3).map(Number)"
    for dark in (False, True):
        browser.show(page, 1024, dark=dark)
        paper, ink = (browser.ask(color.replace("[name]", f".{name}")) for name in ("backgroundColor", "color"))
        assert (sum(paper) < 200) == dark
        assert abs(sum(ink) - sum(paper)) > 450, "text and background have similar colours"


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_fits_the_screen(browser, full_run, width, tmp_path):
    out = tmp_path / "compare.html"
    runs = [str(full_run / "predictions" / f"{phase}.json") for phase in ("explore", "correct")]
    truth = str(tmp_path / "truth" / "annotations.json")
    assert main(["--compare", *runs, "--gt", truth, "--out", str(out), "--bootstrap.resamples", "50"]) == 0
    browser.show(out, width)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(TOO_WIDE) == []
    assert browser.ask(SMALLEST_TEXT) >= READABLE
    assert browser.ask("[...document.images].filter((one) => !one.alt.trim()).length") == 0
