# SPDX-License-Identifier: Apache-2.0
"""Refiners alone: IoU with true masks after refinement of their versions made of blocks.

    python benchmarks/ablate_refine.py SETS/coco128_seg --images 40

Every true mask is reduced to blocks of 8 x 8 pixels (a block is inside if more than half of its pixels are), like the
masks of ViT patches. One row per refiner: share of masks that reach an IoU threshold, mean over .50:.05:.95, by size
of the true mask, and milliseconds per mask on one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.cli.command import fail_clearly
from sohes.configs.run import ExploreConfig
from sohes.data.coco import LabelSet
from sohes.data.images import read_annotated
from sohes.labels.features import build_extractor
from sohes.labels.refine import refine_masks
from sohes.structures.masks import PackedMasks

THRESHOLDS = np.arange(0.5, 0.96, 0.05)
BLOCK = 8


def roughen(masks: PackedMasks, size: tuple[int, int]) -> PackedMasks:
    """Masks resized to `size` and reduced to blocks."""
    dense = masks.resize(size).to_dense()[:, None].float()  # [N, 1, H, W]
    grid = (max(1, size[0] // BLOCK), max(1, size[1] // BLOCK))
    blocks = F.adaptive_avg_pool2d(dense, grid) > 0.5  # [N, 1, h, w]
    return PackedMasks.from_dense(F.interpolate(blocks.float(), size, mode="nearest")[:, 0] > 0.5)


def ious(a: PackedMasks, b: PackedMasks) -> Tensor:
    """IoU of a[i] and b[i], float32 [N]."""
    both = PackedMasks(a.words & b.words, a.size).areas
    return both / (a.areas + b.areas - both).clamp(min=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a set of docs/datasets.md: annotations.json and images/")
    parser.add_argument("--images", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    labels, extractor = LabelSet(args.folder), build_extractor(ExploreConfig())
    refiners = ("none", "snap", "guided", "crf")
    found, seconds, areas = {name: [] for name in refiners}, dict.fromkeys(refiners, 0.0), []
    for index in np.linspace(0, len(labels) - 1, min(args.images, len(labels))).astype(int):
        truth = labels[int(index)]
        masks = truth.forest.masks[~truth.crowd]
        if len(masks) == 0:
            continue
        view = extractor.view(read_annotated(truth.path))
        rough = roughen(masks, (view.lab.shape[1], view.lab.shape[2]))
        areas.append(masks.areas.numpy())
        for name in refiners:
            start, refined = time.process_time(), rough
            if name != "none":
                refined, kept = refine_masks(rough, view, ExploreConfig(refiner=name))
                refined = PackedMasks(torch.where(kept[:, None], refined.words, rough.words), rough.size)
            seconds[name] += time.process_time() - start
            found[name].append(ious(refined.resize(masks.size), masks).numpy())
    area = np.concatenate(areas)
    sizes = {"small": area < 32**2, "medium": (area >= 32**2) & (area < 96**2), "large": area >= 96**2}
    print(f"{'refiner':8s} {'AR':>6s} {' '.join(f'{name:>6s}' for name in sizes)} {'mean IoU':>9s} {'ms/mask':>8s}")
    for name in refiners:
        iou = np.concatenate(found[name])
        reached = 100 * (iou[:, None] >= THRESHOLDS).mean(1)
        by_size = " ".join(f"{reached[one].mean():6.1f}" if one.any() else f"{'n/a':>6s}" for one in sizes.values())
        cost = 1000 * seconds[name] / len(area)
        print(f"{name:8s} {reached.mean():6.1f} {by_size} {100 * iou.mean():9.1f} {cost:8.1f}")


if __name__ == "__main__":
    with fail_clearly("ablate_refine"):
        main()
