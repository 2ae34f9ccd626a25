# SPDX-License-Identifier: Apache-2.0
"""How well a predicted forest agrees with the true one, among the masks that were found. [ours]

Matching. Pairs of a prediction and a true mask (crowds left out) with IoU >= 0.5 are taken from the largest IoU
down, of equals the lower true index, then the lower prediction; each mask is used once. So a true mask ``g`` gets
the prediction ``m(g)`` that fits it best, or none. Scores play no part: the hierarchy is judged on the best masks
there are.

Parent recall. ``E`` holds the true (parent, child) pairs::

    parent_recall = |{(p, c) in E : m(p), m(c) exist and m(p) is an ancestor of m(c)}| / |E|

Any ancestor will do, as a prediction may have found a level in between that nobody drew. A pair of which a member
is not matched counts as missed, so this cannot exceed the recall of the masks themselves. Pairs with a crowd are
left out of E.

Ancestor F1. ``S`` holds the matched true masks. ``T = {(i, j) in S x S : i is an ancestor of j}`` and
``P = {(i, j) in S x S : m(i) is an ancestor of m(j)}``::

    ancestor_f1 = 2 |T & P| / (|T| + |P|)

It asks only whether the masks that were found are nested as they should be.

Level accuracy and edit similarity compare the two forests after both are contracted to the matched masks, that is
every other mask is taken out and its children move up to the nearest one left. In either of the contracted forests
let ``level`` be the number of masks above one and ``parent`` the nearest of them, or none for a root::

    level_accuracy  = |{g in S : level_true(g) = level_pred(g)}| / |S|
    edit_similarity = |{g in S : parent_true(g) = parent_pred(g)}| / |S|

A mask whose parent is wrong has to be hung elsewhere, with all below it, and doing this once is enough. So ``1 -
edit_similarity`` is the tree edit distance, in such moves, from the predicted to the true forest over the same masks,
per mask; and contraction keeps extra levels that nobody drew, and masks that nobody found, from being charged here.

All four are summed over all images that have a true hierarchy before they are divided, and NaN when the denominator
is 0. Categories play no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sohes.evaluation.reference.matching import Pairs

MATCH_IOU = 0.5
METRICS = ("parent_recall", "ancestor_f1", "level_accuracy", "edit_similarity")


@dataclass(frozen=True)
class HierarchyCounts:
    """The numbers above, of one image or summed over many."""

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
        """In the order of the fields."""
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
        """By name."""
        return {name: getattr(self, name) for name in METRICS}


def match_by_iou(pairs: Pairs, num_gt: int, crowd: np.ndarray) -> np.ndarray:
    """The prediction matched to each true mask, int64 [M], -1 for none (see the top of this file)."""
    match = np.full(num_gt, -1, np.int64)  # [M]
    fit = (pairs.iou >= MATCH_IOU) & ~crowd[pairs.gt]  # [P]
    pred, gt, iou = pairs.pred[fit], pairs.gt[fit], pairs.iou[fit]
    used: set[int] = set()
    for k in np.lexsort((pred, gt, -iou)).tolist():
        if match[gt[k]] < 0 and pred[k] not in used:
            match[gt[k]] = pred[k]
            used.add(pred[k])
    return match


def count_hierarchy(
    match: np.ndarray, gt_parents: np.ndarray, pred_parents: np.ndarray, crowd: np.ndarray
) -> HierarchyCounts:
    """match int64 [M] (index into N predictions or -1), gt_parents int64 [M] and pred_parents int64 [N] (-1 is a
    root), crowd bool [M] -> the counts of one image. Raises ValueError when ``gt_parents`` is not a forest."""
    found = np.flatnonzero(match >= 0).tolist()
    true_of = {pred: true for true, pred in enumerate(match.tolist()) if pred >= 0}
    true_chains = ancestor_chains(gt_parents, range(len(gt_parents)))
    pred_chains = ancestor_chains(pred_parents, match[found].tolist())
    # Per matched true mask, those matched that are above it, nearest first: as it is, and as it was predicted.
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
    """For each start the masks above it, nearest first. Raises ValueError for a parent out of range or a cycle."""
    above = parents.tolist()
    if above and not (min(above) >= -1 and max(above) < len(above)):
        raise ValueError(f"expected parents from -1 to {len(above) - 1}, got {above}")
    chains = []
    for start in starts:
        chain, index = [], above[start]
        while index >= 0:
            if len(chain) == len(above):
                raise ValueError(f"parents hold a cycle above mask {start}")
            chain.append(index)
            index = above[index]
        chains.append(chain)
    return chains
