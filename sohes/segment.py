# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.segment PHOTO... [--weights RUN]`: photos in; masks, and pictures of them, out."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sohes.commands import answer_help

if __name__ == "__main__":
    answer_help("segment", sys.argv[1:])  # before torch is imported, which takes seconds

import numpy as np
import torch
from PIL import Image

from sohes.cli import fail_clearly, parse
from sohes.data.coco import write_coco
from sohes.data.images import UnreadableImage, read_image
from sohes.data.sources import list_images
from sohes.engine.console import Progress, RunLog
from sohes.errors import EXIT_FAILURES, SohesError
from sohes.files import whole_file, write_whole
from sohes.forest import Forest
from sohes.labels.features import build_extractor
from sohes.models.segmenter import Segmenter
from sohes.options import POSITIONAL
from sohes.phases.explore import label_image
from sohes.presets import photo_labels
from sohes.streams import say
from sohes.visualize import draw_panel


class UsageError(SohesError):
    """Options that do not fit together, or lack what is needed."""


@dataclass
class Arguments:
    """Segment photos into entities and their parts: with trained weights, or by clustering alone.

    Writes to --out: for every photo a picture of its masks, level by level; all masks in the chosen format; and
    manifest.jsonl, in which every photo ends as ok, empty or failed.
    """

    photos: tuple[Path, ...] = field(default=(), metadata=POSITIONAL)
    """Photos, folders of photos (searched recursively), or .txt lists of photos."""
    weights: str | None = None
    """A run folder, a folder with model.safetensors and config.json, or hf:owner/name of the Hugging Face hub. Default:
    photos are clustered as in phase 1, with the small backbone that comes with the package."""
    out: Path = Path("segments")
    """Folder to write to; files of an earlier call are replaced."""
    format: Literal["coco", "sam", "png"] = "coco"
    """coco: one segments.json for all photos; sam: one JSON a photo, in the form of SAM's mask generator; png: one
    16-bit label map a photo, 0 where there is no mask, else 1 + the mask's place by score."""
    depth: int | None = None
    """Deepest level to keep, >= 0: 0 keeps whole entities only, 1 their parts too. Default: every level."""
    min_score: float | None = None
    """Drop masks that score less, 0 to 1. Default: as the weights were saved with; 0 without."""
    max_masks: int | None = None
    """At most so many masks a photo, >= 1, best scores first. Default: as saved with the weights, or as in phase 1."""
    tile: int | None = None
    """Segment photos with a longer side than this also in overlapping tiles of this side, in pixels, >= 32, and join
    the objects that tile borders cut; 0: never. Default: as the weights were saved with."""
    max_failures: int = 0
    """Exit with 1 when more photos than this could not be segmented, >= 0. All others are segmented anyway."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run: auto takes a GPU if there is one."""


@dataclass(frozen=True)
class Photo:
    """A photo to segment. `name`: its place below --out, without suffix, distinct from every other photo's."""

    path: Path
    name: str


def main(arguments: Sequence[str] | None = None) -> int:
    with fail_clearly("sohes.segment"):
        given = sys.argv[1:] if arguments is None else list(arguments)
        return segment_photos(parse(Arguments, given, prog="python -m sohes.segment"))


def segment_photos(args: Arguments) -> int:
    """The whole command: options, weights, then photo after photo. Returns the exit code, 0 or 1.

    Raises SohesError for what a person can mend: options, paths, weights. It is raised before any photo is read.
    """
    check_options(args)
    photos = find_photos(args.photos, args.out)
    segmenter = load_segmenter(args)
    log = RunLog()
    if args.weights is None:
        log("no --weights: photos are clustered, as in phase 1, without a model")
    with (
        Output(args.out, args.format, args.depth) as output,
        Progress(len(photos), "segment", "photos", log=log) as progress,
    ):
        for photo in photos:
            row = segment_photo(photo, segmenter, output)
            if row["status"] == "failed":
                log(f"{photo.path}: failed: {row['reason']}")
            progress.update(1, masks=row.get("num_masks", 0))
    counts = output.counts
    say(f"{len(photos)} photos: {', '.join(f'{n} {status}' for status, n in counts.items())}; see {args.out}")
    return EXIT_FAILURES if counts["failed"] > args.max_failures else 0


def check_options(args: Arguments) -> None:
    """Raises UsageError for the first option that cannot be."""
    if not args.photos:
        raise UsageError("name at least one photo or folder of photos")
    for option, value, low, high in (
        ("--depth", args.depth, 0, None),
        ("--min-score", args.min_score, 0, 1),
        ("--max-masks", args.max_masks, 1, None),
        ("--tile", args.tile or None, 32, None),
        ("--max-failures", args.max_failures, 0, None),
    ):
        if value is not None and not (low <= value and (high is None or value <= high)):
            raise UsageError(f"{option} {value}: expected {f'{low} to {high}' if high is not None else f'>= {low}'}")
    if args.tile and args.weights is None:
        raise UsageError("--tile needs --weights: photos are clustered as a whole")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device")
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out {args.out}: expected a folder, this is a file")


def find_photos(given: Sequence[Path], out: Path) -> list[Photo]:
    """All photos of the given files and folders, each once, with names that neither meet nor hit a photo.

    A photo of a folder keeps its place in the folder; of photos that would share a name, later ones get -2, -3, ...
    (file systems that ignore case count as meeting). Raises DataNotFoundError or DataError for a path without photos.
    """
    found: dict[Path, Path] = {}  # resolved path -> path as given, in order
    places: dict[Path, Path] = {}  # resolved path -> place below --out
    for root in given:
        # An --out inside the folder of photos holds pictures of an earlier call.
        earlier = out.resolve() if root.resolve() in out.resolve().parents else None
        for path in list_images(root):
            key = path.resolve()
            if key not in found and earlier not in key.parents:
                found[key] = path
                places[key] = path.relative_to(root) if root.is_dir() else Path(path.name)
    # Pictures must not replace photos, where --out is the photos' own folder.
    taken = {str(key).lower() for key in found}
    photos = []
    for key, path in found.items():
        stem, number = places[key].with_suffix("").as_posix(), 1
        name = stem
        while any(target.lower() in taken for target in _targets(out, name)):
            number += 1
            name = f"{stem}-{number}"
        taken.update(target.lower() for target in _targets(out, name))
        photos.append(Photo(path, name))
    return photos


def load_segmenter(args: Arguments) -> Callable[[torch.Tensor], Forest]:
    """What turns a photo, uint8 [3, H, W], into a forest, with the limits asked for. Raises WeightsError."""
    if args.weights is None:
        return clustering(args)
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    segmenter = Segmenter.from_pretrained(args.weights, device=device)
    limits = {"min_score": args.min_score, "max_masks": args.max_masks, "tile": args.tile}
    infer = replace(segmenter.infer_config, **{key: value for key, value in limits.items() if value is not None})
    limited = Segmenter(segmenter.model, segmenter.model_config, infer)
    return lambda image: limited([image])[0]


def clustering(args: Arguments) -> Callable[[torch.Tensor], Forest]:
    """Phase 1 with the backbone that comes with the package, with the limits asked for."""
    config = photo_labels()
    if args.max_masks is not None:
        config = replace(config, max_masks=args.max_masks)
    extractor = build_extractor(config)

    def segment(image: torch.Tensor) -> Forest:
        forest = label_image(image, extractor, config)
        return forest if args.min_score is None else forest.select(forest.scores >= args.min_score)

    return segment


def segment_photo(photo: Photo, segmenter: Callable[[torch.Tensor], Forest], output: Output) -> dict[str, Any]:
    """Segment one photo and write what it gives. Returns its manifest row."""
    started = time.perf_counter()
    try:
        image = read_image(photo.path)
        forest = segmenter(image)
    except UnreadableImage as error:
        return output.add_failure(photo, error.reason)
    except torch.OutOfMemoryError:
        size = f"{image.shape[2]}x{image.shape[1]}"
        return output.add_failure(photo, f"out of GPU memory at {size} pixels")
    return output.add(photo, image, forest, started)


class Output:
    """The folder that is written to. Files appear whole or not at all.

    Masks of all photos are collected in a file of lines, not in memory; `segments.json` and `manifest.jsonl` appear
    when the work ends, be it by an error or Ctrl-C. After a kill, what was done is in the two `.partial` files.
    """

    def __init__(self, folder: Path, kind: str, depth: int | None) -> None:
        self.folder, self.kind, self.depth = folder, kind, depth
        self.counts = {"ok": 0, "empty": 0, "failed": 0}
        self._images: list[dict[str, Any]] = []
        self._num_annotations = 0

    def __enter__(self) -> Output:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._manifest = (self.folder / "manifest.jsonl.partial").open("w", encoding="ascii")
        self._annotations = (self.folder / "segments.jsonl.partial").open("w+", encoding="ascii")
        return self

    def __exit__(self, *_: object) -> None:
        self._manifest.close()
        os.replace(self._manifest.name, self.folder / "manifest.jsonl")
        if self.kind == "coco":
            self._annotations.seek(0)
            write_coco(self.folder / "segments.json", self._images, map(json.loads, self._annotations))
        self._annotations.close()
        os.unlink(self._annotations.name)

    def add(self, photo: Photo, image: torch.Tensor, forest: Forest, started: float) -> dict[str, Any]:
        """Write the picture and the masks of a photo; `image` uint8 [3, H, W]. Returns its manifest row."""
        if self.depth is not None:
            forest = forest.select(forest.levels <= self.depth)
        picture = draw_panel(image, forest).permute(1, 2, 0).numpy()
        self._save_picture(f"{photo.name}.png", picture)
        if self.kind == "coco":
            image_id = len(self._images) + 1
            height, width = forest.masks.size
            self._images.append({"id": image_id, "file_name": str(photo.path), "width": width, "height": height})
            for annotation in forest.to_coco(image_id, first_id=self._num_annotations + 1):
                self._annotations.write(json.dumps(annotation) + "\n")
            self._num_annotations += len(forest)
        elif self.kind == "sam":
            write_whole(self.folder / f"{photo.name}.json", json.dumps(forest.to_sam()) + "\n")
        else:
            labels = (forest.to_label_map() + 1).to(torch.int32).numpy().astype("uint16")
            self._save_picture(f"{photo.name}.labels.png", labels)
        row = {"status": "ok" if len(forest) else "empty", "picture": f"{photo.name}.png", "num_masks": len(forest)}
        return self._add_row(photo, row | {"seconds": round(time.perf_counter() - started, 3)})

    def _save_picture(self, name: str, pixels: np.ndarray) -> None:
        with whole_file(self.folder / name, "wb") as file:
            Image.fromarray(pixels).save(file, "png")

    def add_failure(self, photo: Photo, reason: str) -> dict[str, Any]:
        """Record that a photo could not be segmented. Returns its manifest row."""
        return self._add_row(photo, {"status": "failed", "reason": reason})

    def _add_row(self, photo: Photo, row: dict[str, Any]) -> dict[str, Any]:
        row = {"file_name": str(photo.path), **row}
        self.counts[row["status"]] += 1
        self._manifest.write(json.dumps(row) + "\n")
        self._manifest.flush()
        self._annotations.flush()
        return row


def _targets(out: Path, name: str) -> list[str]:
    """Every file that a photo of this name may write, whatever the format."""
    return [str((out / f"{name}{suffix}").resolve()) for suffix in (".png", ".labels.png", ".json")]


if __name__ == "__main__":
    sys.exit(main())
