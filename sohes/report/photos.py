# SPDX-License-Identifier: Apache-2.0
"""Photos with their forests as data URIs, to be embedded in a page.

A photo is stored once, as JPEG. Each forest is a transparent PNG over it per view (all levels, one level, contours): a
few kilobytes with sharp contours, and the page can change its opacity.
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
FOUND_IOU = 0.5  # a true mask is found if its best prediction has at least this IoU
_MAX_MASKS = 60  # per picture; the best by score
_JPEG_QUALITY = 82

GROUND_TRUTH, LABELS = "ground truth", "labels"


@dataclass(frozen=True)
class Overlay:
    """A forest over a photo.

    counts: number of masks per level that may be drawn; a picture shows the best of them. total: masks in the file.
    pictures: data URI per view. missed: (true masks not found, all true masks), None without ground truth.
    """

    title: str
    counts: list[int]
    total: int
    pictures: dict[str, str]
    missed: tuple[int, int] | None = None


@dataclass(frozen=True)
class Photo:
    """One photo, as a data URI, with its forests, ground truth first. size: (h, w)."""

    name: str
    uri: str
    size: tuple[int, int]
    overlays: list[Overlay]


@dataclass(frozen=True)
class _Column:
    """The forests of one source. places: image id -> index in `labels`."""

    title: str
    labels: LabelSet
    places: dict[int, int]

    def __getitem__(self, image_id: int) -> LabelledImage:
        return self.labels[self.places[image_id]]


@dataclass(frozen=True)
class PhotoPanels:
    """The drawn photos. source: which photos these are, for display. problems: what could not be drawn and why."""

    source: str
    photos: list[Photo]
    problems: list[str] = field(default_factory=list)


def collect_photos(run: RunRecord, gt_json: Path | None, image_root: Path | None, num_photos: int) -> PhotoPanels:
    """Draw up to `num_photos` photos: held-out ones with every phase's prediction, else labelled training photos.

    gt_json: COCO ground truth; image_root: folder of its file names. None: as in the configuration of the run.
    """
    problems: list[str] = []
    sources = {phase: run.path / "predictions" / f"{phase}.json" for phase in PHASES}
    columns = [c for title, path in sources.items() if (c := _open_column(title, path, problems))]
    if columns:
        source, read = "Held-out photos, spread evenly over the set", read_annotated
        gt_json = gt_json or ground_truth_of_run(run)
        truth = _open_column(GROUND_TRUTH, gt_json, problems) if gt_json else None
        columns = [truth, *columns] if truth else columns
        roots = _held_out_roots(gt_json, image_root)
    else:
        source, read = "Training photos, spread evenly over the set", read_image
        shards = sorted((run.path / "labels").glob("shard-*.json"))
        columns = [c for path in shards[:1] if (c := _open_column(LABELS, path, problems))]
        try:
            roots = [training_root(run, shards[0])] if columns else []
        except SohesError as error:
            problems.append(str(error))
            columns, roots = [], []
    photos = []
    for image_id in _choose(columns, num_photos):
        try:
            photos.append(_draw_photo(image_id, columns, roots, read))
        except (SohesError, ValueError) as error:
            problems.append(str(error))
    return PhotoPanels(source, photos, problems)


def png_uri(picture: Tensor) -> str:
    """PNG data URI of RGBA uint8 [4, h, w]; with a palette (far smaller) for up to 256 colours."""
    pixels = picture.permute(1, 2, 0).contiguous().numpy()  # [h, w, 4]
    packed, index = np.unique(pixels.view(np.uint32), return_inverse=True)
    colors = packed.view(np.uint8).reshape(-1, 4)
    if len(colors) > 256:
        return _uri(Image.fromarray(pixels), "png")
    image = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), "L")
    image.putpalette(colors.tobytes(), "RGBA")
    return _uri(image, "png")


def image_uri(picture: Tensor) -> str:
    """JPEG data URI of uint8 [3, h, w]."""
    return _uri(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()), "jpeg", quality=_JPEG_QUALITY)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return data_uri(buffer.getvalue(), kind)


def data_uri(content: bytes, kind: str) -> str:
    """Data URI of the bytes of an image file. kind: `png` or `jpeg`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _draw_photo(image_id: int, columns: list[_Column], roots: list[Path], read: Callable[[Path], Tensor]) -> Photo:
    """Raises UnreadableImage, DataError, or ValueError where masks and photo differ in size."""
    labelled = {column.title: column[image_id] for column in columns if image_id in column.places}
    path = next(iter(labelled.values())).path
    name = path.as_posix()
    photo = read(next((root / path for root in roots if (root / path).is_file()), roots[0] / path))
    return draw_photo(name, photo, labelled)


def draw_photo(name: str, photo: Tensor, labelled: Mapping[str, LabelledImage]) -> Photo:
    """A photo, uint8 [3, H, W], with one overlay per forest by title; the ground truth, if any, must come first.

    Raises ValueError if masks and photo differ in size.
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
    """The forest to draw: no crowds, the annotator with most masks; a ground truth without parents gets parents."""
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
    if title in ("instruct", "correct"):  # the files hold more masks, for the metrics
        forest = forest.select(forest.scores >= InferConfig.min_score)
    counts = forest.levels.bincount(minlength=1).tolist()
    most = len(forest) if title == GROUND_TRUTH else _MAX_MASKS

    def draw(level: int | None = None, fill: bool = True) -> str:
        return png_uri(overlay_forest(forest, level, fill, most, size))

    pictures = {"all": draw()}
    for level in range(min(NUM_LEVELS, len(counts))):
        pictures[f"level {level}"] = draw(level)
    pictures["contours"] = draw(fill=False)
    if missed is not None and missed[0]:
        pictures[MISSES] = png_uri(overlay_forest(lost, size=size))
    return Overlay(title, counts, total, pictures, missed)


def missed_masks(forest: Forest, truth: Forest) -> Forest:
    """The true masks that no mask of `forest` finds; one mask may find several."""
    if len(forest) == 0 or len(truth) == 0:
        return truth
    return truth.select(mask_iou(truth.masks, forest.masks).max(1).values < FOUND_IOU)


def _open_column(title: str, path: Path, problems: list[str]) -> _Column | None:
    if not path.is_file():
        return None
    try:
        labels = LabelSet(path, image_root=Path())  # paths are the file names of the JSON
    except SohesError as error:
        problems.append(str(error))
        return None
    return _Column(title, labels, {image_id: place for place, image_id in enumerate(labels.image_ids.tolist())})


def _choose(columns: list[_Column], count: int) -> list[int]:
    """Ids of evenly spaced images of those in all columns, or if there are none, of those in the first."""
    if not columns:
        return []
    shared = set.intersection(*(set(column.places) for column in columns))
    images = [i for i in columns[0].places if i in shared or not shared]
    return choose_evenly(images, count)


def choose_evenly(items: Sequence[int], count: int) -> list[int]:
    """Up to `count` items, evenly spaced: the middles of `count` equal intervals."""
    count = min(count, len(items))
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def ground_truth_of_run(run: RunRecord) -> Path | None:
    """Path of the ground truth of a run: the data set that it converted, or `eval` of its configuration (a COCO file,
    or a folder with annotations.json), or its scenes. None if there is none."""
    given, dataset = run.config.get("eval"), run.config.get("eval_dataset")
    if dataset:
        converted = run.path / "eval" / f"{dataset}.json"
        return converted if converted.is_file() else None
    candidates = [Path(given), Path(given) / "annotations.json"] if given else []
    candidates = [*candidates, run.path / "scenes" / "eval" / "annotations.json"]
    return next((path for path in candidates if path.is_file()), None)


def training_root(run: RunRecord, shard: Path) -> Path:
    """Folder of the labelled photos: the run's own scenes, which may have moved with it, else the root in the shard.

    Raises SohesError when the shard is not a shard of labels.
    """
    scenes = run.path / "scenes" / "train" / "images"
    if scenes.is_dir():
        return scenes
    info = read_shard_info(shard)
    if info is None:
        raise SohesError(f"no such file: {shard}")
    return Path(info["root"])


def _held_out_roots(gt_json: Path | None, image_root: Path | None) -> list[Path]:
    if image_root is not None:
        return [image_root]
    return [gt_json.parent / "images", gt_json.parent] if gt_json is not None else [Path()]
