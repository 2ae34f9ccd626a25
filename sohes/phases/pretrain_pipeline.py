# SPDX-License-Identifier: Apache-2.0
"""The whole job of `sohes.pretrain`: read the photos, train a backbone, report; or pack the photos into a tar."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from sohes.configs.pretrain import PretrainConfig
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
from sohes.utils.distributed import World, gather, on_main
from sohes.utils.streams import say

_NUM_PICTURES = 8


@dataclass(frozen=True)
class PretrainJob:
    """A run to start or to resume. out: its folder. resume: continue the run in `out`."""

    config: PretrainConfig
    out: Path
    resume: bool = False


def pretrain_run(job: PretrainJob, device: torch.device, world: World) -> Run:
    """Train a backbone in the run folder of the job. All processes of `world` call this; the main one writes.

    Raises SohesError for wrong paths or settings, or a run folder that is in use.
    """
    config = job.config
    check_pretrain_config(config, world.size)
    images = _list_photos(config)
    restarted = max(gather(world.restarts)) > 0  # by a launcher, to continue the run
    on_main(lambda: check_run(job.out, config, job.resume or (restarted and (job.out / CONFIG_FILE).is_file())))
    if config.engine.tensorboard:
        import_tensorboard()
    is_new = on_main(lambda: start_run(job.out, config, job.resume, restarted))
    with remove_failed_start(job.out) if is_new and world.is_main else nullcontext():
        return run_pretraining(job, images, device, world)


def run_pretraining(job: PretrainJob, images: ImageList, device: torch.device, world: World) -> Run:
    """Decode the photos, train and report, in an existing run folder."""
    config, run = job.config, Run(job.out, world.is_main)
    if run.is_trained("pretrain"):
        run.log(f"trained before, see {run.weights('pretrain')}")
        return run
    if len(images.skipped):
        run.log(str(images.skipped))
    photos = PhotoSet(images, config.crops.photo_side, config.num_threads, config.cache_gb)
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
    """Write report.html: loss curves, and pictures of the patch features."""
    weights = run.weights("pretrain")
    extractor = build_extractor(ExploreConfig(features=str(weights), facet="output", side=256), device)
    chosen = [k * len(photos) // _NUM_PICTURES for k in range(min(_NUM_PICTURES, len(photos)))]
    write_feature_pictures(run.path, extractor, [photos.photo(index) for index in chosen])
    run.log(f"backbone: {weights}; report: {write_report(run.path, device=device)}")
    run.log(f"next: python -m sohes.train --images PHOTOS --explore.features {shlex.quote(str(weights))}")


def pack_photos(config: PretrainConfig, pack: Path) -> None:
    """Write the photos of the settings, resized, into the tar `pack`, and print its size."""
    check_pretrain_config(config)
    images = _list_photos(config)
    if len(images.skipped):
        say(str(images.skipped), "stderr")
    failures = write_pack(images, pack, config.crops.photo_side, config.pack_quality, config.num_threads)
    for reason in failures:
        say(reason, "stderr")
    say(f"{pack}: {len(images) - len(failures)} photos, {pack.stat().st_size / 1e6:.1f} MB")


def _list_photos(config: PretrainConfig) -> ImageList:
    if not config.images:
        raise RunError("--images: expected folders, tars or lists of photos to learn from")
    return list_images(config.images)
