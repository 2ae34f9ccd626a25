# SPDX-License-Identifier: Apache-2.0
"""What the values of COCO JSON may be: checked where a file is read, so that no wrong one becomes a wrong number.

An id is an integer of any size or a string. Everything that is counted with is a finite number within a range; `true`
and `"7"` are no numbers. An optional value may be absent or null. (`csrc/evaluation` declines what is refused here.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

Size = tuple[int, int]

MOST_PIXELS = 10**10
"""Of an image, a mask or a box: where COCO's widest area range ends. What is larger would be ignored in silence."""


def is_id(value: Any) -> bool:
    """Whether a JSON value can be an id: an integer of any size, or a string."""
    return type(value) in (int, str)


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether a JSON value is a number in low..high, both of them included; NaN is in no range."""
    return type(value) in (int, float) and low <= value <= high


def has_region(annotation: Mapping[str, Any]) -> bool:
    """Whether there is a segmentation at all: not missing, null, [] or {}. Without one there is at most a box."""
    return annotation.get("segmentation") not in (None, [], {})


def check_image(image: Mapping[str, Any]) -> None:
    """Raises ValueError unless the width, height and file name of an image record, where it has them, are of use."""
    for key in ("width", "height"):
        if image.get(key) is not None and not (type(image[key]) is int and 1 <= image[key] <= MOST_PIXELS):
            raise ValueError(f"expected a whole number of pixels from 1 up as {key}, got {shorten(image[key])}")
    if (image.get("width") or 0) * (image.get("height") or 0) > MOST_PIXELS:
        raise ValueError(f"expected at most 1e10 pixels, got a size of {image['width']} x {image['height']}")
    if not isinstance(image.get("file_name"), str | None):
        raise ValueError(f"expected text as file_name, got {shorten(image['file_name'])}")


def check_annotation(annotation: Mapping[str, Any]) -> None:
    """Raises ValueError for the first field of an annotation, other than its segmentation, that cannot be.

    Checked where they are there: id, category_id, parent, annotator, iscrowd, score, area, bbox; and `level`, which is
    not looked at but copied, so that it may be anything that JSON can say.
    """
    for key in ("id", "category_id", "parent", "annotator"):
        value = annotation.get(key)
        if value is not None and not is_id(value):
            raise _unfit(annotation, key, "an integer or a string")
    if annotation.get("iscrowd") not in (None, 0, 1):
        raise _unfit(annotation, "iscrowd", "0 or 1")
    if annotation.get("score") is not None and not is_number(annotation["score"], -_LARGEST, _LARGEST):
        raise _unfit(annotation, "score", "a finite number")
    if annotation.get("area") is not None and not is_number(annotation["area"], 0, MOST_PIXELS):
        raise _unfit(annotation, "area", "a number of pixels from 0 to 1e10")
    if type(annotation.get("level")) is float and not math.isfinite(annotation["level"]):
        raise _unfit(annotation, "level", "a finite number")
    if "bbox" in annotation:
        given_box(annotation)


_LARGEST = 1.7976931348623157e308  # of float64


def check_finite(annotation: Mapping[str, Any], key: str) -> None:
    """Raises ValueError where a number within a field is NaN or infinite."""
    try:
        json.dumps(annotation.get(key), allow_nan=False)
    except ValueError as error:
        raise _unfit(annotation, key, "finite numbers") from error


def given_box(annotation: Mapping[str, Any]) -> list[float] | None:
    """The `bbox` of an annotation, left, top, width and height in pixels; None where there is none, null or [].

    Raises ValueError for anything else.
    """
    box = annotation.get("bbox")
    if box in (None, []):
        return None
    lows = (-MOST_PIXELS, -MOST_PIXELS, 0, 0)
    if type(box) is not list or len(box) != 4:
        raise _unfit(annotation, "bbox", "four numbers")
    if not all(is_number(value, low, MOST_PIXELS) for value, low in zip(box, lows, strict=True)):
        raise _unfit(annotation, "bbox", "left, top, width and height in pixels, the last two from 0 up")
    if float(box[2]) * float(box[3]) > MOST_PIXELS:
        raise _unfit(annotation, "bbox", "at most 1e10 pixels")
    return box


def check_rle_size(segmentation: Mapping[str, Any], size: Size) -> None:
    """Raises ValueError unless an RLE is of this size (H, W)."""
    given = segmentation.get("size")
    if type(given) is not list or given != [*size] or not all(type(side) is int for side in given):
        raise ValueError(f"expected a mask of size {[*size]}, got {shorten(given)}")


def check_run_lengths(counts: list, size: Size) -> None:
    """Raises ValueError unless the counts of an uncompressed RLE are whole numbers that this size may have."""
    num_pixels = size[0] * size[1]
    for count in counts:
        if type(count) is not int or not 0 <= count <= num_pixels:
            raise ValueError(f"expected whole run lengths from 0 to {num_pixels} pixels, got {shorten(count)}")


def name_of(annotation: Mapping[str, Any]) -> str:
    """How an annotation is called in errors."""
    return f"annotation {shorten(annotation['id'])}" if "id" in annotation else "annotation (without id)"


def shorten(record: Any) -> str:
    """A JSON value as text of about 100 characters at most."""
    text = json.dumps(record)
    return text if len(text) <= 100 else text[:100] + "..."


def _unfit(annotation: Mapping[str, Any], key: str, expected: str) -> ValueError:
    return ValueError(f"{name_of(annotation)}: expected {expected} as {key}, got {shorten(annotation[key])}")
