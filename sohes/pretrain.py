# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.pretrain`: train a small ViT on raw photos, as a backbone for phase 1; needs no download.

Arguments only; the job itself is in `sohes/phases/pretrain_pipeline.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from sohes.cli.short_help import answer_help

if __name__ == "__main__":
    answer_help("pretrain", sys.argv[1:])  # before torch is imported, which takes seconds

from sohes.cli.command import base_config, fail_clearly, parse
from sohes.cli.options import FLAT
from sohes.configs.pretrain import PretrainConfig, get_preset
from sohes.phases.pretrain_pipeline import PretrainJob, pack_photos, pretrain_run
from sohes.utils.devices import DeviceName, pick_device
from sohes.utils.distributed import find_world, process_group


@dataclass
class Arguments:
    """Train a small ViT on raw photos by self-distillation.

    The result is a folder that timm opens and phase 1 accepts: `--explore.features OUT/weights/pretrain`.
    """

    config: PretrainConfig = field(default_factory=PretrainConfig, metadata=FLAT)
    out: Path = Path("runs/pretrain")
    """Folder of the run: config, checkpoints, metrics, weights."""
    resume: bool = False
    """Continue the run in --out, with the settings stored there."""
    device: DeviceName = "auto"
    """Where to train: auto takes a GPU if there is one."""
    pack: Path | None = None
    """Do not train: write the photos of --images, resized to --crops.photo-side, into this tar, to copy elsewhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    with fail_clearly("sohes.pretrain"):
        default = Arguments(config=base_config(given, PretrainConfig, Arguments.out, get_preset))
        args = parse(Arguments, given, prog="python -m sohes.pretrain", default=default)
        if args.pack is not None:
            pack_photos(args.config, args.pack)
            return 0
        world = find_world()
        device = pick_device(args.device, world.local_rank)
        with process_group(world, device, timedelta(minutes=args.config.engine.timeout_minutes)):
            pretrain_run(PretrainJob(args.config, args.out, args.resume), device, world)
    return 0


if __name__ == "__main__":
    sys.exit(main())
