# SPDX-License-Identifier: Apache-2.0
"""Sums of photos against the evaluator's metrics, and intervals against simulation and by hand."""

import numpy as np
import pytest
import torch

from sohes.evaluation import Evaluator
from sohes.evaluation.bootstrap import Bootstrap, PhotoSums, collect_sums, defined_metrics
from sohes.evaluation.hierarchy import METRICS
from sohes.structures.forest import Forest


def test_sums_give_the_metrics_of_the_evaluator(tools):
    rng = np.random.default_rng(0)
    images = [tools.random_image(rng) for _ in range(30)]
    evaluator = tools.run_evaluator(images, (1, 3, 10), tools.TINY_AREAS)
    sums, summary = collect_sums(evaluator), evaluator.summary()
    for name in ("AR@1", "AR@3", "AR@10", "AR-small", "AR-medium", "AR-large"):
        assert sums.value(name) == pytest.approx(summary[name], rel=1e-12)
    rows = {row["image"]: row["AR@10"] for row in evaluator.per_image()}
    np.testing.assert_allclose(sums.of_photo("AR@10"), [rows[str(photo)] for photo in sums.photos])
    assert np.isnan(sums.value("parent_recall"))
    assert "parent_recall" not in defined_metrics([sums])


def test_hierarchy_and_annotators(tools):
    """Two annotators of one photo, one of whom drew a part; the prediction has both masks, nested."""
    whole = np.zeros((2, 9), bool)
    part = whole.copy()
    whole[:, 1:8], part[:, 2:4] = True, True
    both = tools.packed(np.stack([whole, part]))
    found = Forest(both, torch.tensor([0.5, 0.4]), torch.tensor([-1, 0]))
    evaluator = Evaluator((10,))
    evaluator.add((7, 0), both, found, gt_parents=[-1, 0])
    evaluator.add((7, 1), both[0], found, gt_parents=[-1])
    evaluator.add((8, 0), both, found, gt_parents=[-1, -1])
    sums = collect_sums(evaluator)
    assert sums.photos == [7, 8]
    np.testing.assert_allclose(sums.sums["AR@10"], [[3, 3], [2, 2]])
    np.testing.assert_allclose(sums.sums["parent_recall"], [[1, 1], [0, 0]])
    for name in METRICS:
        assert sums.value(name) == pytest.approx(evaluator.summary()[name])
    with pytest.raises(ValueError, match="class-agnostic"):
        collect_sums(Evaluator((10,), class_aware=True))


def runs_of(rng, photos=60, gain=0.05):
    """Two runs over photos that differ much from each other, the second a little better on each."""
    den = rng.integers(1, 20, photos).astype(float)
    share = rng.uniform(0.1, 0.8, photos)
    better = np.clip(share + gain + rng.normal(0, 0.02, photos), 0, 1)
    return [PhotoSums(list(range(photos)), {"AR@10": np.stack([den * one, den], 1)}) for one in (share, better)]


def test_interval_has_the_width_that_theory_says():
    """For equal photos, the ratio is a mean with a known standard error."""
    rng = np.random.default_rng(1)
    values = rng.uniform(0, 1, 400)
    run = PhotoSums(list(range(400)), {"x": np.stack([values, np.ones(400)], 1)})
    interval = Bootstrap(400, 4000, 0.95, 0).interval(run, "x")
    error = values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_pairing_tells_what_single_intervals_do_not():
    base, run = runs_of(np.random.default_rng(2))
    bootstrap = Bootstrap(60, 1000, 0.95, 0)
    alone, other = (bootstrap.interval(one, "AR@10") for one in (base, run))
    assert other.low < alone.high  # the two intervals overlap
    change = bootstrap.difference(run, base, "AR@10")
    assert change.value == pytest.approx(run.value("AR@10") - base.value("AR@10"))
    assert change.excludes_zero
    assert change.high - change.low < 0.3 * (alone.high - alone.low)
    same = bootstrap.difference(base, base, "AR@10")
    assert (same.low, same.value, same.high, same.excludes_zero) == (0, 0, 0, False)


def test_equal_seeds_give_equal_intervals():
    base, _ = runs_of(np.random.default_rng(3))
    first, again, other = (Bootstrap(60, 200, 0.9, seed).interval(base, "AR@10") for seed in (5, 5, 6))
    assert first == again
    assert first.low != other.low


def test_few_photos_have_no_interval():
    sums = np.array([[1.0, 2.0]] * 4 + [[0.0, 0.0]] * 10)
    run = PhotoSums(list(range(14)), {"x": sums, "y": 0 * sums})
    interval = Bootstrap(14, 50, 0.95, 0).interval(run, "x")
    assert interval.value == 0.5
    assert np.isnan([interval.low, interval.high]).all()
    assert np.isnan(Bootstrap(14, 50, 0.95, 0).interval(run, "y").value)


def test_runs_over_other_photos_are_refused():
    base, run = runs_of(np.random.default_rng(4))
    other = PhotoSums(run.photos[::-1], run.sums)
    with pytest.raises(ValueError, match="over the same photos"):
        Bootstrap(60, 10, 0.95, 0).difference(other, base, "AR@10")
