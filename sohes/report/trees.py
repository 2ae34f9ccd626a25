# SPDX-License-Identifier: Apache-2.0
"""Merge trees of photos, packed so that a page can cut them anywhere, and masks before and after refinement.

Patches are in the order of the depth-first layout of their tree. In this order every region is a contiguous range, at
every step of the merging. So one array stores the whole tree: `joined[i]` is the merge that joined patches i and i + 1.
After m merges a new region begins after every patch i with `joined[i] >= m`.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.ndimage import binary_erosion
from torch import Tensor

from sohes.configs.io import from_dict
from sohes.configs.run import ExploreConfig
from sohes.data.coco import LabelSet
from sohes.data.images import read_image
from sohes.labels.features import FeatureExtractor, build_extractor
from sohes.labels.photo_regions import photo_tree
from sohes.labels.pipeline import label_image
from sohes.ops.merge_tree import MergeTree
from sohes.report.photos import TILE, choose_evenly, image_uri, png_uri, training_root
from sohes.report.record import RunRecord
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks, mask_iou
from sohes.utils.errors import SohesError
from sohes.visual.draw import resize_forest, resize_image

_NUM_CUTS = 49
_STILL_REGIONS = 24  # about so many regions has the cut shown without a script
_MAX_PATCHES = 1 << 16
_MARGIN = 0.2  # around the enlarged mask, relative to the long side of its box
_CONTOUR = (255, 255, 255)
_RIM, _RIM_COLOR = 2, (255, 225, 0)  # outline of the enlarged mask: width in pixels, a colour that is rare in photos


@dataclass(frozen=True)
class Closeup:
    """One mask, enlarged. uri: crop of the photo; before, after: outlines as transparent pictures of the same size
    (h, w); iou: between the masks before and after refinement."""

    uri: str
    before: str
    after: str
    size: tuple[int, int]
    iou: float


@dataclass(frozen=True)
class TreePicture:
    """A photo with its merge tree.

    size: (h, w) of the picture. places: uint16 [h * w], for each pixel the position of its patch in the layout of the
    tree. joined: uint16 [patches - 1]. Both are deflated, in base64. cuts: (similarity, merges done, regions), from
    many regions to few. still: the cut shown without a script, as a data URI.
    """

    name: str
    uri: str
    size: tuple[int, int]
    places: str
    joined: str
    cuts: list[tuple[float, int, int]]
    still: str
    closeup: Closeup | None


@dataclass(frozen=True)
class TreePanels:
    pictures: list[TreePicture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def collect_trees(run: RunRecord, num_photos: int, device: torch.device | None = None) -> TreePanels:
    """Merge trees of up to `num_photos` labelled photos, computed again with the settings of the run."""
    shards = sorted((run.path / "labels").glob("shard-*.json"))[:1]
    if num_photos < 1 or not shards or "explore" not in run.config:
        return TreePanels()
    panels = TreePanels()
    try:
        config = from_dict(ExploreConfig, run.config["explore"], "explore")
        labels = LabelSet(shards[0], training_root(run, shards[0]))
        extractor, rough = build_extractor(config, device), build_extractor(unrefined(config), device)
    except (SohesError, ValueError) as error:
        panels.problems.append(f"no merge trees: {error}")
        return panels
    for index in choose_evenly(range(len(labels)), num_photos):
        try:
            path = labels[index].path
            panels.pictures.append(draw_tree(read_image(path), path.name, extractor, rough, config))
        except SohesError as error:
            panels.problems.append(str(error))
    return panels


def draw_tree(
    image: Tensor, name: str, extractor: FeatureExtractor, rough: FeatureExtractor, config: ExploreConfig
) -> TreePicture:
    """The merge tree of one photo, uint8 [3, H, W]. rough: the extractor without refinement.

    Raises SohesError if the photo has too many patches.
    """
    tree, leaves = photo_tree(image, extractor)
    if tree.num_leaves > _MAX_PATCHES:
        raise SohesError(f"{name}: {tree.num_leaves} patches are too many to show its tree")
    small = resize_image(image, TILE)  # [3, h, w]
    size = (small.shape[1], small.shape[2])
    order, joined = layout_boundaries(tree)
    place_of = np.empty(tree.num_leaves, np.uint16)
    place_of[order] = np.arange(tree.num_leaves)
    places = place_of[_resize_labels(leaves, size).numpy()]  # [h, w]
    cuts = spread_cuts(tree, _NUM_CUTS)
    still = min(cuts, key=lambda cut: abs(cut[2] - _STILL_REGIONS))
    return TreePicture(
        name=name,
        uri=image_uri(small),
        size=size,
        places=_deflated(places),
        joined=_deflated(joined),
        cuts=cuts,
        still=_draw_cut(small, places, joined, still[1]),
        closeup=_draw_closeup(image, extractor, rough, config),
    )


def layout_boundaries(tree: MergeTree) -> tuple[np.ndarray, np.ndarray]:
    """Leaves in the order of the layout, int64 [N], and the merge that joined each with the next, uint16 [N - 1]: its
    index, or the number of merges if none did."""
    starts, _, order = (one.numpy() for one in tree.intervals)
    joined = np.full(max(tree.num_leaves - 1, 0), len(tree.merges), np.uint16)
    pairs = starts[tree.merges.numpy().reshape(-1, 2)]  # [M, 2]: starts of the two regions of each merge
    joined[pairs.max(1) - 1] = np.arange(len(pairs))
    return order, joined


def spread_cuts(tree: MergeTree, count: int) -> list[tuple[float, int, int]]:
    """About `count` cuts (similarity, merges done, regions), their numbers of regions evenly spaced in logarithm."""
    if len(tree.merges) == 0:
        return [(1.0, 0, tree.num_leaves)]
    lowest = np.minimum.accumulate(tree.similarity.numpy())  # merges may rise in similarity; cuts may not
    regions = np.geomspace(tree.num_leaves, tree.num_leaves - len(tree.merges) + 1, count)
    thresholds = np.unique(lowest[(tree.num_leaves - regions).round().astype(int)])[::-1]
    merges = [tree.num_merges(float(threshold)) for threshold in thresholds]
    found = [(float(t), m, tree.num_leaves - m) for t, m in zip(thresholds, merges, strict=True)]
    return [(1.0, 0, tree.num_leaves), *(cut for cut in found if cut[1] > 0)]


def unrefined(config: ExploreConfig) -> ExploreConfig:
    """The settings without refinement: masks of square patches from one pass."""
    return replace(config, start="patches", snap_rounds=0, refiner="none", theta_small=0.0)


def _draw_closeup(
    image: Tensor, extractor: FeatureExtractor, rough: FeatureExtractor, config: ExploreConfig
) -> Closeup | None:
    """The best mask of medium size inside the photo, before and after; None if the settings have no refinement."""
    if unrefined(config) == config:
        return None
    after = label_image(image, extractor, config)
    before = label_image(image, rough, unrefined(config))
    if len(after) == 0 or len(before) == 0:
        return None
    height, width = image.shape[1:]
    share, boxes = after.masks.areas / (height * width), after.masks.boxes  # [N], [N, 4]
    is_inside = (boxes[:, :2] > 0).all(1) & (boxes[:, 2] < width) & (boxes[:, 3] < height)
    good = (is_inside & (share > 0.01) & (share < 0.35)).nonzero().flatten()
    chosen = int(good[0]) if len(good) else 0  # best scores come first
    ious = mask_iou(after.masks[chosen : chosen + 1], before.masks)[0]  # [n]
    box = _widen(boxes[chosen].tolist(), height, width)
    x0, y0, x1, y1 = box
    crop = resize_image(image[:, y0:y1, x0:x1].contiguous(), TILE)
    size = (crop.shape[1], crop.shape[2])
    return Closeup(
        uri=image_uri(crop),
        before=_outline(before, int(ious.argmax()), box, size),
        after=_outline(after, chosen, box, size),
        size=size,
        iou=float(ious.max()),
    )


def _outline(forest: Forest, index: int, box: tuple[int, int, int, int], size: tuple[int, int]) -> str:
    x0, y0, x1, y1 = box
    dense = forest.masks[index : index + 1].to_dense()[:, y0:y1, x0:x1]
    alone = Forest(PackedMasks.from_dense(dense), torch.ones(1), torch.tensor([-1]))
    mask = resize_forest(alone, size).masks.to_dense()[0].numpy()  # [h, w]
    rim = mask & ~binary_erosion(mask, iterations=_RIM, border_value=1)
    picture = torch.zeros(4, *size, dtype=torch.uint8)
    picture[:, torch.from_numpy(rim)] = torch.tensor([*_RIM_COLOR, 255], dtype=torch.uint8)[:, None]
    return png_uri(picture)


def _widen(box: list[int], height: int, width: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    margin = max(8, round(_MARGIN * max(x1 - x0, y1 - y0)))
    return max(x0 - margin, 0), max(y0 - margin, 0), min(x1 + margin, width), min(y1 + margin, height)


def _draw_cut(photo: Tensor, places: np.ndarray, joined: np.ndarray, merges: int) -> str:
    """The regions after some merges in their mean colours with white contours, as the script of the page draws them."""
    region_of = np.concatenate([[0], np.cumsum(joined >= merges)])  # [patches]
    regions = region_of[places]  # [h, w]
    pixels = photo.numpy().reshape(3, -1)  # [3, h * w]
    counts = np.maximum(np.bincount(regions.ravel(), minlength=region_of[-1] + 1), 1)
    sums = [np.bincount(regions.ravel(), channel, region_of[-1] + 1) for channel in pixels]
    picture = np.stack([(channel / counts)[regions] for channel in sums], -1)  # [h, w, 3]
    picture[:, :-1][regions[:, :-1] != regions[:, 1:]] = _CONTOUR
    picture[:-1][regions[:-1] != regions[1:]] = _CONTOUR
    opaque = np.concatenate([picture.round().astype(np.uint8), np.full((*regions.shape, 1), 255, np.uint8)], -1)
    return png_uri(torch.from_numpy(opaque).permute(2, 0, 1))


def _resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Integer labels [H, W] sampled at the centres of the pixels of another size."""
    height, width = labels.shape
    ys = ((torch.arange(size[0]) + 0.5) * height / size[0]).long().clamp(max=height - 1)
    xs = ((torch.arange(size[1]) + 0.5) * width / size[1]).long().clamp(max=width - 1)
    return labels.cpu()[ys[:, None], xs[None, :]]


def _deflated(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.astype("<u2").tobytes(), 9)).decode("ascii")
