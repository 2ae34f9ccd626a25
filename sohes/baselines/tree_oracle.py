# SPDX-License-Identifier: Apache-2.0
"""The upper bound of phase 1: the best masks of its (first) merge tree, selected with the ground truth.

Every node of the tree of a photo is a candidate, drawn at the photo's resolution with the same pixels as in phase 1.
Each true mask is assigned a different node; the assignment maximises the number of reached IoU thresholds .50:.05:.95,
then the IoU. The difference between phase 1 and this score is the loss by ranking, cuts, filters and limits; the
difference between this score and 100 is the loss by features. Holes are not filled and masks are not refined, as these
steps come after the tree.
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
    """The assigned nodes as a forest, scored by their IoU and nested as in phase 1.

    image: uint8 [3, H, W]. truths: true masks of the photo's size, one set per annotator; each set is assigned
    separately. max_masks: the best are kept.
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

    A node is an interval of leaves in depth-first order, so its overlap with a mask is a difference of cumulative sums.
    """
    starts, counts, order = (array.numpy() for array in tree.intervals)  # [R], [R], [N]
    flat, num_leaves = patches.flatten(), tree.num_leaves

    def over_nodes(per_leaf: np.ndarray) -> np.ndarray:
        sums = np.append(0, np.cumsum(per_leaf[order]))  # [N + 1]
        return sums[starts + counts] - sums[starts]  # [R]

    areas = over_nodes(np.bincount(flat.numpy(), minlength=num_leaves))  # [R]
    ious = np.zeros((tree.num_nodes, len(masks)))
    for m in range(len(masks)):  # one at a time, to save memory
        inside = masks[m].to_dense()[0].flatten()
        overlap = over_nodes(np.bincount(flat[inside].numpy(), minlength=num_leaves))  # [R]
        ious[:, m] = overlap / np.maximum(areas + int(masks.areas[m]) - overlap, 1)
    return ious


def assign_nodes(ious: np.ndarray) -> list[tuple[int, float]]:
    """(node, IoU) of each mask that is assigned a node with an IoU at or above the lowest threshold."""
    thresholds = np.array(COCO_THRESHOLDS)
    nodes = np.flatnonzero((ious >= thresholds[0]).any(1))  # [n]
    gain = np.searchsorted(thresholds, ious[nodes], side="right") + 0.01 * ious[nodes]  # [n, M]
    gain[ious[nodes] < thresholds[0]] = 0
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(nodes[r]), float(ious[nodes[r], c])) for r, c in zip(rows, columns, strict=True) if gain[r, c] > 0]
