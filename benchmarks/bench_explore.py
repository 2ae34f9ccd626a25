# SPDX-License-Identifier: Apache-2.0
"""Phase 1: time per stage, and scores of the labels beside classical baselines and the oracle of the merge tree.

    python -m pytest benchmarks/bench_explore.py --benchmark-columns=min,median,rounds
    python benchmarks/bench_explore.py SETS/bsds_val --images 20 --baselines --set max_masks=1000

The second form prints one row per method: recall in percent at several numbers of masks, seconds per image on the CPU.
`--intervals` adds the difference of each row to the first one of its set, with the 95 % interval of a paired bootstrap
over photos.
The baselines are those of `python -m sohes.evaluate --baseline`; each row of settings gets its own oracle.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sohes.baselines.classical import box_grid_forest, felzenszwalb_forest, slic_tree_forest
from sohes.baselines.tree_oracle import tree_oracle_forest
from sohes.cli.command import fail_clearly
from sohes.configs.evaluate import BaselineConfig
from sohes.configs.run import ExploreConfig
from sohes.data.coco import LabelledImage, LabelSet
from sohes.data.images import read_annotated
from sohes.data.scenes import draw_scene
from sohes.evaluation import Evaluator
from sohes.evaluation.bootstrap import Bootstrap, collect_sums
from sohes.labels.basin_candidates import find_basin_candidates
from sohes.labels.basins import color_gradient, find_basins
from sohes.labels.color import rgb_to_lab
from sohes.labels.consensus import join_looks
from sohes.labels.draw import draw_candidates, make_forest, node_table, select_masks
from sohes.labels.features import build_extractor
from sohes.labels.pipeline import StageClock, find_masks, label_image
from sohes.labels.refine import refine_masks
from sohes.ops import (
    catchment_basins,
    facility_location,
    mask_from_nodes,
    mask_pairs,
    merge_borders,
    region_borders,
)
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks

COLUMNS = ("AR@1000", "AR@100", "AR@10", "AR-small", "AR-medium", "AR-large", "AP", "parent_recall", "ancestor_f1")


@pytest.fixture(scope="module")
def steps():
    """Every intermediate result of labelling one 480 x 480 scene; refiners have 50 masks of 480 x 640."""
    config = ExploreConfig()
    extractor = build_extractor(config)
    image = draw_scene(0, 480).image
    view = extractor.view(image)
    basins = find_basins(view, None, config)
    candidates = find_basin_candidates(basins, view.photo_size, config)
    drawn = draw_candidates(candidates, basins.labels)
    found = select_masks(drawn, view.photo_size, config)
    forest = make_forest(found, config)
    patches = ExploreConfig(start="patches")
    sharp = build_extractor(patches)
    five = ExploreConfig(max_masks=1000, looks=("full", "half", "third", "faded", "vivid"))
    each = [find_masks([image], extractor, replace(five, looks=(look,)), StageClock())[0] for look in five.looks]
    calls = {
        "view": lambda: extractor.view(image),
        "basins": lambda: find_basins(view, None, config),
        "trees": lambda: find_basin_candidates(basins, view.photo_size, config),
        "draw": lambda: draw_candidates(candidates, basins.labels),
        "select": lambda: select_masks(drawn, view.photo_size, config),
        "forest": lambda: make_forest(found, config),
        "encode": lambda: forest.to_coco(1),
        "consensus-1000": lambda: join_looks(each, five),
        "all-five-looks-1000": lambda: label_image(image, extractor, five),
        "all": lambda: label_image(image, extractor, config),
        "all-patches": lambda: label_image(image, sharp, patches),
    }
    # 480 x 640 pixels, as they are: an area of 554 squared is not shrunk.
    wide = build_extractor(ExploreConfig(side=555)).view(draw_scene(0, 640).image[:, :480])
    assert wide.lab.shape[1:] == (480, 640)
    some = found.masks[:50].resize((480, 640))
    for refiner in ("snap", "guided", "crf"):
        chosen = ExploreConfig(refiner=refiner)
        calls[f"refine-{refiner}-50"] = lambda chosen=chosen: refine_masks(some, wide, chosen)
    return calls, len(found.masks)


STAGES = ("view", "basins", "trees", "draw", "select", "forest", "encode", "all", "all-patches")
LOOKS = ("consensus-1000", "all-five-looks-1000")
REFINERS = ("refine-snap-50", "refine-guided-50", "refine-crf-50")


@pytest.mark.parametrize("stage", STAGES + LOOKS + REFINERS)
def test_stage(benchmark, steps, stage):
    calls, num_masks = steps
    benchmark.extra_info["masks"] = num_masks
    _on_one_thread(benchmark, calls[stage])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("name", ["catchment_basins", "region_borders"])
def test_basins(benchmark, name, backend):
    """A scene of 480 x 640, on one thread."""
    config = ExploreConfig()
    height = color_gradient(rgb_to_lab(draw_scene(0, 640).image[:, :480]), config.basin_sigma)
    labels = catchment_basins(height)
    strength = height / (height + config.border_softness)
    benchmark.extra_info["basins"] = int(labels.max()) + 1
    calls = {
        "catchment_basins": lambda: catchment_basins(height, backend),
        "region_borders": lambda: region_borders(labels, strength, backend),
    }
    _on_one_thread(benchmark, calls[name])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_merge_borders(benchmark, backend):
    """The first tree of a scene of 480 px."""
    config = ExploreConfig()
    basins = find_basins(build_extractor(config).view(draw_scene(0, 480).image), None, config)
    benchmark.extra_info["basins"] = len(basins.sizes)
    args = (basins.means, basins.sizes, basins.edges, basins.borders)
    benchmark.pedantic(lambda: merge_borders(*args, backend=backend), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_mask_from_nodes(benchmark, backend):
    """The nodes of all trees of a scene of 480 px, drawn for 1000 masks, on one thread; holes are not filled."""
    config = ExploreConfig(max_masks=1000)
    view = build_extractor(config).view(draw_scene(0, 480).image)
    basins = find_basins(view, None, config)
    candidates = find_basin_candidates(basins, view.photo_size, config)
    args = node_table([one.tree for one in candidates], [one.ids for one in candidates])
    benchmark.extra_info["masks"] = len(args[1])
    rounds = 9 if backend == "cpp" else 3
    _on_one_thread(benchmark, lambda: mask_from_nodes(basins.labels, *args, backend=backend), rounds)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_mask_pairs(benchmark, backend):
    """Pairs of IoU 0.5 among the masks of five scales of a scene, at 240 px, on one thread."""
    masks = _masks_of_looks()
    benchmark.extra_info |= {"masks": len(masks), "pairs": len(mask_pairs(masks, 0.5)[0])}
    _on_one_thread(benchmark, lambda: mask_pairs(masks, 0.5, backend))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_facility_location(benchmark, backend):
    """The first 1000 of the masks of five scales of a scene."""
    masks = _masks_of_looks()
    pairs, iou = mask_pairs(masks, 0.5)
    values = torch.rand((2, len(masks)), generator=torch.Generator().manual_seed(0)) + 0.1
    benchmark.extra_info |= {"masks": len(masks), "pairs": len(pairs)}
    _on_one_thread(benchmark, lambda: facility_location(pairs, iou, *values, 1000, backend))


def _masks_of_looks() -> PackedMasks:
    """Up to 5000 masks of 240 x 240: 1000 of each of five sizes of a scene."""
    config = ExploreConfig(max_masks=1000)
    scene, extractor = draw_scene(0, 480).image, build_extractor(config)
    sets = []
    for side in (480, 400, 320, 240, 160):
        image = torch.nn.functional.interpolate(scene[None].float(), (side, side), mode="bilinear", antialias=True)
        (found,) = find_masks([image[0].round().byte()], extractor, config, StageClock())
        sets.append(found.masks.resize((240, 240)))
    return PackedMasks.cat(sets)


def _on_one_thread(benchmark, call: Callable[[], object], rounds: int = 5) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)
    torch.set_num_threads(threads)


Segment = Callable[[Tensor, list[PackedMasks]], Forest]  # photo, true masks by annotator -> forest


def explore_forest(config: ExploreConfig) -> Segment:
    extractor = build_extractor(config)
    return lambda image, _: label_image(image, extractor, config)


def oracle_forest(config: ExploreConfig) -> Segment:
    extractor = build_extractor(config)
    return lambda image, truths: tree_oracle_forest(image, truths, extractor, 1000)


class Quality:
    """Metrics of one way to segment over some photos, and its CPU time; each human annotator counts as an image."""

    def __init__(self) -> None:
        self.evaluator, self.seconds, self.num_images = Evaluator((1, 10, 100, 1000)), 0.0, 0

    def add(self, truth: LabelledImage, image: Tensor, segment: Segment) -> None:
        people = torch.zeros(len(truth.forest), dtype=torch.int64) if truth.annotator is None else truth.annotator
        truths = [truth.forest.masks[(people == person) & ~truth.crowd] for person in people.unique()]
        start = time.process_time()
        forest = segment(image, truths)
        self.seconds += time.process_time() - start
        self.num_images += 1
        for person in people.unique():
            own = people == person
            # Sets without parts say nothing about parents.
            parents = truth.forest.parents if len(people.unique()) == 1 and (truth.forest.parents >= 0).any() else None
            masks, crowd = truth.forest.masks[own], truth.crowd[own]
            self.evaluator.add((truth.image_id, int(person)), masks, forest, crowd=crowd, gt_parents=parents)

    def summary(self) -> dict[str, float]:
        return {**self.evaluator.summary(), "seconds": self.seconds / self.num_images}


def chosen_images(folder: Path, num_images: int) -> Iterator[tuple[LabelledImage, Tensor]]:
    """`num_images` evenly chosen images of a set, truth and pixels."""
    labels = LabelSet(folder)
    for index in np.linspace(0, len(labels) - 1, min(num_images, len(labels))).astype(int):
        truth = labels[int(index)]
        yield truth, read_annotated(truth.path)


def measure_quality(folder: Path, num_images: int, segment: Segment) -> Quality:
    quality = Quality()
    for truth, image in chosen_images(folder, num_images):
        quality.add(truth, image, segment)
    return quality


def print_header() -> None:
    print(f"{'method':44s} {' '.join(f'{column[:9]:>9s}' for column in COLUMNS)}   masks     s/im")


def print_row(name: str, result: dict[str, float]) -> None:
    values = " ".join(f"{100 * result[column]:9.1f}" for column in COLUMNS)
    print(f"{name:44s} {values} {result['masks_per_image']:7.0f} {result['seconds']:7.2f}", flush=True)


def print_differences(results: dict[str, Quality]) -> None:
    """The differences to the first row, with intervals of a paired bootstrap over photos."""
    sums = {name: collect_sums(quality.evaluator) for name, quality in results.items()}
    (_, base), *others = sums.items()
    resamples = Bootstrap(len(base.photos), 1000, 0.95, seed=0)
    for name, run in others:
        texts = []
        for metric in COLUMNS:
            if metric != "AP" and metric in run.sums:
                value = resamples.difference(run, base, metric)
                texts.append(f"{metric} {100 * value.value:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]")
        print(f"  {name} - first: {', '.join(texts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="label sets: annotations.json and images/")
    parser.add_argument("--images", type=int, default=20, help="images per set")
    parser.add_argument("--baselines", action="store_true", help="also the floors, and the oracle of each tree")
    parser.add_argument("--set", nargs="*", action="append", metavar="FIELD=VALUE", help="a row with these settings")
    parser.add_argument("--intervals", action="store_true", help="also differences to the first row, with intervals")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for settings in args.set or [[]]:
        values = dict(setting.split("=", 1) for setting in settings)
        known = {field.name: field.type for field in dataclasses.fields(ExploreConfig)}
        parsed = {key: value if known[key] == "str" else _literal(value) for key, value in values.items()}
        rows["sohes " + " ".join(settings)] = explore_forest(ExploreConfig(**parsed))
        if args.baselines:
            rows["tree oracle " + " ".join(settings)] = oracle_forest(ExploreConfig(**parsed))
    if args.baselines:
        floors = {"felzenszwalb": felzenszwalb_forest, "slic tree": slic_tree_forest, "box grid": box_grid_forest}
        rows |= {name: lambda image, _, floor=floor: floor(image, BaselineConfig()) for name, floor in floors.items()}
    print_header()
    for folder in args.folders:
        results = {}
        for name, segment in rows.items():
            results[name] = measure_quality(folder, args.images, segment)
            print_row(f"{folder.name}: {name}"[:44], results[name].summary())
        if args.intervals:
            print_differences(results)


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


if __name__ == "__main__":
    with fail_clearly("bench_explore"):
        main()
