# SPDX-License-Identifier: Apache-2.0
"""The ceiling of phase 1: the best masks its (first) merge tree holds, chosen by looking at the truth.

Every node of the tree of one photo is a candidate, drawn at the photo's own resolution with the very pixels that phase
1 would draw. True masks get different nodes; the assignment maximises the number of IoU thresholds .50:.05:.95 that are
reached, then the IoU. What ranking, cuts, filters and limits of phase 1 lose is the difference to this number; what its
features lose is the difference of this number to 100. Holes are not filled and no mask is sharpened, which the tree
knows nothing of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sohes.evaluation.protocol import COCO_THRESHOLDS
from sohes.labels.draw import draw_nodes
from sohes.labels.features import FeatureExtractor
from sohes.labels.photo_regions import photo_tree
from sohes.ops.merge_tree import MergeTree
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks


def tree_oracle_forest(
    image: Tensor, truths: Sequence[PackedMasks], extractor: FeatureExtractor, max_masks: int
) -> Forest:
    """The assigned nodes, scored by their IoU; nested as phase 1 nests masks.

    image: uint8 [3, H, W]. truths: true masks of the photo's size, one set per annotator, who are assigned to each on
    their own. max_masks: the best are kept.
    """
    tree, patches = photo_tree(image, extractor)  # [H, W]
    best: dict[int, float] = {}  # node -> its IoU
    for masks in truths:
        for node, iou in assign_nodes(node_ious(tree, patches, masks)):
            best[node] = max(iou, best.get(node, 0.0))
    ranked = sorted(best, key=lambda node: (-best[node], node))[:max_masks]
    masks = draw_nodes(tree, torch.tensor(ranked, dtype=torch.int64, device="cpu"), patches)
    return Forest(
        masks, torch.tensor([best[node] for node in ranked], dtype=torch.float32, device="cpu"), build_forest(masks)
    )


def node_ious(tree: MergeTree, patches: Tensor, masks: PackedMasks) -> np.ndarray:
    """IoU of every node of the tree with every mask, float64 [R, M]. patches: int64 [H, W], the leaf of each pixel.

    A node is an interval of leaves in depth-first order, so its overlap with a mask is a difference of running sums.
    """
    starts, counts, order = (array.numpy() for array in tree.intervals)  # [R], [R], [N]
    flat, num_leaves = patches.flatten(), tree.num_leaves

    def over_nodes(per_leaf: np.ndarray) -> np.ndarray:
        sums = np.append(0, np.cumsum(per_leaf[order]))  # [N + 1]
        return sums[starts + counts] - sums[starts]  # [R]

    areas = over_nodes(np.bincount(flat.numpy(), minlength=num_leaves))  # [R]
    ious = np.zeros((tree.num_nodes, len(masks)))
    for m in range(len(masks)):  # unpacked one at a time: memory does not follow their number
        inside = masks[m].to_dense()[0].flatten()
        overlap = over_nodes(np.bincount(flat[inside].numpy(), minlength=num_leaves))  # [R]
        ious[:, m] = overlap / np.maximum(areas + int(masks.areas[m]) - overlap, 1)
    return ious


def assign_nodes(ious: np.ndarray) -> list[tuple[int, float]]:
    """One (node, IoU) for each mask that any node reaches at the lowest threshold and that gets a node of its own."""
    thresholds = np.array(COCO_THRESHOLDS)
    nodes = np.flatnonzero((ious >= thresholds[0]).any(1))  # [n]
    gain = np.searchsorted(thresholds, ious[nodes], side="right") + 0.01 * ious[nodes]  # [n, M]
    gain[ious[nodes] < thresholds[0]] = 0
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(nodes[r]), float(ious[nodes[r], c])) for r, c in zip(rows, columns, strict=True) if gain[r, c] > 0]
