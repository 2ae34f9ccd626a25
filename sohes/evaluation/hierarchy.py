# SPDX-License-Identifier: Apache-2.0
"""Metrics of the agreement of a predicted and a true forest, over the masks that were found. [ours]

Matching. Pairs of a prediction and a true mask (without crowds) with IoU >= 0.5 are taken by falling IoU; ties: the
lower true index, then the lower prediction. Each mask is used once. So a true mask ``g`` is matched to at most one
prediction ``m(g)``. Scores are not used: the hierarchy is measured on the best available masks.

Parent recall. ``E`` holds the true (parent, child) pairs::

    parent_recall = |{(p, c) in E : m(p), m(c) exist and m(p) is an ancestor of m(c)}| / |E|

Any ancestor counts, as the prediction may have an extra level in between. A pair with an unmatched member counts as
missed, so parent recall cannot exceed the recall of the masks. Pairs with a crowd are not in E.

Ancestor F1. ``S`` holds the matched true masks. ``T = {(i, j) in S x S : i is an ancestor of j}`` and
``P = {(i, j) in S x S : m(i) is an ancestor of m(j)}``::

    ancestor_f1 = 2 |T & P| / (|T| + |P|)

It measures only whether the masks that were found are nested correctly.

Level accuracy and edit similarity compare the two forests after both are contracted to the matched masks: every other
mask is removed and its children move to its nearest remaining ancestor. In each contracted forest, ``level`` is the
number of a mask's ancestors and ``parent`` the nearest ancestor, or none for a root::

    level_accuracy  = |{g in S : level_true(g) = level_pred(g)}| / |S|
    edit_similarity = |{g in S : parent_true(g) = parent_pred(g)}| / |S|

A mask with a wrong parent has to be moved once, with its subtree. So ``1 - edit_similarity`` is the tree edit distance
per mask, counted in such moves, from the predicted to the true forest over the same masks. By contraction, extra levels
and missed masks do not count as errors here.

Numerators and denominators are summed over all images with a true hierarchy; a metric is NaN if its denominator is 0.
Categories are not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sohes.evaluation.reference.matching import Pairs

MATCH_IOU = 0.5
METRICS = ("parent_recall", "ancestor_f1", "level_accuracy", "edit_similarity")


@dataclass(frozen=True)
class HierarchyCounts:
    """The counts defined at the top of this file, of one image or summed over many."""

    parent_pairs: int = 0  # |E|
    parent_pairs_found: int = 0
    true_ancestors: int = 0  # |T|
    pred_ancestors: int = 0  # |P|
    shared_ancestors: int = 0  # |T & P|
    matched: int = 0  # |S|
    levels_right: int = 0
    parents_right: int = 0

    def __add__(self, other: HierarchyCounts) -> HierarchyCounts:
        return HierarchyCounts(*map(sum, zip(self.counts(), other.counts(), strict=True)))

    def counts(self) -> tuple[int, ...]:
        """All counts in the order of the fields."""
        return tuple(vars(self).values())

    @property
    def parent_recall(self) -> float:
        return self.parent_pairs_found / self.parent_pairs if self.parent_pairs else float("nan")

    @property
    def ancestor_f1(self) -> float:
        total = self.true_ancestors + self.pred_ancestors
        return 2 * self.shared_ancestors / total if total else float("nan")

    @property
    def level_accuracy(self) -> float:
        return self.levels_right / self.matched if self.matched else float("nan")

    @property
    def edit_similarity(self) -> float:
        return self.parents_right / self.matched if self.matched else float("nan")

    def metrics(self) -> dict[str, float]:
        """The four metrics by name."""
        return {name: getattr(self, name) for name in METRICS}


def match_by_iou(pairs: Pairs, num_gt: int, crowd: np.ndarray) -> np.ndarray:
    """Index of the prediction matched to each true mask, int64 [M], -1 for none (see the top of this file)."""
    match = np.full(num_gt, -1, np.int64)  # [M]
    valid = (pairs.iou >= MATCH_IOU) & ~crowd[pairs.gt]  # [P]
    pred, gt, iou = pairs.pred[valid], pairs.gt[valid], pairs.iou[valid]
    used: set[int] = set()
    for k in np.lexsort((pred, gt, -iou)).tolist():
        if match[gt[k]] < 0 and pred[k] not in used:
            match[gt[k]] = pred[k]
            used.add(pred[k])
    return match


def count_hierarchy(
    match: np.ndarray, gt_parents: np.ndarray, pred_parents: np.ndarray, crowd: np.ndarray
) -> HierarchyCounts:
    """The counts of one image.

    match: int64 [M], index into N predictions or -1. gt_parents: int64 [M], pred_parents: int64 [N], -1 for a root.
    crowd: bool [M]. Raises ValueError if parents are not a forest.
    """
    found = np.flatnonzero(match >= 0).tolist()
    true_of = {pred: true for true, pred in enumerate(match.tolist()) if pred >= 0}
    true_chains = ancestor_chains(gt_parents, range(len(gt_parents)))
    pred_chains = ancestor_chains(pred_parents, match[found].tolist())
    # Matched ancestors of each matched true mask, nearest first: in the true and in the predicted forest.
    true_above = {true: [above for above in true_chains[true] if match[above] >= 0] for true in found}
    pred_above = {
        true: [true_of[pred] for pred in chain if pred in true_of]
        for true, chain in zip(found, pred_chains, strict=True)
    }
    edges = [(p, c) for c, p in enumerate(gt_parents.tolist()) if p >= 0 and not crowd[p] and not crowd[c]]
    return HierarchyCounts(
        parent_pairs=len(edges),
        parent_pairs_found=sum(p in pred_above.get(c, ()) for p, c in edges),
        true_ancestors=sum(map(len, true_above.values())),
        pred_ancestors=sum(map(len, pred_above.values())),
        shared_ancestors=sum(len(set(true_above[true]) & set(pred_above[true])) for true in found),
        matched=len(found),
        levels_right=sum(len(true_above[true]) == len(pred_above[true]) for true in found),
        parents_right=sum(true_above[true][:1] == pred_above[true][:1] for true in found),
    )


def ancestor_chains(parents: np.ndarray, starts: range | list[int]) -> list[list[int]]:
    """The ancestors of each start, nearest first. Raises ValueError for a parent out of range or a cycle."""
    above = parents.tolist()
    if above and not (min(above) >= -1 and max(above) < len(above)):
        raise ValueError(f"expected parents from -1 to {len(above) - 1}, got {above}")
    chains = []
    for start in starts:
        chain: list[int] = []
        index = above[start]
        while index >= 0:
            if len(chain) == len(above):
                raise ValueError(f"parents hold a cycle above mask {start}")
            chain.append(index)
            index = above[index]
        chains.append(chain)
    return chains
