# SPDX-License-Identifier: Apache-2.0
"""The commands and their short help, without importing torch, which takes seconds."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sohes.utils.errors import EXIT_BAD_INPUT
from sohes.utils.streams import say

HELP, HELP_ALL = ("--help", "-h"), "--help-all"


@dataclass(frozen=True)
class Command:
    """summary: one line. text: what the command does. usage: its arguments. main: the main options and their texts.
    presets: the module that has them, "" for a command without presets."""

    summary: str
    usage: str
    text: str
    main: Mapping[str, str]
    presets: str = ""


_DEVICE = "auto (default), cpu or cuda"

COMMANDS: dict[str, Command] = {
    "train": Command(
        summary="photos in; a model that segments entities and parts out",
        usage="[--images PATH ...] [--preset NAME] [options]",
        text="Learn to segment entities and their parts from raw photos, without labels, in\n"
        "three phases: explore makes labels, instruct trains a model on them, correct\n"
        "refines it. With no options: on drawn scenes, in minutes on a CPU.",
        main={
            "--images": "photos to learn from: folders, tars, .txt lists, COCO .json files",
            "--preset": "the settings to start from, see below (default: tiny)",
            "--out": "folder of the run, and of its report.html (default: runs/default)",
            "--resume": "go on with the run in --out that was stopped",
            "--eval": "ground truth to score on: annotations.json and images/ in a folder",
            "--phases": "some of explore, instruct, correct (default: all three)",
            "--seed": "of everything random (default: 0)",
            "--device": _DEVICE,
        },
        presets="sohes.configs.presets",
    ),
    "segment": Command(
        summary="photos in; masks of entities and their parts, and pictures, out",
        usage="PHOTO ... [--weights RUN] [options]",
        text="Segment photos, or all photos of folders, into entities and their parts: with\n"
        "trained weights, or without any by clustering alone. Out come all masks, a\n"
        "picture of each photo, and manifest.jsonl.",
        main={
            "--weights": "a run folder, or a folder with a model; without: clustering",
            "--out": "folder to write to (default: segments)",
            "--format": "coco (default), sam or png",
            "--depth": "deepest level to keep; 0: only whole entities",
            "--min-score": "drop masks that score less, 0 to 1",
            "--device": _DEVICE,
        },
    ),
    "evaluate": Command(
        summary="predicted and true masks in; recall, precision and hierarchy out",
        usage="--gt GT.json --pred PRED.json [options]",
        text="Score predicted masks against true ones: average recall and precision as COCO\n"
        "counts them, equal to pycocotools, and how well the hierarchy agrees. Prints\n"
        "per cent; docs/evaluation.md has the formulas.",
        main={
            "--pred": "predictions with scores: COCO JSON, or a bare list of results",
            "--gt": "ground truth: COCO JSON",
            "--dataset": "instead of --gt: a data set by name; see docs/datasets.md",
            "--root": "the folder of --dataset",
            "--baseline": "score a classical segmenter, or other-annotators: humans",
            "--compare": "predictions or run folders, side by side in a page",
            "--out": "write the metrics here as JSON; of --compare: the page",
            "--per-image": "write a table with one line for each image here",
        },
    ),
    "pretrain": Command(
        summary="raw photos in; a small backbone for phase 1 out",
        usage="--images PATH ... [--preset NAME] [options]",
        text="Train a small ViT on raw photos by self-distillation. sohes.train takes it:\n"
        "--explore.features RUN/weights/pretrain --explore.facet output.",
        main={
            "--images": "photos to learn from: folders, tars, .txt lists",
            "--preset": "the settings to start from, see below (default: tiny-cpu)",
            "--out": "folder of the run (default: runs/pretrain)",
            "--resume": "go on with the run in --out that was stopped",
            "--pack": "train nothing: write the photos, shrunk, into this tar",
            "--device": _DEVICE,
        },
        presets="sohes.configs.pretrain",
    ),
    "env": Command(
        summary="what is installed; which backend each operator uses, and why",
        usage="[--json]",
        text="Print what is installed, how the kernels were built, and for every operator\n"
        "which backend runs on each device, and why the others do not.",
        main={"--json": "print it for machines"},
    ),
}


def overview() -> str:
    """The help of `sohes`: the commands, one a line."""
    width = max(map(len, COMMANDS))
    lines = ["usage: sohes COMMAND [options]", ""]
    lines += [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "sohes COMMAND --help says more. python -m sohes is the same command."])


def short_help(name: str) -> str:
    """The text of `--help` of a command: about twenty lines, the presets last."""
    command = COMMANDS[name]
    width = max(map(len, command.main))
    lines = [f"usage: python -m sohes.{name} {command.usage}", "", command.text, ""]
    lines += [f"  {option:{width}}  {text}" for option, text in command.main.items()]
    if command.presets:
        presets = presets_of(command.presets)
        width = max(map(len, presets))
        lines += ["", "presets, and what they are for:"]
        lines += [f"  {preset:{width}}  {first_sentence(make)}" for preset, make in presets.items()]
    if name != "env":
        preset = " --preset NAME" if command.presets else ""
        lines += ["", f"Every option with its range and default: --help-all{preset}"]
    return "\n".join(lines)


def presets_of(module: str) -> Mapping[str, Callable]:
    """The presets of a module by name."""
    __import__(module)
    return sys.modules[module].PRESETS


def first_sentence(function: Callable) -> str:
    """The first sentence of a docstring, in one line, without backquotes."""
    text = " ".join((inspect.getdoc(function) or "").split()).replace("`", "")
    return text.partition(". ")[0].removesuffix(".")


def answer_help(name: str, given: Sequence[str]) -> None:
    """Print the short help of a command and end the program if the words contain --help."""
    if any(word in HELP for word in _before_end(given)):
        print_help(short_help(name), f"sohes.{name}")
        sys.exit(0)


def print_help(text: str, program: str) -> None:
    """Print a text; if that fails, for example on a full disk, print one line and end the program."""
    try:
        say(text)
    except OSError as error:
        say(f"{program}: error: {error.filename}: {error.strerror}", "stderr")
        sys.exit(EXIT_BAD_INPUT)


def wants_all(given: Sequence[str]) -> bool:
    """Whether the words contain --help-all."""
    return HELP_ALL in _before_end(given)


def _before_end(given: Sequence[str]) -> Sequence[str]:
    """The words before `--`, which ends the options."""
    return given[: list(given).index("--")] if "--" in given else given
