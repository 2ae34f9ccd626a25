# SPDX-License-Identifier: Apache-2.0
"""Applies a baseline that segments photos to a data set and writes its predictions as COCO JSON."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from sohes.baselines.classical import box_grid_forest, felzenszwalb_forest, import_segmentation, slic_tree_forest
from sohes.baselines.output import DESCRIPTION, BaselineError, check_replaceable
from sohes.baselines.tree_oracle import tree_oracle_forest
from sohes.configs.evaluate import BaselineConfig
from sohes.configs.run import ExploreConfig, PhotoBaselineName
from sohes.data.coco import to_rle, write_coco_stream
from sohes.data.coco_fields import has_region
from sohes.evaluation.datasets.base import DataSet, Sample
from sohes.labels.features import build_extractor
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks
from sohes.utils.nearest import nearest

Baseline = Callable[[Tensor, Sample], Forest]
"""(photo uint8 [3, H, W], its sample) -> masks. Only the oracle uses the annotations."""


def make_baseline(name: PhotoBaselineName, config: BaselineConfig, explore: ExploreConfig) -> Baseline:
    """The baseline of a name. explore: settings of phase 1, for the oracle's tree.

    Raises:
        BaselineError: unknown name. MissingDependency: scikit-image is needed and not installed.
        WeightsError: no weights for the oracle's features.
    """
    if name not in get_args(PhotoBaselineName):
        known = ", ".join(get_args(PhotoBaselineName))
        raise BaselineError(f"baseline {name}: {nearest(name, get_args(PhotoBaselineName))}expected one of {known}")
    if name == "tree-oracle":
        extractor = build_extractor(explore)
        return lambda image, sample: tree_oracle_forest(image, true_masks(sample), extractor, config.max_masks)
    if name != "box-grid":
        import_segmentation()
    segment = {"felzenszwalb": felzenszwalb_forest, "slic-tree": slic_tree_forest, "box-grid": box_grid_forest}[name]
    return lambda image, _: segment(image, config)


def predict_dataset(
    baseline: Baseline,
    name: PhotoBaselineName,
    dataset: DataSet,
    keys: Sequence[Hashable],
    path: Path,
    on_image: Callable[[int, int], None] | None = None,
) -> None:
    """Write the baseline's predictions for the images of `keys` to `path`. on_image(done, total): after every image.

    Raises:
        BaselineError: `path` exists and does not hold a baseline's predictions, or the size of a photo differs from
            its annotations. UnreadableImage: a photo cannot be read.
    """
    check_replaceable(path, f"--pred {path}")

    def pairs() -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        first_id = 1
        for done, key in enumerate(keys, start=1):
            sample = dataset.read(key)
            if sample is not None:
                image = dataset.read_image(sample.image["file_name"])
                if tuple(image.shape[1:]) != sample.size:
                    got = f"{image.shape[1]} x {image.shape[2]}"
                    wanted = f"{sample.size[0]} x {sample.size[1]}"
                    raise BaselineError(f"{sample.image['file_name']} is {got} pixels, its annotations say {wanted}")
                annotations = baseline(image, sample).to_coco(sample.image["id"], first_id)
                first_id += len(annotations)
                yield dict(sample.image), annotations
            if on_image is not None:
                on_image(done, len(keys))

    write_coco_stream(path, pairs(), {"description": f"{DESCRIPTION} {name}"})


def true_masks(sample: Sample) -> list[PackedMasks]:
    """The true masks of an image without crowds, one set per annotator. Raises BaselineError for an invalid mask."""
    by_annotator: dict[Any, list[dict]] = {}
    try:
        for annotation in sample.annotations:
            if has_region(annotation) and not annotation.get("iscrowd"):
                by_annotator.setdefault(annotation.get("annotator"), []).append(to_rle(annotation, sample.size))
        return [PackedMasks.from_rle(rles, sample.size) for rles in by_annotator.values()]
    except ValueError as error:
        raise BaselineError(f"{sample.image['file_name']}: {error}") from error
