# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.evaluate`: recall, precision and hierarchy metrics of predicted masks.

The options are `sohes.configs.evaluate.EvaluateConfig`; the work is done in `sohes.phases.evaluate`.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

from sohes.cli.short_help import answer_help

if __name__ == "__main__":
    answer_help("evaluate", sys.argv[1:])  # before torch is imported, which takes seconds

import torch

from sohes.cli.command import fail_clearly, parse
from sohes.cli.options import check_ranges
from sohes.configs.evaluate import EvaluateConfig
from sohes.phases.evaluate import check_options, run_evaluation
from sohes.utils.distributed import find_world, process_group

Arguments = EvaluateConfig


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    with fail_clearly("sohes.evaluate"):
        config = parse(Arguments, given, prog="python -m sohes.evaluate")
        world = find_world()
        check_ranges(config)
        check_options(config, world)
        with nullcontext() if world.size == 1 else process_group(world, torch.device("cpu")):
            run_evaluation(config, world)
    return 0


if __name__ == "__main__":
    sys.exit(main())
