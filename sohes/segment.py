# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.segment PHOTO... [--weights RUN]`: photos in; masks, and pictures of them, out."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from sohes.cli.short_help import answer_help

if __name__ == "__main__":
    answer_help("segment", sys.argv[1:])  # before torch is imported, which takes seconds

import torch

from sohes.cli.command import fail_clearly, parse
from sohes.cli.options import POSITIONAL, check_ranges
from sohes.configs.presets import photo_labels
from sohes.configs.ranges import Range, at_least, between
from sohes.data.errors import DataNotFoundError
from sohes.data.images import UnreadableImage, read_image
from sohes.data.sources import list_images
from sohes.labels.features import build_extractor
from sohes.labels.pipeline import label_image
from sohes.models.segmenter import Segmenter
from sohes.phases.segment_output import (
    SUFFIXES,
    Format,
    Output,
    Photo,
    Segmented,
    files_of_earlier_calls,
    finish,
    is_own_picture,
)
from sohes.structures.forest import Forest
from sohes.utils.console import Progress, RunLog
from sohes.utils.devices import DeviceName, pick_device
from sohes.utils.errors import EXIT_FAILURES, SohesError
from sohes.utils.files import fitting_name
from sohes.utils.streams import say
from sohes.utils.workers import available_cpus, map_ahead, worker_pool

Segment = Callable[[torch.Tensor], Forest]
"""A photo, uint8 [3, H, W] -> its masks."""

MODEL_WORKERS = 8
"""Photos that a model segments side by side, at most: its memory is that of the model's largest tensors for each."""


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
    format: Format = "coco"
    """coco: one segments.json for all photos; sam: one JSON a photo, in the form of SAM's mask generator; png: one
    16-bit label map a photo, 0 where there is no mask, else 1 + the mask's place by score."""
    depth: Annotated[int | None, at_least(0)] = None
    """Deepest level to keep: 0 keeps whole entities only, 1 their parts too. Default: every level."""
    min_score: Annotated[float | None, between(0, 1)] = None
    """Drop masks that score less. Default: as the weights were saved with; 0 without."""
    max_masks: Annotated[int | None, at_least(1)] = None
    """At most so many masks a photo, best scores first. Default: as saved with the weights, or as in phase 1."""
    tile: Annotated[int | None, Range(ge=32, also=0)] = None
    """Segment photos with a longer side than this also in overlapping tiles of this side, in pixels, and join
    the objects that tile borders cut; 0: never. Default: as the weights were saved with."""
    max_failures: Annotated[int, at_least(0)] = 0
    """Exit with 1 when more photos than this could not be segmented. All others are segmented anyway."""
    device: DeviceName = "auto"
    """Where to run: auto takes a GPU if there is one."""


def main(arguments: Sequence[str] | None = None) -> int:
    with fail_clearly("sohes.segment"):
        given = sys.argv[1:] if arguments is None else list(arguments)
        return segment_photos(parse(Arguments, given, prog="python -m sohes.segment"))


def segment_photos(args: Arguments) -> int:
    """The whole command: options, weights, then photo after photo. Returns the exit code, 0 or 1.

    Raises SohesError for what a person can mend: options, paths, weights. It is raised before any photo is read.
    """
    check_options(args)
    device = pick_device(args.device)
    photos = find_photos(args.photos, args.out)
    output = Output(args.out, args.format)
    segmenter = load_segmenter(args, device)
    log = RunLog()
    if args.weights is None:
        log("no --weights: photos are clustered, as in phase 1, without a model")
    num_cpus = available_cpus()
    num_workers = min(num_cpus, len(photos), MODEL_WORKERS if args.weights else num_cpus)
    with (
        output,
        Progress(len(photos), "segment", "photos", log=log) as progress,
        worker_pool(num_workers, max(1, num_cpus // num_workers) if args.weights else 1, "segment") as pool,
    ):
        for done in map_ahead(pool, lambda photo: segment_photo(photo, segmenter, args), photos, 2 * num_workers):
            row = output.add(done)
            if done.reason:
                log(f"{done.photo.path}: failed: {done.reason}")
            progress.update(1, masks=row.get("num_masks", 0))
    counts = output.counts
    say(f"{len(photos)} photos: {', '.join(f'{n} {status}' for status, n in counts.items())}; see {args.out}")
    return EXIT_FAILURES if counts["failed"] > args.max_failures or counts["failed"] == len(photos) else 0


def check_options(args: Arguments) -> None:
    """Raises UsageError or OptionError for the first option that does not fit."""
    if not args.photos:
        raise UsageError("name at least one photo or folder of photos")
    check_ranges(args)
    if args.tile and args.weights is None:
        raise UsageError("--tile needs --weights: photos are clustered as a whole")


def find_photos(given: Sequence[Path], out: Path) -> list[Photo]:
    """All photos of the given files and folders, each once, with names that neither meet nor hit a file of others.

    A photo of a folder keeps its place in the folder; of photos that would share a name, later ones get -2, -3, ...
    (file systems that ignore case count as meeting), and so does one whose files would replace any but those of an
    earlier call. Pictures that this command has made are no photos, unless they are named themselves.

    Raises DataNotFoundError or DataError for a path without photos.
    """
    found: dict[Path, Path] = {}  # resolved path -> path as given, in order
    places: dict[Path, Path] = {}  # resolved path -> place below --out
    for root in given:
        is_folder = root.is_dir()
        listed = list_images(root)
        if len(listed.left_out):
            say(f"{root}: {listed.left_out}", "stderr")
        for path in listed:
            key = path.resolve()
            if key not in found and not (is_folder and is_own_picture(path)):
                found[key] = path
                places[key] = path.relative_to(root) if is_folder else Path(path.name)
    if not found:
        raise DataNotFoundError(f"no photos in {', '.join(map(str, given))}, only pictures that this command has made")
    taken, ours, photos = {str(key).lower() for key in found}, files_of_earlier_calls(out), []

    def is_free(target: Path) -> bool:
        resolved = target.resolve()
        is_there = str(resolved) not in ours and target.exists() and not is_own_picture(target)
        return str(resolved).lower() not in taken and not is_there

    for key, path in found.items():
        stem, number = _place(out, places[key].with_suffix("")), 1
        targets = _targets(out, stem, "")
        while not all(map(is_free, targets)):
            number += 1
            targets = _targets(out, stem, f"-{number}")
        taken.update(str(target.resolve()).lower() for target in targets)
        photos.append(Photo(path, targets[0].relative_to(out).as_posix().removesuffix(SUFFIXES[0])))
    return photos


def load_segmenter(args: Arguments, device: torch.device) -> Segment:
    """What turns a photo, uint8 [3, H, W], into a forest, with the limits asked for; threads share it.

    Raises WeightsError.
    """
    if args.weights is None:
        return clustering(args, device)
    segmenter = Segmenter.from_pretrained(args.weights, device=device)
    limits = {"min_score": args.min_score, "max_masks": args.max_masks, "tile": args.tile}
    infer = replace(segmenter.infer_config, **{key: value for key, value in limits.items() if value is not None})
    limited = Segmenter(segmenter.model, segmenter.model_config, infer)
    # One photo at a time on a GPU, whose memory does not grow with the number of threads.
    turn = threading.Lock() if device.type == "cuda" else nullcontext()

    def segment(image: torch.Tensor) -> Forest:
        with turn:
            return limited([image])[0]

    return segment


def clustering(args: Arguments, device: torch.device) -> Segment:
    """Phase 1 with the backbone that comes with the package, with the limits asked for."""
    config = photo_labels()
    if args.max_masks is not None:
        config = replace(config, max_masks=args.max_masks)
    extractor = build_extractor(config, device)

    def segment(image: torch.Tensor) -> Forest:
        forest = label_image(image, extractor, config)
        return forest if args.min_score is None else forest.select(forest.scores >= args.min_score)

    return segment


def segment_photo(photo: Photo, segmenter: Segment, args: Arguments) -> Segmented:
    """Read, segment, draw: what a thread does for one photo."""
    started = time.perf_counter()
    try:
        image = read_image(photo.path)
        forest = segmenter(image)
    except UnreadableImage as error:
        return Segmented(photo, error.reason)
    except torch.OutOfMemoryError:
        return Segmented(photo, f"out of GPU memory at {image.shape[2]}x{image.shape[1]} pixels")
    if args.depth is not None:
        forest = forest.select(forest.levels <= args.depth)
    return finish(photo, image, forest, args.format, started)


def _place(out: Path, place: Path) -> Path:
    """A place below `out` whose folders can be made: one that has the name of a file there gets a suffix."""
    folder = Path()
    for part in place.parts[:-1]:
        folder /= part
        if (out / folder).exists() and not (out / folder).is_dir():
            folder = folder.with_name(fitting_name(folder.name, ".d"))
    return folder / place.name


def _targets(out: Path, stem: Path, number: str) -> list[Path]:
    """Every file that a photo of this name may give, whatever the format, with names that file systems take."""
    longest = max(SUFFIXES, key=len)
    name = fitting_name(f"{stem.name}{number}", longest).removesuffix(longest)
    return [out / stem.parent / f"{name}{suffix}" for suffix in SUFFIXES]


if __name__ == "__main__":
    sys.exit(main())
