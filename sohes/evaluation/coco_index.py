# SPDX-License-Identifier: Apache-2.0
"""Index of a COCO JSON file: the byte ranges of each image's annotations, so large files need little memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sohes.data.coco_fields import check_annotation, check_finite, check_image, has_region, is_id, shorten
from sohes.evaluation.annotations import Annotations, Want, read_annotations
from sohes.ops._binary import find_binary
from sohes.structures.masks import Size
from sohes.utils.errors import SohesError
from sohes.utils.json_stream import Element, JsonReader, parse_json

ImageId = int | str
GROUPS_AT_A_TIME = 1 << 12
LONG_ANNOTATION = 1 << 16  # in bytes; longer ones that cross the end of the window are parsed in Python


class BadInput(SohesError, ValueError):
    """Files or options that cannot be evaluated; the message names the file and what was expected."""


class CocoIndex:
    """The images of a COCO file, or of a bare list of COCO results, and the positions of their annotations.

    images: the image records by id, in the order of the file; None for a bare list. annotated: ids that have
    annotations. has_annotators: some annotation has an ``annotator``. num_annotations: total. num_without_region: of
    them, those without a segmentation (see ``coco_fields.has_region``).

    The file is read once, a few megabytes at a time. Consecutive annotations of one image are stored as one byte
    range. Reading an image's annotations is thread-safe.

    Raises BadInput if the file is missing, is not JSON or not COCO.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.images: dict[ImageId, dict] | None = None
        self.has_annotators = False
        self.num_annotations = 0
        self.num_without_region = 0
        self._spans: dict[ImageId, list[int]] = {}  # (start, stop, number of annotations) repeated
        self._last: ImageId | None = None
        if not self.path.is_file():
            raise BadInput(f"{self.path}: {'expected a file' if self.path.exists() else 'no such file'}")
        try:
            with JsonReader(self.path) as reader:
                self._read(reader)
            self._file = self.path.open("rb", buffering=0)
        except BadInput:
            raise
        except ValueError as error:
            raise BadInput(f"{self.path} is not JSON: {error}") from error
        except OSError as error:
            raise BadInput(f"{self.path} cannot be read: {error.strerror}") from error
        self.annotated = self._spans.keys()
        weakref.finalize(self, self._file.close)

    @property
    def named_images(self) -> dict[ImageId, dict]:
        """The image records by id. Raises BadInput for a bare list."""
        if self.images is None:
            raise BadInput(f'{self.path}: expected COCO JSON with "images", got a bare list')
        return self.images

    def annotations(self, image_id: ImageId) -> list[dict]:
        """The annotations of one image in the order of the file; [] if there are none.

        Raises BadInput for an invalid value, or one that cannot be written to JSON.
        """
        try:
            records = parse_json(b"[" + self.text(image_id)[0] + b"]")
            for record in records:
                check_annotation(record)
                check_finite(record, "segmentation")
        except ValueError as error:
            raise BadInput(f"{self.path}, image {image_id!r}: {error}") from error
        return records

    def text(self, image_id: ImageId) -> tuple[bytes, int]:
        """(JSON of one image's annotations, separated by commas; their number)."""
        spans = self._spans.get(image_id, [])
        file = self._file.fileno()
        pieces = zip(spans[::3], spans[1::3], strict=True)
        return b",".join([os.pread(file, stop - start, start) for start, stop in pieces]), sum(spans[2::3])

    def columns(self, image_id: ImageId, size: Size, want: Want) -> Annotations:
        """The annotations of an image of ``size`` as columns. Raises BadInput for invalid ones."""
        try:
            return read_annotations(*self.text(image_id), size, want)
        except ValueError as error:
            raise BadInput(f"{self.path}, image {image_id!r}: {error}") from error

    def rename(self, new_ids: Mapping[ImageId, ImageId]) -> None:
        """Replace the ids of images and their annotations. New ids must be unique."""
        self.images = {new_ids[image_id]: image for image_id, image in self.named_images.items()}
        self._spans = {new_ids.get(image_id, image_id): spans for image_id, spans in self._spans.items()}
        self.annotated = self._spans.keys()

    def _read(self, reader: JsonReader) -> None:
        expected = f'{self.path}: expected COCO JSON, an object with lists "images" and "annotations"'
        if reader.peek() == "[":
            self._read_annotations(reader)
        elif reader.peek() == "{":
            seen = set()
            for key in reader.members():
                if key in ("images", "annotations") and reader.peek() != "[":
                    raise BadInput(f'{expected}; "{key}" is no list')
                if key == "images":
                    self._read_images(reader)
                elif key == "annotations":
                    self._read_annotations(reader)
                else:
                    reader.value()
                seen.add(key)
            for key in ("images", "annotations"):
                if key not in seen:
                    raise BadInput(f'{expected}; there is no "{key}"')
        else:
            raise BadInput(f"{expected}, got {shorten(reader.value()[0])}")
        if reader.peek():
            raise ValueError(f"there is more after its end, {reader.peek()!r}")

    def _read_images(self, reader: JsonReader) -> None:
        self.images = {}
        for record, _, _ in reader.elements():
            if not isinstance(record, dict) or not is_id(record.get("id")):
                raise BadInput(f"{self.path}: expected images with an id, got {shorten(record)}")
            if record["id"] in self.images:
                raise BadInput(f"{self.path}: image id {record['id']!r} occurs twice")
            try:
                check_image(record)
            except ValueError as error:
                raise BadInput(f"{self.path}, image {record['id']!r}: {error}") from error
            self.images[record["id"]] = record

    def _read_annotations(self, reader: JsonReader) -> None:
        binary = find_binary().module
        groups = np.empty((GROUPS_AT_A_TIME, 5), np.int64)
        for _ in reader.places():
            if binary is None or not self._add_groups(binary, reader, groups):
                self._add_annotation(reader.value())

    def _add_groups(self, binary: ModuleType, reader: JsonReader, groups: np.ndarray) -> bool:
        """Add the next annotations that the kernel can parse; False if there are none."""
        reader.look_ahead(LONG_ANNOTATION)
        count, place, has_annotators, num_without_region = binary.coco_groups(reader.window, reader.at, groups)
        for start, stop, id_start, id_stop, number in groups[:count].tolist():
            image_id = parse_json(reader.window[id_start:id_stop])
            if not is_id(image_id):
                self._refuse_annotation({"image_id": image_id})
            self._add(image_id, reader.offset + start, reader.offset + stop, number)
        reader.at = place
        self.has_annotators = self.has_annotators or bool(has_annotators)
        self.num_without_region += num_without_region
        return count > 0

    def _add_annotation(self, element: Element) -> None:
        record, start, stop = element
        if not isinstance(record, dict) or not is_id(record.get("image_id")):
            self._refuse_annotation(record)
        self._add(record["image_id"], start, stop, 1)
        self.has_annotators = self.has_annotators or "annotator" in record
        self.num_without_region += not has_region(record)

    def _refuse_annotation(self, record: Any) -> None:
        if isinstance(record, dict) and "image_id" in record:
            got = shorten(record["image_id"])
            raise BadInput(f"{self.path}: expected an integer or a string as image_id of every annotation, got {got}")
        raise BadInput(f"{self.path}: expected annotations with an image_id, got {shorten(record)}")

    def _add(self, image_id: ImageId, start: int, stop: int, number: int) -> None:
        spans = self._spans.setdefault(image_id, [])
        if image_id == self._last:
            spans[-2:] = stop, spans[-1] + number  # only a comma and white space are between them
        else:
            spans += (start, stop, number)
        self._last = image_id
        self.num_annotations += number
