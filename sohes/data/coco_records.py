# SPDX-License-Identifier: Apache-2.0
"""Where the annotations of each image lie in a COCO file: found once in little memory, read when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sohes.data.errors import DataError
from sohes.json_stream import JsonReader

Span = tuple[int, int]
"""First byte of some neighbouring annotations in a file, and the one past their last."""

IMAGE_KEYS = ("id", "file_name", "width", "height")


@dataclass
class ImageRecord:
    """An image of a COCO file. text: JSON of its IMAGE_KEYS. spans: of its annotations, in the order of the file."""

    image_id: int
    text: bytes
    spans: list[Span]


def scan_coco(file: Path) -> Iterator[ImageRecord]:
    """Every image of a COCO file. Raises DataError where it is none; the message names what was expected."""
    images: dict[int, bytes] = {}
    spans: dict[int, list[Span]] = {}
    strangers: dict[int, str] = {}  # annotations before any image: id -> the first one, as it is told
    try:
        with JsonReader(file) as reader:
            _read(file, reader, images, spans, strangers)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    for image_id, annotation in strangers.items():
        if image_id not in images:
            raise DataError(f"{file}: {annotation} has an image_id that is not among the images")
    for image_id, text in images.items():
        yield ImageRecord(image_id, text, spans.get(image_id, []))


def read_spans(file: Path, spans: list[Span]) -> list[dict[str, Any]]:
    """The annotations that lie there. Raises ValueError when the file has changed since."""
    parts = []
    with file.open("rb") as content:
        for start, stop in spans:
            content.seek(start)
            parts.append(content.read(stop - start))
    return json.loads(b"[" + b",".join(parts) + b"]")


def _read(
    file: Path,
    reader: JsonReader,
    images: dict[int, bytes],
    spans: dict[int, list[Span]],
    strangers: dict[int, str],
) -> None:
    seen = set()
    if reader.peek() == "{":
        for key in reader.members():
            if key in ("images", "annotations") and reader.peek() == "[":
                seen.add(key)
                if key == "images":
                    _read_images(file, reader, images)
                else:
                    _read_annotations(file, reader, images, spans, strangers)
            else:
                reader.value()
    else:
        reader.value()
    if reader.peek():
        raise ValueError(f"there is more after its end, {reader.peek()!r}")
    for key in ("images", "annotations"):
        if key not in seen:
            raise DataError(f'{file}: expected COCO JSON, an object with a list "{key}"')


def _read_images(file: Path, reader: JsonReader, images: dict[int, bytes]) -> None:
    for image, _, _ in reader.elements():
        if not has_keys(image, id=int, file_name=str, width=int, height=int):
            raise DataError(f"{file}: expected images with id, file_name, width and height, got {shorten(image)}")
        if image["id"] in images:
            raise DataError(f"{file}: image id {image['id']} occurs twice; expected every image once")
        record = {key: image[key] for key in IMAGE_KEYS}
        images[image["id"]] = json.dumps(record, separators=(",", ":")).encode("ascii")


def _read_annotations(
    file: Path,
    reader: JsonReader,
    images: dict[int, bytes],
    spans: dict[int, list[Span]],
    strangers: dict[int, str],
) -> None:
    last = None
    for annotation, start, stop in reader.elements():
        if not has_keys(annotation, image_id=int) or not isinstance(annotation.get("segmentation"), dict | list):
            raise DataError(f"{file}: expected annotations with image_id and segmentation, got {shorten(annotation)}")
        image_id = annotation["image_id"]
        if image_id == last:  # only a comma and white space lie between
            spans[image_id][-1] = (spans[image_id][-1][0], stop)
            continue
        last = image_id
        spans.setdefault(image_id, []).append((start, stop))
        if image_id not in images:
            strangers.setdefault(image_id, shorten(annotation))


def has_keys(record: Any, **types: type) -> bool:
    """Whether a JSON value is an object with these keys, of these types."""
    return isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in types.items())


def shorten(record: Any) -> str:
    """A JSON value as text of about 100 characters at most."""
    text = json.dumps(record)
    return text if len(text) <= 100 else text[:100] + "..."
