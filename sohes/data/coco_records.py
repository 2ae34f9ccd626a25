# SPDX-License-Identifier: Apache-2.0
"""Where the annotations of each image lie in a COCO file: found in one scan in little memory, read on demand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sohes.data.coco_fields import check_annotation, check_image, has_region, is_id, shorten
from sohes.data.errors import DataError
from sohes.utils.json_stream import JsonReader, parse_json

Span = tuple[int, int]
"""A run of annotations in a file: first byte, and the byte after the last."""

IMAGE_KEYS = ("id", "file_name", "width", "height")


@dataclass
class ImageRecord:
    """An image of a COCO file.

    text: JSON of its IMAGE_KEYS. spans: of its annotations, in the order of the file. num_without_region: number of its
    annotations without a segmentation.
    """

    image_id: int | str
    text: bytes
    spans: list[Span]
    num_without_region: int


def scan_coco(file: Path) -> Iterator[ImageRecord]:
    """Every image of a COCO file. Raises DataError for any other file; the message says what was expected."""
    scan = _Scan(file)
    try:
        with JsonReader(file) as reader:
            scan.read(reader)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    for image_id, annotation in scan.early.items():
        if image_id not in scan.images:
            raise DataError(f"{file}: {annotation} has an image_id that is not among the images")
    for image_id, text in scan.images.items():
        yield ImageRecord(image_id, text, scan.spans.get(image_id, []), scan.without_region[image_id])


def read_spans(file: Path, spans: list[Span]) -> list[dict[str, Any]]:
    """The annotations of some spans of a file. Raises ValueError if the file has changed."""
    parts = []
    with file.open("rb") as content:
        for start, stop in spans:
            content.seek(start)
            parts.append(content.read(stop - start))
    return parse_json(b"[" + b",".join(parts) + b"]")


class _Scan:
    """One scan of a file. early: image ids that annotations name before the image is read -> the first such annotation,
    shortened for errors."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.images: dict[int | str, bytes] = {}
        self.spans: dict[int | str, list[Span]] = {}
        self.early: dict[int | str, str] = {}
        self.without_region: Counter[int | str] = Counter()

    def read(self, reader: JsonReader) -> None:
        seen = set()
        if reader.peek() == "{":
            for key in reader.members():
                if key in ("images", "annotations") and reader.peek() == "[":
                    seen.add(key)
                    if key == "images":
                        self._read_images(reader)
                    else:
                        self._read_annotations(reader)
                else:
                    reader.value()
        else:
            reader.value()
        if reader.peek():
            raise ValueError(f"there is more after its end, {reader.peek()!r}")
        for key in ("images", "annotations"):
            if key not in seen:
                raise DataError(f'{self.file}: expected COCO JSON, an object with a list "{key}"')

    def _read_images(self, reader: JsonReader) -> None:
        for image, _, _ in reader.elements():
            if not has_keys(image, file_name=str, width=int, height=int) or not is_id(image.get("id")):
                expected = "images with id, file_name, width and height"
                raise DataError(f"{self.file}: expected {expected}, got {shorten(image)}")
            if image["id"] in self.images:
                raise DataError(f"{self.file}: image id {image['id']} occurs twice; expected every image once")
            try:
                check_image(image)
            except ValueError as error:
                raise DataError(f"{self.file}, image {image['id']} ({image['file_name']}): {error}") from error
            record = {key: image[key] for key in IMAGE_KEYS}
            self.images[image["id"]] = json.dumps(record, separators=(",", ":")).encode("ascii")

    def _read_annotations(self, reader: JsonReader) -> None:
        last = None
        for annotation, start, stop in reader.elements():
            if not isinstance(annotation, dict) or not is_id(annotation.get("image_id")):
                raise DataError(f"{self.file}: expected annotations with image_id, got {shorten(annotation)}")
            image_id = annotation["image_id"]
            try:
                check_annotation(annotation)
            except ValueError as error:
                raise DataError(f"{self.file}, image {image_id}: {error}") from error
            if not has_region(annotation):
                self.without_region[image_id] += 1
            if image_id == last:  # only a comma and white space in between
                self.spans[image_id][-1] = (self.spans[image_id][-1][0], stop)
                continue
            last = image_id
            self.spans.setdefault(image_id, []).append((start, stop))
            if image_id not in self.images:
                self.early.setdefault(image_id, shorten(annotation))


def has_keys(record: Any, **types: type) -> bool:
    """Whether a JSON value is an object with these keys, of these types."""
    return isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in types.items())
