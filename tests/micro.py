# SPDX-License-Identifier: Apache-2.0
"""Everything as small as it can be while every part still works, for the tests that train; and a disk that is full."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from sohes.configs.presets import get_preset
from sohes.configs.run import ModelConfig

MICRO = [
    *("--scenes.num-train", "4", "--scenes.num-eval", "2", "--scenes.size", "64", "--device", "cpu"),
    *("--views.size", "64", "--infer.size", "64", "--loss.num-points", "64"),
    *("--instruct.num-steps", "4", "--instruct.batch-size", "2"),
    *("--correct.num-steps", "4", "--correct.batch-size", "2"),
]
"""Options of `sohes.train`."""


def micro_model(**changes: Any) -> ModelConfig:
    """That of the preset `micro` with few queries, free ones, and masks of stride 4; keywords change fields."""
    few = {"query_init": "learned", "num_queries": 9, "grid_size": 3, "mask_stride": 4}
    return replace(get_preset("micro").model, **{**few, **changes})


@contextmanager
def no_file_beyond(num_bytes: int) -> Iterator[None]:
    """A write that the system really refuses: no file of this process may grow longer."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Another default dtype of torch for the time of a `with`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
