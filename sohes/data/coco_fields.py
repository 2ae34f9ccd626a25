# SPDX-License-Identifier: Apache-2.0
"""Checks of the values in COCO JSON, made when a file is read, so that an invalid value cannot become a wrong result.

An id is an integer of any size or a string. All other numbers are finite and within a range; `true` and `"7"` are no
numbers. An optional value may be absent or null. (`csrc/evaluation` leaves files with invalid values to this code.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

Size = tuple[int, int]

MOST_PIXELS = 10**10
"""Largest area of an image, mask or box: the end of COCO's widest area range, beyond which COCO ignores masks."""


def is_id(value: Any) -> bool:
    """Whether a JSON value can be an id: an integer of any size, or a string."""
    return type(value) in (int, str)


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether a JSON value is a number in low..high, ends included; NaN is in no range."""
    return type(value) in (int, float) and low <= value <= high


def has_region(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation has a segmentation: not missing, null, [] or {}. Otherwise it has at most a box."""
    return annotation.get("segmentation") not in (None, [], {})


def check_image(image: Mapping[str, Any]) -> None:
    """Raises ValueError unless the width, height and file name of an image record, if given, are valid."""
    for key in ("width", "height"):
        if image.get(key) is not None and not (type(image[key]) is int and 1 <= image[key] <= MOST_PIXELS):
            raise ValueError(f"expected a whole number of pixels from 1 up as {key}, got {shorten(image[key])}")
    if (image.get("width") or 0) * (image.get("height") or 0) > MOST_PIXELS:
        raise ValueError(f"expected at most 1e10 pixels, got a size of {image['width']} x {image['height']}")
    if not isinstance(image.get("file_name"), str | None):
        raise ValueError(f"expected text as file_name, got {shorten(image['file_name'])}")


def check_annotation(annotation: Mapping[str, Any]) -> None:
    """Raises ValueError for the first invalid field of an annotation, except its segmentation.

    Checked if given: id, category_id, parent, annotator, iscrowd, score, votes, area, bbox; and `level`, which is only
    copied and may be any value of JSON.
    """
    for key in ("id", "category_id", "parent", "annotator"):
        value = annotation.get(key)
        if value is not None and not is_id(value):
            raise _invalid(annotation, key, "an integer or a string")
    if annotation.get("iscrowd") not in (None, 0, 1):
        raise _invalid(annotation, "iscrowd", "0 or 1")
    if annotation.get("score") is not None and not is_number(annotation["score"], -_LARGEST, _LARGEST):
        raise _invalid(annotation, "score", "a finite number")
    if annotation.get("votes") is not None and not is_number(annotation["votes"], 0, 1):
        raise _invalid(annotation, "votes", "a number from 0 to 1")
    if annotation.get("area") is not None and not is_number(annotation["area"], 0, MOST_PIXELS):
        raise _invalid(annotation, "area", "a number of pixels from 0 to 1e10")
    if type(annotation.get("level")) is float and not math.isfinite(annotation["level"]):
        raise _invalid(annotation, "level", "a finite number")
    if "bbox" in annotation:
        given_box(annotation)


_LARGEST = 1.7976931348623157e308  # of float64


def check_finite(annotation: Mapping[str, Any], key: str) -> None:
    """Raises ValueError if a number within a field is NaN or infinite."""
    try:
        json.dumps(annotation.get(key), allow_nan=False)
    except ValueError as error:
        raise _invalid(annotation, key, "finite numbers") from error


def given_box(annotation: Mapping[str, Any]) -> list[float] | None:
    """The `bbox` of an annotation: left, top, width and height in pixels; None if missing, null or [].

    Raises ValueError for any other value.
    """
    box = annotation.get("bbox")
    if box in (None, []):
        return None
    lows = (-MOST_PIXELS, -MOST_PIXELS, 0, 0)
    if type(box) is not list or len(box) != 4:
        raise _invalid(annotation, "bbox", "four numbers")
    if not all(is_number(value, low, MOST_PIXELS) for value, low in zip(box, lows, strict=True)):
        raise _invalid(annotation, "bbox", "left, top, width and height in pixels, the last two from 0 up")
    if float(box[2]) * float(box[3]) > MOST_PIXELS:
        raise _invalid(annotation, "bbox", "at most 1e10 pixels")
    return box


def check_rle_size(segmentation: Mapping[str, Any], size: Size) -> None:
    """Raises ValueError unless an RLE has this size (H, W)."""
    given = segmentation.get("size")
    if type(given) is not list or given != [*size] or not all(type(side) is int for side in given):
        raise ValueError(f"expected a mask of size {[*size]}, got {shorten(given)}")


def check_run_lengths(counts: list, size: Size) -> None:
    """Raises ValueError unless the counts of an uncompressed RLE are whole numbers in the range of this size."""
    num_pixels = size[0] * size[1]
    for count in counts:
        if type(count) is not int or not 0 <= count <= num_pixels:
            raise ValueError(f"expected whole run lengths from 0 to {num_pixels} pixels, got {shorten(count)}")


def name_of(annotation: Mapping[str, Any]) -> str:
    """The name of an annotation in error messages."""
    return f"annotation {shorten(annotation['id'])}" if "id" in annotation else "annotation (without id)"


def shorten(record: Any) -> str:
    """A JSON value as text of about 100 characters at most."""
    text = json.dumps(record)
    return text if len(text) <= 100 else text[:100] + "..."


def _invalid(annotation: Mapping[str, Any], key: str, expected: str) -> ValueError:
    return ValueError(f"{name_of(annotation)}: expected {expected} as {key}, got {shorten(annotation[key])}")
