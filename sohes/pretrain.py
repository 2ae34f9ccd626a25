# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.pretrain`: raw photos in; a small ViT whose patch features cluster well out, no network needed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from sohes.cli.short_help import answer_help

if __name__ == "__main__":
    answer_help("pretrain", sys.argv[1:])  # before torch is imported, which takes seconds

import torch

from sohes.cli.command import base_config, fail_clearly, parse
from sohes.cli.options import FLAT
from sohes.configs.pretrain import PretrainConfig, get_preset
from sohes.configs.pretrain_checks import check_pretrain_config
from sohes.configs.run import ExploreConfig
from sohes.data.photo_pack import write_pack
from sohes.data.photos import PhotoSet
from sohes.data.sources import ImageList, list_images
from sohes.engine.run import CONFIG_FILE, Run, RunError, check_run, import_tensorboard, remove_failed_start, start_run
from sohes.labels.features import build_extractor
from sohes.labels.photo_regions import cut_photos
from sohes.phases.pretrain import pretrain
from sohes.report import write_report
from sohes.report.features import write_feature_pictures
from sohes.utils.devices import DeviceName, pick_device
from sohes.utils.distributed import World, find_world, gather, on_main, process_group
from sohes.utils.streams import say

_NUM_PICTURES = 8


@dataclass
class Arguments:
    """Train a small ViT on raw photos by self-distillation.

    The result is a folder that timm opens, and that phase 1 takes: `--explore.features OUT/weights/pretrain`.
    """

    config: PretrainConfig = field(default_factory=PretrainConfig, metadata=FLAT)
    out: Path = Path("runs/pretrain")
    """Folder of the run: config, checkpoints, metrics, weights."""
    resume: bool = False
    """Go on with the run in --out, from its files. Its settings are taken from there."""
    device: DeviceName = "auto"
    """Where to train: auto takes a GPU if there is one."""
    pack: Path | None = None
    """Train nothing: write the photos of --images, shrunk to --crops.photo-side, into this tar, to carry elsewhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    with fail_clearly("sohes.pretrain"):
        default = Arguments(config=base_config(given, PretrainConfig, Arguments.out, get_preset))
        args = parse(Arguments, given, prog="python -m sohes.pretrain", default=default)
        if args.pack is not None:
            pack_photos(args)
            return 0
        world = find_world()
        device = pick_device(args.device, world.local_rank)
        with process_group(world, device, timedelta(minutes=args.config.engine.timeout_minutes)):
            pretrain_run(args, device, world)
    return 0


def pretrain_run(args: Arguments, device: torch.device, world: World) -> Run:
    """The whole job; every process of the `world` calls this. Raises SohesError for everything a person can mend."""
    config = args.config
    check_pretrain_config(config, world.size)
    found = _find_photos(config)
    again = max(gather(world.restarts)) > 0  # a launcher that starts a job again means to go on with it
    on_main(lambda: check_run(args.out, config, args.resume or (again and (args.out / CONFIG_FILE).is_file())))
    if config.engine.tensorboard:
        import_tensorboard()
    is_new = on_main(lambda: start_run(args.out, config, args.resume, again))
    with remove_failed_start(args.out) if is_new and world.is_main else nullcontext():
        return run_pretraining(args, found, device, world)


def run_pretraining(args: Arguments, found: ImageList, device: torch.device, world: World) -> Run:
    """Decode the photos `found`, train, report, in a run folder that is there."""
    config, run = args.config, Run(args.out, world.is_main)
    if run.is_trained("pretrain"):
        run.log(f"trained before, see {run.weights('pretrain')}")
        return run
    if len(found.left_out):
        run.log(str(found.left_out))
    photos = PhotoSet(found, config.crops.photo_side, config.num_threads, config.cache_gb)
    for reason in photos.failures:
        run.log(reason)
    run.log(f"{len(photos)} photos, preset {config.preset}, device {device}, seed {config.seed}")
    if config.distill.region_weight:
        run.log(f"cutting photos into {', '.join(map(str, config.distill.region_counts))} regions")
        photos.regions = cut_photos(photos, config.distill.region_counts, config.num_threads)
    pretrain(run, config, photos, device, world)
    on_main(lambda: report(run, photos, device))
    return run


def report(run: Run, photos: PhotoSet, device: torch.device) -> None:
    """Pictures of what the patches' features tell apart, beside the loss curves."""
    weights = run.weights("pretrain")
    extractor = build_extractor(ExploreConfig(features=str(weights), facet="output", side=256), device)
    chosen = [k * len(photos) // _NUM_PICTURES for k in range(min(_NUM_PICTURES, len(photos)))]
    write_feature_pictures(run.path, extractor, [photos.photo(index) for index in chosen])
    run.log(f"backbone: {weights}; report: {write_report(run.path, device=device)}")
    run.log(f"next: python -m sohes.train --images PHOTOS --explore.features {shlex.quote(str(weights))}")


def pack_photos(args: Arguments) -> None:
    """Write the pack and say how large it is."""
    config = args.config
    check_pretrain_config(config)
    found = _find_photos(config)
    if len(found.left_out):
        say(str(found.left_out), "stderr")
    failures = write_pack(found, args.pack, config.crops.photo_side, config.pack_quality, config.num_threads)
    for reason in failures:
        say(reason, "stderr")
    megabytes = args.pack.stat().st_size / 1e6
    say(f"{args.pack}: {len(found) - len(failures)} photos, {megabytes:.1f} MB")


def _find_photos(config: PretrainConfig) -> ImageList:
    if not config.images:
        raise RunError("--images: expected folders, tars or lists of photos to learn from")
    return list_images(config.images)


if __name__ == "__main__":
    sys.exit(main())
