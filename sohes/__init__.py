# SPDX-License-Identifier: Apache-2.0
"""SOHES: self-supervised open-world hierarchical entity segmentation. From raw photos to a forest of masks.

Importing this package is quiet and fast: torch comes in with the first use of a name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sohes._version import __version__

if TYPE_CHECKING:
    from sohes.models.segmenter import Segmenter
    from sohes.structures.forest import Forest
    from sohes.structures.masks import PackedMasks

__all__ = ["Forest", "PackedMasks", "Segmenter", "__version__"]

_HOMES = {
    "Forest": "sohes.structures.forest",
    "PackedMasks": "sohes.structures.masks",
    "Segmenter": "sohes.models.segmenter",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sohes' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
