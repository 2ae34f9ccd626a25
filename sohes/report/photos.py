# SPDX-License-Identifier: Apache-2.0
"""Photos with their forests, as pictures a page can carry inside itself.

A photo is stored once, as JPEG. Each forest lies over it as a transparent PNG per view (all levels, one level,
contours): such pictures are a few kilobytes, their contours stay crisp, and the page can fade them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sohes.configs.run import PHASES, InferConfig
from sohes.data.coco import LabelledImage, LabelSet
from sohes.data.images import read_annotated, read_image
from sohes.labels.shards import read_shard_info
from sohes.report.record import RunRecord
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import mask_iou
from sohes.utils.errors import SohesError
from sohes.visual.draw import overlay_forest, resize_image

NUM_LEVELS = 3  # views of a single level
MISSES = "misses"
VIEWS = ("all", *(f"level {i}" for i in range(NUM_LEVELS)), "contours", MISSES)
TILE = 440  # long side of a picture in pixels
_FOUND_IOU = 0.5  # of a true mask with its best prediction, from which it counts as found
_MAX_MASKS = 60  # per picture; the best by score
_JPEG_QUALITY = 82

GROUND_TRUTH, LABELS = "ground truth", "labels"


@dataclass(frozen=True)
class Overlay:
    """A forest over a photo. `pictures` maps a view to a data URI; `counts[l]` is the number of masks of level l that
    may be drawn, of which a picture shows the best, out of `total` in the file; `missed`: how many true masks none of
    them matches, and of how many, where a truth is known.
    """

    title: str
    counts: list[int]
    total: int
    pictures: dict[str, str]
    missed: tuple[int, int] | None = None


@dataclass(frozen=True)
class Photo:
    """One photo with the forests that are known for it, ground truth first. `uri`: the photo as a data URI."""

    name: str
    uri: str
    size: tuple[int, int]
    overlays: list[Overlay]


@dataclass(frozen=True)
class _Column:
    """The forests of one source. `places` maps an image id to its place in `labels`."""

    title: str
    labels: LabelSet
    places: dict[int, int]

    def __getitem__(self, image_id: int) -> LabelledImage:
        return self.labels[self.places[image_id]]


@dataclass(frozen=True)
class PhotoPanels:
    """What could be drawn. `source` says which photos these are, in words; `problems` what was left out and why."""

    source: str
    photos: list[Photo]
    problems: list[str] = field(default_factory=list)


def collect_photos(run: RunRecord, gt_json: Path | None, image_root: Path | None, num_photos: int) -> PhotoPanels:
    """Draw up to `num_photos` photos: held-out ones with every phase's prediction, else labelled training photos.

    gt_json: COCO ground truth; image_root: folder of its file names. None: taken from the run's configuration.
    """
    problems: list[str] = []
    sources = {phase: run.path / "predictions" / f"{phase}.json" for phase in PHASES}
    columns = [c for title, path in sources.items() if (c := _open_column(title, path, problems))]
    if columns:
        source, read = "Held-out photos, spread evenly over the set", read_annotated
        gt_json = gt_json or find_ground_truth(run)
        truth = _open_column(GROUND_TRUTH, gt_json, problems) if gt_json else None
        columns = [truth, *columns] if truth else columns
        roots = _held_out_roots(gt_json, image_root)
    else:
        source, read = "Training photos, spread evenly over the set", read_image
        shards = sorted((run.path / "labels").glob("shard-*.json"))
        columns = [c for path in shards[:1] if (c := _open_column(LABELS, path, problems))]
        roots = [training_root(run, shards[0])] if columns else []
    photos = []
    for image_id in _choose(columns, num_photos):
        try:
            photos.append(_draw_photo(image_id, columns, roots, read))
        except (SohesError, ValueError) as error:
            problems.append(str(error))
    return PhotoPanels(source, photos, problems)


def png_uri(picture: Tensor) -> str:
    """uint8 [4, h, w], RGBA -> a data URI; with a palette where 256 colours suffice, which is far smaller."""
    pixels = picture.permute(1, 2, 0).contiguous().numpy()  # [h, w, 4]
    packed, index = np.unique(pixels.view(np.uint32), return_inverse=True)
    colors = packed.view(np.uint8).reshape(-1, 4)
    if len(colors) > 256:
        return _uri(Image.fromarray(pixels), "png")
    image = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), "L")
    image.putpalette(colors.tobytes(), "RGBA")
    return _uri(image, "png")


def image_uri(picture: Tensor) -> str:
    """uint8 [3, h, w] -> a data URI, JPEG."""
    return _uri(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()), "jpeg", quality=_JPEG_QUALITY)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _draw_photo(image_id: int, columns: list[_Column], roots: list[Path], read: Callable[[Path], Tensor]) -> Photo:
    """Raises UnreadableImage, DataError, or ValueError where masks and photo differ in size."""
    labelled = {column.title: column[image_id] for column in columns if image_id in column.places}
    path = next(iter(labelled.values())).path
    name = path.as_posix()
    photo = read(next((root / path for root in roots if (root / path).is_file()), roots[0] / path))
    return draw_photo(name, photo, labelled)


def draw_photo(name: str, photo: Tensor, labelled: Mapping[str, LabelledImage]) -> Photo:
    """A photo, uint8 [3, H, W], with an overlay for each of its forests by title; the true one, if any, first.

    Raises ValueError where masks and photo differ in size.
    """
    small = resize_image(photo, TILE)
    size = (small.shape[1], small.shape[2])
    overlays, truth = [], None
    for title, one in labelled.items():
        if one.size != tuple(photo.shape[1:]):
            raise ValueError(f"{name}: masks of size {one.size} in {title}, photo of size {tuple(photo.shape[1:])}")
        forest = _shown_forest(one, title)
        truth = forest if title == GROUND_TRUTH else truth
        overlays.append(_draw_overlay(title, forest, truth, size))
    return Photo(name, image_uri(small), size, overlays)


def _shown_forest(labelled: LabelledImage, title: str) -> Forest:
    """What to draw: no crowds; of several annotators the one who drew most; a truth without hierarchy gets one."""
    keep = ~labelled.crowd
    if labelled.annotator is not None and keep.any():
        annotators, counts = labelled.annotator[keep].unique(return_counts=True)
        keep &= labelled.annotator == annotators[counts.argmax()]
    forest = labelled.forest if keep.all() else labelled.forest.select(keep)
    if title == GROUND_TRUTH and not (forest.parents >= 0).any():
        forest = Forest(forest.masks, forest.scores, build_forest(forest.masks))
    return forest


def _draw_overlay(title: str, forest: Forest, truth: Forest | None, size: tuple[int, int]) -> Overlay:
    total, missed = len(forest), None
    if truth is not None:
        lost = missed_masks(forest, truth)
        missed = (len(lost), len(truth))
    if title in ("instruct", "correct"):  # the files keep masks for the scores that nobody would be shown
        forest = forest.select(forest.scores >= InferConfig.min_score)
    counts = forest.levels.bincount(minlength=1).tolist()
    shown = {"max_masks": len(forest) if title == GROUND_TRUTH else _MAX_MASKS, "size": size}
    pictures = {"all": png_uri(overlay_forest(forest, **shown))}
    for level in range(min(NUM_LEVELS, len(counts))):
        pictures[f"level {level}"] = png_uri(overlay_forest(forest, level, **shown))
    pictures["contours"] = png_uri(overlay_forest(forest, fill=False, **shown))
    if missed is not None and missed[0]:
        pictures[MISSES] = png_uri(overlay_forest(lost, size=size))
    return Overlay(title, counts, total, pictures, missed)


def missed_masks(forest: Forest, truth: Forest) -> Forest:
    """The true masks of which no mask of `forest` covers enough to count as found; any may match several."""
    if len(forest) == 0 or len(truth) == 0:
        return truth
    return truth.select(mask_iou(truth.masks, forest.masks).max(1).values < _FOUND_IOU)


def _open_column(title: str, path: Path, problems: list[str]) -> _Column | None:
    if not path.is_file():
        return None
    try:
        labels = LabelSet(path, image_root=Path())  # paths are then the file names of the JSON
    except SohesError as error:
        problems.append(str(error))
        return None
    return _Column(title, labels, {image_id: place for place, image_id in enumerate(labels.image_ids.tolist())})


def _choose(columns: list[_Column], count: int) -> list[int]:
    """Ids of images spread evenly over those that every column knows, or where there are none over the first's."""
    if not columns:
        return []
    shared = set.intersection(*(set(column.places) for column in columns))
    images = [i for i in columns[0].places if i in shared or not shared]
    return choose_evenly(images, count)


def choose_evenly(items: Sequence[int], count: int) -> list[int]:
    """Up to `count` of some items, from the middles of as many equal parts."""
    count = min(count, len(items))
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def find_ground_truth(run: RunRecord) -> Path | None:
    """`eval` of the configuration (a COCO file, or a folder with annotations.json), else what the run converted from a
    data set, else the scenes of the run."""
    given, dataset = run.config.get("eval"), run.config.get("eval_dataset")
    if dataset:
        converted = run.path / "eval" / f"{dataset}.json"
        return converted if converted.is_file() else None
    candidates = [Path(given), Path(given) / "annotations.json"] if given else []
    candidates = [*candidates, run.path / "scenes" / "eval" / "annotations.json"]
    return next((path for path in candidates if path.is_file()), None)


def training_root(run: RunRecord, shard: Path) -> Path:
    """Where labelled photos are: in the run's own scenes, which may have moved with it, or where the shard says."""
    scenes = run.path / "scenes" / "train" / "images"
    return scenes if scenes.is_dir() else Path(read_shard_info(shard)["root"])


def _held_out_roots(gt_json: Path | None, image_root: Path | None) -> list[Path]:
    if image_root is not None:
        return [image_root]
    return [gt_json.parent / "images", gt_json.parent] if gt_json is not None else [Path()]
