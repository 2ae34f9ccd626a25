# SPDX-License-Identifier: Apache-2.0
"""COCO's polygons as RLE: checked here, as pycocotools, which draws them, checks no value."""

from __future__ import annotations

from typing import Any

import numpy as np

from sohes.data.coco_fields import Size, is_number, shorten
from sohes.utils.errors import SohesError

# pycocotools uses 32-bit integers for fifths of a pixel and for pixel indices, and needs 40 bytes per pixel of an
# outline while it draws.
MOST_PIXELS_TO_DRAW = 2**31 - 1
MOST_DISTANT_CORNER = 2**24
LONGEST_OUTLINE = 2**22


class MissingPolygons(SohesError, ImportError):
    """There are polygons, and pycocotools, which draws them, is not installed."""


def check_polygons(polygons: Any, size: Size) -> None:
    """Raises ValueError unless this is a list of polygons (x0, y0, x1, y1, ...) that can be drawn into ``size``."""
    if not isinstance(polygons, list) or not all(isinstance(one, list) and len(one) >= 6 for one in polygons):
        raise ValueError(f"expected polygons of three corners or more, got {shorten(polygons)}")
    if size[0] * size[1] > MOST_PIXELS_TO_DRAW:
        raise ValueError(f"expected an RLE, as polygons cannot be drawn into {size[0]} x {size[1]} pixels")
    for corners in polygons:
        if len(corners) % 2:
            raise ValueError(f"expected polygons with an even number of coordinates, got {len(corners)}")
        for value in corners:
            if not is_number(value, -MOST_DISTANT_CORNER, MOST_DISTANT_CORNER):
                wanted = f"coordinates of polygons from -{MOST_DISTANT_CORNER} to {MOST_DISTANT_CORNER}"
                raise ValueError(f"expected {wanted}, got {shorten(value)}")
        places = np.array(corners, np.float64).reshape(-1, 2)  # [corners, 2]
        length = np.abs(places - np.roll(places, 1, axis=0)).max(1).sum()
        if length > LONGEST_OUTLINE:
            raise ValueError(f"expected polygons with an outline of at most {LONGEST_OUTLINE} pixels, got {length:.0f}")


def draw_polygons(polygons: list[list[float]], size: Size) -> dict[str, Any]:
    """The union of polygons as compressed RLE of ``size``, ``counts`` as bytes. Raises ValueError, MissingPolygons."""
    check_polygons(polygons, size)
    try:
        from pycocotools import mask as coco_mask  # only here: for polygons alone
    except ImportError as error:
        raise MissingPolygons("polygons need pycocotools, which is not installed: pip install pycocotools") from error
    return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
