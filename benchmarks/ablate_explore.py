# SPDX-License-Identifier: Apache-2.0
"""Ablation of the settings of phase 1: scores for each change from the default, on one set of photos.

    python benchmarks/ablate_explore.py SETS/coco128_seg --images 20 [--only start refiner ...]

Columns are those of bench_explore.py; seconds are CPU time of one thread. Rows with `start=patches` use the clustering
of patches of the paper; its thresholds (`cuts=fixed`) exist only there. Each photo is read once, for all rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from bench_explore import Quality, chosen_images, explore_forest, print_header, print_row

from sohes.cli.command import fail_clearly
from sohes.configs.run import ExploreConfig

_PATCHES = {"start": "patches", "patch": 8}
_SQUARE = _PATCHES | {"snap_rounds": 0}
GROUPS: dict[str, list[dict]] = {
    "default": [{}],
    "masks": [{"max_masks": number} for number in (100, 1000)],
    "start": [{"start": "patches"}, _PATCHES, {"ward_weight": 0.0}, {"ward_weight": 0.4}, {"border_weight": 0.0}],
    "size": [{"size_exponent": 0.0}, {"min_area": 25.0}],
    "cuts": [
        _PATCHES | {"cuts": "adaptive", "num_cuts": 0},
        _PATCHES | {"cuts": "fixed"},
        _PATCHES | {"cuts": "fixed", "thresholds": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)},
    ],
    "local": [{"theta_small": value, "max_masks": 1000} for value in (0.005, 0.01, 0.02, 0.05)],
    "refiner": [{"refiner": name} for name in ("snap", "guided", "crf")]
    + [_SQUARE | {"refiner": name} for name in ("none", "snap", "guided", "crf")],
    "duplicates": [{"nms_iou": value} for value in (0.5, 0.6, 0.7, 0.8, 0.95)],
    "cover": [{"theta_cover": value} for value in (0.7, 0.8, 0.95)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a set of docs/datasets.md: annotations.json and images/")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=list(GROUPS), help="groups of rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for group in args.only:
        for change in GROUPS[group]:
            name = " ".join(f"{key}={value}" for key, value in change.items()) or "default"
            rows[name] = (explore_forest(ExploreConfig(**change)), Quality())
    for truth, image in chosen_images(args.folder, args.images):
        for segment, quality in rows.values():
            quality.add(truth, image, segment)
    print_header()
    for name, (_, quality) in rows.items():
        print_row(name, quality.summary())


if __name__ == "__main__":
    with fail_clearly("ablate_explore"):
        main()
