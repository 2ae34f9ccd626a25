# SPDX-License-Identifier: Apache-2.0
"""Rows of many images by falling score: a merge in blocks equals sorting all at once."""

import numpy as np
import pytest

from sohes.evaluation.ranking import RunInFile, RunInMemory, merge_runs, row_type, sort_rows
from sohes.evaluation.reference.precision import RECALL_POINTS, hits_needed

ROW = row_type(4, 40)


def random_runs(rng, num_runs, scores):
    runs, number = [], 0
    for _ in range(num_runs):
        rows = np.zeros(rng.integers(0, 40), ROW)
        rows["score"] = rng.choice(scores, len(rows))
        rows["rank"] = np.arange(number, number + len(rows))  # the input order, to distinguish ties
        number += len(rows)
        runs.append(sort_rows(rows))
    return runs


def test_a_row_takes_23_bytes_under_the_default_protocol():
    assert ROW.itemsize == 23
    assert row_type(9, 65).itemsize == 8 + 4 + 2 + 9 + 9


@pytest.mark.parametrize("num_rows", [1, 7, 30, 10**6])
@pytest.mark.parametrize("scores", [[0.5], [0.1, 0.2, 0.3], np.linspace(-1, 1, 1001)], ids=["one", "few", "many"])
def test_merged_as_if_sorted_at_once(tmp_path, num_rows, scores):
    rng = np.random.default_rng(0)
    for turn in range(20):
        arrays = random_runs(rng, turn, scores)
        expected = sort_rows(np.concatenate([np.zeros(0, ROW), *arrays]))
        (tmp_path / "rows").write_bytes(b"".join(rows.tobytes() for rows in arrays))
        first = np.cumsum([0, *map(len, arrays)]).tolist()
        in_file = [RunInFile(tmp_path / "rows", ROW, at, len(rows)) for at, rows in zip(first, arrays, strict=False)]
        for runs in (in_file, [RunInMemory(rows) for rows in arrays]):
            portions = list(merge_runs(runs, num_rows))
            merged = np.concatenate([np.zeros(0, ROW), *portions])
            np.testing.assert_array_equal(merged["score"], expected["score"])
            np.testing.assert_array_equal(merged["rank"], expected["rank"])
            assert all(len(portion) <= max(num_rows, turn) for portion in portions)


def test_hits_needed_are_those_that_division_reaches():
    totals = np.array([0, 1, 2, 3, 7, 10, 49, 99, 100, 101, 999, 1000, 12345])
    for total, needed in zip(totals, hits_needed(totals), strict=True):
        recalls = np.arange(1, max(total, 1) + 1) / max(total, 1)
        np.testing.assert_array_equal(needed, 1 + np.searchsorted(recalls, RECALL_POINTS))
