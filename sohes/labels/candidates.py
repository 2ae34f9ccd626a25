# SPDX-License-Identifier: Apache-2.0
"""From a merge tree to a short list of scored candidates, still without a pixel: cuts, sizes, duplicates, scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sohes.configs.run import ExploreConfig
from sohes.labels.node_statistics import NodeStatistics, node_statistics
from sohes.labels.view import View
from sohes.ops.merge_tree import MergeTree

# Filters and duplicates take some of the drawn masks away: this many times max_masks are drawn.
_SPARE = 1.5
# Lab difference between patches at which an edge counts half. [ours]
_EDGE_SOFTNESS = 10.0
# Exponents of the score's factors contrast, separation, share of the image and roundness, measured on photos. [ours]
_EXPONENTS = (1.0, 1.0, 0.4, 0.5)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Nodes worth drawing, best first. ids: int64 [n] of tree nodes. scores: float32 [n] in (0, 1]."""

    ids: Tensor
    scores: Tensor


def find_candidates(tree: MergeTree, view: View, config: ExploreConfig) -> Candidates:
    """The nodes that the cuts show, of legal size, without duplicates, best first (of equals the lower id first)."""
    tree = replace(tree, leaf_sizes=view.patch_sizes.cpu())  # areas in pixels of the view
    areas = tree.areas.numpy()
    height, width = view.lab.shape[1:]
    smallest, largest = area_limits(view.photo_size, config)
    to_photo = view.photo_size[0] * view.photo_size[1] / (height * width)
    ids = tree.candidates(cut_thresholds(tree, config)).numpy()
    if config.cuts == "adaptive" and config.num_cuts == 0:
        ids = np.arange(tree.num_nodes)
    ids = ids[(areas[ids] * to_photo >= smallest) & (areas[ids] * to_photo <= largest)]
    scores = node_scores(node_statistics(tree, view.pool(view.lab), _EDGE_SOFTNESS), areas / (height * width))
    kept = drop_nested_duplicates(tree, ids[np.argsort(-scores[ids], kind="stable")], config.nms_iou)
    return Candidates(torch.from_numpy(kept), torch.from_numpy(scores[kept].astype(np.float32)))


def area_limits(size: tuple[int, int], config: ExploreConfig) -> tuple[float, float]:
    """Smallest and largest legal mask, in pixels of a photo of `size`."""
    pixels = size[0] * size[1]
    return max(config.min_pixels, config.min_area * pixels / 480**2), config.max_area * pixels


def num_drawn(config: ExploreConfig) -> int:
    """How many candidates become masks: more than are kept, since some of them will be filtered out."""
    return int(config.max_masks * _SPARE) + 1


def cut_thresholds(tree: MergeTree, config: ExploreConfig) -> list[float]:
    """The similarities to cut at.

    Adaptive ones are quantiles of the similarities of this very tree, so that they fit any backbone: the numbers of
    regions left are spread evenly on a logarithmic scale between 1 and all patches.
    """
    if config.cuts == "fixed":
        return list(config.thresholds)
    if len(tree.merges) == 0 or config.num_cuts == 0:
        return []
    lowest = np.minimum.accumulate(tree.similarity.numpy())  # cuts see the running minimum: some merges rise again
    regions = np.geomspace(2, tree.num_leaves, config.num_cuts)
    return np.unique(lowest[(tree.num_leaves - regions).round().astype(int)]).tolist()


def node_scores(statistics: NodeStatistics, share: np.ndarray) -> np.ndarray:
    """Score in (0, 1] of every node, float64 [R]; `share` [R] is its area relative to the image's.

    A geometric mean: an entity has a strong contrast along its border, was swallowed by something unlike it, is not
    tiny, and is round rather than thread-like (4 * patches / border^2 is at most 1/4 on a grid without image border).
    """
    roundness = (4 * statistics.counts / np.maximum(statistics.border, 4) ** 2).clip(0, 1)
    factors = (statistics.contrast, statistics.separation, share, roundness)
    logarithm = sum(e * np.log(np.clip(f, 1e-3, 1)) for e, f in zip(_EXPONENTS, factors, strict=True))
    return np.exp(logarithm / sum(_EXPONENTS))


def drop_nested_duplicates(tree: MergeTree, ids: np.ndarray, iou: float, limit: int | None = None) -> np.ndarray:
    """Of `ids` [n], best first, those whose IoU with every better one is at most `iou`; the first `limit` of them.

    Nodes are nested or apart; the IoU of nested ones is the ratio of their areas, so only the chains above and below
    a kept node need a look, as far as areas stay close.
    """
    areas, parents = tree.areas.tolist(), tree.parents.tolist()
    children, num_leaves = tree.merges.tolist(), tree.num_leaves
    dropped = bytearray(tree.num_nodes)
    kept = []
    for node in ids.tolist():
        if dropped[node]:
            continue
        if len(kept) == limit:
            break
        kept.append(node)
        above = parents[node]
        while above >= 0 and areas[node] > iou * areas[above]:
            dropped[above] = True
            above = parents[above]
        below = [node]
        while below:
            part = below.pop()
            for child in children[part - num_leaves] if part >= num_leaves else ():
                if areas[child] > iou * areas[node]:
                    dropped[child] = True
                    below.append(child)
    return np.asarray(kept, dtype=np.int64)
