# SPDX-License-Identifier: Apache-2.0
"""Overfitting test: AR@1000 of phase 2 on the few drawn scenes that it was trained on.

    OMP_NUM_THREADS=1 python benchmarks/overfit.py
    OMP_NUM_THREADS=1 python benchmarks/overfit.py --preset tiny --size 96 --set loss.num_points=1024

Tests model, matching and losses apart from generalization. Phase 2 trains on the true masks of the scenes, uncropped
(and mirrored). The last line says whether AR@1000 is above the bar; if not, the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from sohes.configs.presets import get_preset
from sohes.configs.run import Config, from_dict, to_dict
from sohes.data.coco import LabelSet
from sohes.data.scenes import write_scenes
from sohes.engine.run import Run
from sohes.evaluation.tables import format_results
from sohes.models.segmenter import Segmenter
from sohes.phases.checks import check_config
from sohes.phases.instruct import instruct
from sohes.phases.scoring import find_ground_truth, score_phase
from sohes.utils.distributed import World


def make_config(preset: str, num_scenes: int, size: int | None, steps: int, changes: list[str]) -> Config:
    """A preset for scenes of `size`, without crops; `changes` are GROUP.FIELD=JSON."""
    config = get_preset(preset)
    config.scenes.size = size or config.scenes.size
    config.model.backbone_kwargs["img_size"] = config.views.size = config.infer.size = config.scenes.size
    config.views.scale = (1.0, 1.0)
    config.instruct.num_steps, config.instruct.batch_size = steps, num_scenes
    values = to_dict(config)
    for change in changes:
        name, value = change.split("=", 1)
        group, field = name.split(".")
        values[group][field] = json.loads(value)
    config = from_dict(Config, values)
    check_config(config)
    return config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--preset", default="micro")
    parser.add_argument("--size", type=int, help="side of a scene in pixels; default: the preset's")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--bar", type=float, default=90.0, help="AR@1000 to pass, in per cent")
    parser.add_argument("--out", type=Path, help="run folder to keep; an interrupted run is resumed")
    parser.add_argument("--set", nargs="*", default=[], metavar="GROUP.FIELD=JSON", help="changed settings")
    args = parser.parse_args()
    config = make_config(args.preset, args.scenes, args.size, args.steps, args.set)
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(args.out or Path(temporary))
        scenes = write_scenes(run.path / "scenes", args.scenes, config.scenes.size, config.seed)
        start = time.process_time()
        instruct(run, config, LabelSet(scenes), torch.device("cpu"), World())
        seconds = time.process_time() - start
        segmenter = Segmenter.from_pretrained(run.weights("instruct"))
        scores = score_phase(run, "instruct", lambda image: segmenter([image])[0], find_ground_truth(scenes), World())
        print(format_results(run.read_results()))
    recall = 100 * scores["AR@1000"]
    result = f"AR@1000 {recall:.1f} after {args.steps} steps, {seconds:.0f} s of processor time"
    print(f"{result}: {'above' if recall > args.bar else 'NOT above'} {args.bar:g}")
    return 0 if recall > args.bar else 1


if __name__ == "__main__":
    sys.exit(main())
