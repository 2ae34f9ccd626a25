# SPDX-License-Identifier: Apache-2.0
"""SOHES: self-supervised open-world hierarchical entity segmentation. From raw photos to a forest of masks.

What a program that embeds the package needs, imported with the first use of a name: `import sohes` loads no torch.

    forest = sohes.Segmenter.from_pretrained("runs/default")(sohes.read_image("photo.jpg"))[0]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sohes._version import __version__

if TYPE_CHECKING:
    from sohes.data.images import read_image
    from sohes.models.segmenter import Segmenter
    from sohes.structures.forest import Forest
    from sohes.structures.masks import PackedMasks
    from sohes.utils.errors import SohesError

__all__ = ["Forest", "PackedMasks", "Segmenter", "SohesError", "__version__", "read_image"]

_MODULES = {
    "Forest": "sohes.structures.forest",
    "PackedMasks": "sohes.structures.masks",
    "Segmenter": "sohes.models.segmenter",
    "SohesError": "sohes.utils.errors",
    "read_image": "sohes.data.images",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'sohes' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
