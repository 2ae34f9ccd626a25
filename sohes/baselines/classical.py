# SPDX-License-Identifier: Apache-2.0
"""Baselines without learning: Felzenszwalb's segments at many scales, a tree of SLIC superpixels, a grid of boxes.

Each maps a photo, uint8 [3, H, W], to a forest. None estimates the quality of a mask, so larger masks are ranked first.
The first two need scikit-image.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from sohes.configs.evaluate import BaselineConfig
from sohes.labels.color import rgb_to_lab
from sohes.labels.draw import draw_nodes
from sohes.ops.merge_regions import merge_regions_graph
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, nms_masks
from sohes.utils.errors import SohesError

# Upper bound of the difference of one Lab channel, so that the cosine below is monotonic.
_LAB_RANGE = 200.0


class MissingDependency(SohesError, RuntimeError):
    """A baseline needs a package that is not installed."""


def import_segmentation() -> ModuleType:
    """`skimage.segmentation`, an optional dependency. Raises MissingDependency if it is not installed."""
    try:
        from skimage import segmentation
    except ImportError as error:
        raise MissingDependency(
            "felzenszwalb and slic-tree need scikit-image, which is not installed: pip install scikit-image"
        ) from error
    return segmentation


def felzenszwalb_forest(image: Tensor, config: BaselineConfig) -> Forest:
    """The segments of Felzenszwalb and Huttenlocher (2004) at every scale of the config."""
    felzenszwalb = import_segmentation().felzenszwalb
    pixels = image.permute(1, 2, 0).numpy()
    parts = []
    for scale in config.felzenszwalb_scales:
        settings = {"sigma": config.felzenszwalb_sigma, "min_size": config.felzenszwalb_min_size}
        labels = torch.from_numpy(felzenszwalb(pixels, scale=scale, **settings))  # [H, W]
        parts.append(PackedMasks.from_label_map(labels, labels.unique()))
    return largest_first(PackedMasks.cat(parts), config)


def slic_tree_forest(image: Tensor, config: BaselineConfig) -> Forest:
    """Every node of a tree of SLIC superpixels (Achanta et al. 2012), merged by colour as phase 1 merges patches.

    The similarity of mean Lab colours p and q is the mean over channels of ``cos(pi * (p - q) / 200)``: the cosine
    similarity of the channels' ``(cos, sin)``, which falls with their distance.
    """
    settings = {"n_segments": config.slic_segments, "compactness": config.slic_compactness, "start_label": 0}
    pixels = image.permute(1, 2, 0).numpy()
    labels = torch.from_numpy(import_segmentation().slic(pixels, **settings))  # [H, W]
    sizes = torch.bincount(labels.flatten())  # [N]
    lab = rgb_to_lab(image).flatten(1).T  # [H*W, 3]
    means = lab.new_zeros(len(sizes), 3).index_add_(0, labels.flatten(), lab) / sizes[:, None]  # [N, 3]
    angles = means * (math.pi / _LAB_RANGE)  # [N, 3]
    tree = merge_regions_graph(torch.cat([angles.cos(), angles.sin()], 1), _neighbours(labels), sizes=sizes)
    return largest_first(draw_nodes(tree, torch.arange(tree.num_nodes, device=labels.device), labels), config)


def box_grid_forest(image: Tensor, config: BaselineConfig) -> Forest:
    """k x k boxes that tile the photo, for every k of the config, and the same tilings shifted by half a box."""
    height, width = image.shape[1:]
    parts = []
    for k in config.box_grid_sides:
        sides = (torch.arange(side, device=image.device) for side in (height, width))
        halves = [places * (2 * k) // len(places) for places in sides]  # index of the half box, per row and column
        for shift_y, shift_x in ((0, 0), (0, 1), (1, 0), (1, 1)) if k > 1 else ((0, 0),):
            row, column = (half - shift for half, shift in zip(halves, (shift_y, shift_x), strict=True))
            inside = ((row >= 0) & (row < 2 * (k - shift_y)))[:, None] & ((column >= 0) & (column < 2 * (k - shift_x)))
            labels = torch.where(inside, (row // 2)[:, None] * k + column // 2, -1)  # [H, W]
            parts.append(PackedMasks.from_label_map(labels, labels[inside].unique()))
    return largest_first(PackedMasks.cat(parts), config)


def largest_first(masks: PackedMasks, config: BaselineConfig) -> Forest:
    """The masks without tiny ones and duplicates, at most `max_masks`, scored by their fraction of the image."""
    masks = masks[masks.areas >= config.min_pixels]
    masks = masks[nms_masks(masks, config.nms_iou)[: config.max_masks]]
    scores = (masks.areas / (masks.size[0] * masks.size[1])).float()
    return Forest(masks, scores, build_forest(masks))


def _neighbours(labels: Tensor) -> Tensor:
    """Unique pairs of adjacent labels (4-neighbours), int64 [E, 2]. labels: [H, W]."""
    right = torch.stack([labels[:, :-1].flatten(), labels[:, 1:].flatten()], 1)
    down = torch.stack([labels[:-1].flatten(), labels[1:].flatten()], 1)
    pairs = torch.cat([right, down])
    return pairs[pairs[:, 0] != pairs[:, 1]].sort(1).values.unique(dim=0)
