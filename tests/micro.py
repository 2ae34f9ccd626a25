# SPDX-License-Identifier: Apache-2.0
"""Everything as small as it can be while every part still works, for the tests that train; and a disk that is full."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sohes.config import ModelConfig

MICRO = [
    *("--scenes.num-train", "4", "--scenes.num-eval", "2", "--scenes.size", "64", "--device", "cpu"),
    *("--views.size", "64", "--infer.size", "64", "--loss.num-points", "64"),
    *("--instruct.num-steps", "4", "--instruct.batch-size", "2"),
    *("--correct.num-steps", "4", "--correct.batch-size", "2"),
]
"""Options of `sohes.train`."""


def micro_model(**changes: Any) -> ModelConfig:
    """A model with every part; keywords change fields."""
    values = {
        "backbone": "vit_tiny_patch16_224",
        "backbone_kwargs": {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
        "vit_stride": 8,
        "adapter_interactions": 2,
        "adapter_heads": 2,
        "adapter_stem": 8,
        "hidden_dim": 32,
        "mask_dim": 16,
        "num_heads": 2,
        "encoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_layers": 2,
        "decoder_ffn_dim": 32,
        "num_queries": 9,
        "grid_size": 3,
        "seeds_per_cell": 2,
        "num_granularities": 2,
        "affinity_dim": 8,
    }
    return ModelConfig(**{**values, **changes})


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
