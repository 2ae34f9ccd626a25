# SPDX-License-Identifier: Apache-2.0
"""Metrics of the hierarchy, computed by hand on nested bars."""

import math

import numpy as np
import pytest
import torch

from sohes.evaluation import Evaluator
from sohes.evaluation.hierarchy import HierarchyCounts, ancestor_chains, count_hierarchy, match_by_iou
from sohes.evaluation.matching import Pairs
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks

WHOLE, LEFT, RIGHT, TIP = (0, 60), (0, 30), (30, 60), (0, 12)  # the tip is a part of the left part
TRUE_PARENTS = [-1, 0, 0, 1]


def masks(*spans):
    x = np.arange(64)[None, None]
    return PackedMasks.from_dense(np.concatenate([(x >= low) & (x < high) for low, high in spans]))


def score_all(
    spans, parents, *, gt=(WHOLE, LEFT, RIGHT, TIP), gt_parents=TRUE_PARENTS, scores=None, crowd=None, max_dets=(9,)
):
    evaluator = Evaluator(max_dets)
    scores = torch.ones(len(spans)) if scores is None else torch.tensor(scores)
    pred = Forest(masks(*spans), scores, torch.tensor(parents))
    evaluator.add(1, masks(*gt), pred, gt_parents=gt_parents, crowd=crowd)
    return evaluator.summary()


def score(spans, parents, **options):
    """(parent recall, ancestor F1)"""
    summary = score_all(spans, parents, **options)
    return summary["parent_recall"], summary["ancestor_f1"]


def score_contracted(spans, parents, **options):
    """(level accuracy, edit similarity)"""
    return tuple(score_all(spans, parents, **options)[name] for name in ("level_accuracy", "edit_similarity"))


def test_the_true_forest_scores_one():
    assert score([WHOLE, LEFT, RIGHT, TIP], TRUE_PARENTS) == (1, 1)


def test_order_and_scores_of_the_predictions_do_not_matter():
    assert score([TIP, RIGHT, WHOLE, LEFT], [3, 2, -1, 2], scores=[0.1, 0.9, 0.2, 0.3]) == (1, 1)


def test_flat_predictions_score_zero():
    assert score([WHOLE, LEFT, RIGHT, TIP], [-1, -1, -1, -1]) == (0, 0)


def test_a_missed_part_costs_parent_recall_but_not_f1():
    assert score([WHOLE, LEFT, TIP], [-1, 0, 1]) == (2 / 3, 1)


def test_a_level_that_nobody_drew_costs_nothing():
    truth = {"gt": (WHOLE, TIP), "gt_parents": [-1, 0]}
    assert score([WHOLE, LEFT, TIP], [-1, 0, 1], **truth) == (1, 1)


def test_an_ancestor_that_was_skipped_still_counts_for_the_others():
    """The tip is a child of the whole: whole-left, whole-right, whole-tip of the 4 true ancestors, none wrong."""
    parent_recall, f1 = score([WHOLE, LEFT, RIGHT, TIP], [-1, 0, 0, 0])
    assert parent_recall == 2 / 3
    assert f1 == 2 * 3 / (4 + 3)


def test_false_nesting_costs_f1():
    """Right is a child of left: 4 true ancestors found, left-right wrong."""
    assert score([WHOLE, LEFT, RIGHT, TIP], [-1, 0, 1, 1]) == (1, 2 * 4 / (4 + 5))


def test_upside_down_is_wrong():
    assert score([WHOLE, LEFT], [1, -1], gt=(WHOLE, LEFT), gt_parents=[-1, 0]) == (0, 0)


def test_the_best_fitting_prediction_is_the_match_whatever_its_score():
    """A loose whole (IoU 58/60) scores higher and is flat; the exact one holds the part."""
    spans, parents = [(0, 58), WHOLE, LEFT], [-1, -1, 1]
    truth = {"gt": (WHOLE, LEFT), "gt_parents": [-1, 0]}
    assert score(spans, parents, scores=[0.9, 0.2, 0.5], **truth) == (1, 1)


def test_predictions_past_max_dets_are_not_matched_but_still_hold_ancestors_together():
    truth = {"gt": (WHOLE, TIP), "gt_parents": [-1, 0]}
    assert score([WHOLE, LEFT, TIP], [-1, 0, 1], scores=[0.9, 0.1, 0.8], max_dets=(2,), **truth) == (1, 1)
    parent_recall, f1 = score([WHOLE, TIP], [-1, 0], scores=[0.9, 0.1], max_dets=(1,), **truth)
    assert parent_recall == 0
    assert math.isnan(f1)  # one mask is matched, so there is no pair to be right or wrong about


def test_crowds_have_no_part_in_it():
    parent_recall, f1 = score([WHOLE, LEFT, RIGHT, TIP], [-1, -1, 0, 1], crowd=[False, True, False, False])
    assert parent_recall == 1  # only whole-right is left of the true pairs
    assert f1 == 2 * 1 / (2 + 1)  # whole-right and whole-tip are true, the tip's only ancestor is the crowd's match


def test_images_without_a_hierarchy_stay_out_and_the_others_are_summed():
    evaluator = Evaluator()
    flat = Forest(masks(WHOLE, LEFT), torch.ones(2), torch.tensor([-1, -1]))
    nested = Forest(masks(WHOLE, LEFT), torch.ones(2), torch.tensor([-1, 0]))
    evaluator.add(1, masks(WHOLE, LEFT), nested)
    assert math.isnan(evaluator.summary()["parent_recall"])
    evaluator.add(2, masks(WHOLE, LEFT), nested, gt_parents=[-1, 0])
    evaluator.add(3, masks(WHOLE, LEFT), flat, gt_parents=[-1, 0])
    evaluator.add(4, masks(WHOLE, LEFT), nested, gt_parents=[-1, -1])
    summary = evaluator.summary()
    assert summary["parent_recall"] == 1 / 2
    assert summary["ancestor_f1"] == 2 * 1 / (2 + 2)
    rows = evaluator.per_image()
    assert [row["parent_recall"] for row in rows[1:3]] == [1, 0]
    assert math.isnan(rows[0]["parent_recall"])


def test_matching_takes_the_largest_iou_first_and_each_mask_once():
    pairs = Pairs(np.array([0, 1, 0, 2, 3]), np.array([0, 0, 1, 1, 2]), np.array([0.8, 0.7, 0.9, 0.6, 0.49]))
    assert match_by_iou(pairs, 3, np.zeros(3, bool)).tolist() == [1, 0, -1]
    ties = Pairs(np.array([1, 0, 1, 0]), np.array([1, 1, 0, 0]), np.full(4, 0.5))
    assert match_by_iou(ties, 2, np.zeros(2, bool)).tolist() == [0, 1]


def test_ancestor_chains():
    assert ancestor_chains(np.array([1, 2, -1, -1]), range(4)) == [[1, 2], [2], [], []]
    with pytest.raises(ValueError, match=r"^parents hold a cycle above mask 0$"):
        ancestor_chains(np.array([1, 0]), [0])
    with pytest.raises(ValueError, match=r"^expected parents from -1 to 1, got \[5, -1\]$"):
        ancestor_chains(np.array([5, -1]), [1])


def test_levels_and_edits_of_the_contracted_forests():
    every = [WHOLE, LEFT, RIGHT, TIP]
    assert score_contracted(every, TRUE_PARENTS) == (1, 1)
    assert score_contracted(every, [-1, 0, 0, 0]) == (3 / 4, 3 / 4)  # the tip is a child of the whole: one move
    assert score_contracted(every, [-1, 0, 0, 2]) == (1, 3 / 4)  # a child of the right: the same depth, another parent
    assert score_contracted(every, [-1, 0, 1, 1]) == (3 / 4, 3 / 4)  # the right is a child of the left
    # Right moves to the top: the whole and its subtree are one deeper, but only two masks have another parent.
    assert score_contracted(every, [2, 0, -1, 1]) == (0, 2 / 4)
    assert score_contracted(every, [-1, -1, -1, -1]) == (1 / 4, 1 / 4)


def test_levels_nobody_drew_and_masks_nobody_found_are_contracted_away():
    inner = (2, 58)  # IoU 56/60 with the whole, which fits better
    assert score_contracted([WHOLE, inner, LEFT, RIGHT, TIP], [-1, 0, 1, 1, 2]) == (1, 1)
    assert score_contracted([WHOLE, TIP], [-1, 0]) == (1, 1)  # the left part between them was not found
    assert score_contracted([LEFT, TIP], [-1, -1]) == (1 / 2, 1 / 2)
    assert all(map(math.isnan, score_contracted([(62, 64)], [-1])))


@pytest.mark.parametrize("seed", range(20))
def test_edit_similarity_is_the_distance_in_moves(seed):
    """The minimum number of moves by search; a move puts a mask under any mask outside its subtree."""
    rng = np.random.default_rng(seed)
    count = 4
    forests = [[int(rng.integers(-1, index)) for index in range(count)] for _ in range(2)]
    shuffle = rng.permutation(count)
    start, goal = tuple(forests[0]), [-1] * count
    for index, parent in enumerate(forests[1]):
        goal[shuffle[index]] = -1 if parent < 0 else int(shuffle[parent])
    distance, seen, front = 0, {start}, {start}
    while tuple(goal) not in front:
        front = {moved for forest in front for moved in moves(forest)} - seen
        seen |= front
        distance += 1
    counts = count_hierarchy(np.arange(count), np.array(goal), np.array(start), np.zeros(count, bool))
    assert (counts.matched - counts.parents_right, counts.matched) == (distance, count)


def moves(forest):
    for mask in range(len(forest)):
        for parent in range(-1, len(forest)):
            chain = [] if parent < 0 else [parent, *ancestor_chains(np.array(forest), [parent])[0]]
            if mask not in chain:
                yield (*forest[:mask], parent, *forest[mask + 1 :])


def test_counts_add_up():
    total = HierarchyCounts(1, 1, 2, 3, 1, 5, 2, 1) + HierarchyCounts(3, 1, 0, 1, 0, 5, 1, 4)
    assert total == HierarchyCounts(4, 2, 2, 4, 1, 10, 3, 5)
    assert list(total.metrics().values()) == [0.5, 2 / 6, 0.3, 0.5]
