# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.segment PHOTO... [--weights RUN]`: write the masks of photos, and pictures of them.

Arguments only; the job itself is in `sohes/phases/segment_photos.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from sohes.cli.short_help import answer_help

if __name__ == "__main__":
    answer_help("segment", sys.argv[1:])  # before torch is imported, which takes seconds

from sohes.cli.command import fail_clearly, parse
from sohes.cli.options import POSITIONAL, check_ranges
from sohes.configs.ranges import Range, at_least, between
from sohes.phases.segment_output import Format
from sohes.phases.segment_photos import SegmentJob, segment_photos
from sohes.utils.devices import DeviceName, pick_device
from sohes.utils.errors import SohesError


class UsageError(SohesError):
    """Options that conflict, or a required one is missing."""


@dataclass
class Arguments:
    """Segment photos into entities and their parts: with trained weights, or by clustering alone.

    Writes to --out: a picture of the masks of each photo, level by level; all masks in the chosen format; and
    manifest.jsonl, with the status of each photo: ok, empty or failed.
    """

    photos: tuple[Path, ...] = field(default=(), metadata=POSITIONAL)
    """Photos, folders of photos (searched recursively), or .txt lists of photos."""
    weights: str | None = None
    """A run folder, a folder with model.safetensors and config.json, or hf:owner/name of the Hugging Face hub. Default:
    photos are clustered as in phase 1, with the small backbone that comes with the package."""
    out: Path = Path("segments")
    """Output folder; files of an earlier call are replaced."""
    format: Format = "coco"
    """coco: one segments.json for all photos; sam: one JSON per photo, as SAM's mask generator writes it; png: one
    16-bit label map per photo, 0 where there is no mask, else 1 + the mask's rank by score."""
    depth: Annotated[int | None, at_least(0)] = None
    """Deepest level to keep: 0 keeps whole entities only, 1 their parts too. Default: every level."""
    min_score: Annotated[float | None, between(0, 1)] = None
    """Drop masks with a lower score. Default: as saved with the weights; 0 without weights."""
    max_masks: Annotated[int | None, at_least(1)] = None
    """Maximum number of masks per photo, best scores first. Default: as saved with the weights, or as in phase 1."""
    tile: Annotated[int | None, Range(ge=32, also=0)] = None
    """Segment photos with a longer side than this also in overlapping tiles of this side, in pixels, and join
    objects that are cut by tile borders; 0: never. Default: as saved with the weights."""
    max_failures: Annotated[int, at_least(0)] = 0
    """Exit with 1 if more photos than this cannot be segmented. All others are segmented in any case."""
    device: DeviceName = "auto"
    """Where to run: auto takes a GPU if there is one."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    with fail_clearly("sohes.segment"):
        args = parse(Arguments, given, prog="python -m sohes.segment")
        check_options(args)
        job = SegmentJob(
            args.photos,
            args.out,
            args.weights,
            args.format,
            args.depth,
            args.min_score,
            args.max_masks,
            args.tile,
            args.max_failures,
        )
        return segment_photos(job, pick_device(args.device))


def check_options(args: Arguments) -> None:
    """Raises UsageError or OptionError for the first wrong option."""
    if not args.photos:
        raise UsageError("name at least one photo or folder of photos")
    check_ranges(args)
    if args.tile and args.weights is None:
        raise UsageError("--tile needs --weights: photos are clustered as a whole")


if __name__ == "__main__":
    sys.exit(main())
