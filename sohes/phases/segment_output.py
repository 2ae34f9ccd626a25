# SPDX-License-Identifier: Apache-2.0
"""The output folder of `sohes.segment`: files are complete or unchanged; files of another origin are kept."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sohes.data.coco import write_coco
from sohes.structures.forest import Forest
from sohes.utils.errors import SohesError
from sohes.utils.files import write_whole
from sohes.visual.draw import draw_panel

Format = Literal["coco", "sam", "png"]

MANIFEST, MASKS = "manifest.jsonl", "segments.json"
# Of a call that is running or was stopped.
_PARTIAL_MANIFEST, _PARTIAL_MASKS, _LINES = "manifest.partial.jsonl", "segments.partial.json", "segments.partial.jsonl"
_DESCRIPTION = "masks of sohes.segment"
_MARK = ("Software", "sohes.segment")
_MARK_CHUNK = b"tEXt" + b"\0".join(text.encode("ascii") for text in _MARK)
_HEAD = 1024  # bytes of a PNG file in which its mark is


class OutputError(SohesError):
    """The output folder is a file, or holds files that must not be replaced."""


@dataclass(frozen=True)
class Photo:
    """A photo to segment. name: unique path relative to --out, without suffix."""

    path: Path
    name: str


@dataclass(frozen=True)
class SegmentedPhoto:
    """The result of one photo, encoded for its files.

    reason: why it failed, else "". size: (H, W). picture: of its masks, PNG. annotations: for format coco, with ids
    from 1. masks: for other formats, the content of the photo's own file. seconds: time taken.
    """

    photo: Photo
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    num_masks: int = 0
    picture: bytes = b""
    annotations: list[dict[str, Any]] = field(default_factory=list)
    masks: bytes = b""
    seconds: float = 0.0


def encode_masks(photo: Photo, image: torch.Tensor, forest: Forest, kind: Format, started: float) -> SegmentedPhoto:
    """The masks of a photo, uint8 [3, H, W], drawn and encoded. Safe to call from several threads."""
    annotations: list[dict[str, Any]] = []
    masks = b""
    if kind == "coco":
        annotations = forest.to_coco(image_id=0)
    elif kind == "sam":
        masks = (json.dumps(forest.to_sam()) + "\n").encode("ascii")
    else:
        masks = _png((forest.to_label_map() + 1).to(torch.int32).numpy().astype("uint16"))
    picture = _png(draw_panel(image, forest).permute(1, 2, 0).numpy())
    seconds = time.perf_counter() - started
    return SegmentedPhoto(photo, "", forest.masks.size, len(forest), picture, annotations, masks, seconds)


class Output:
    """Writes the output folder; a context manager.

    The files of a photo are written as soon as it is finished. `segments.json` and `manifest.jsonl` are replaced after
    the last photo. Until then, and after an error or Ctrl-C, those of an earlier call stay unchanged, and the results
    so far are in `manifest.partial.jsonl` and `segments.partial.json` (after a kill, in `segments.partial.jsonl`, one
    annotation a line). Annotations are collected in that file, not in memory.

    Raises OutputError if the folder has a manifest or masks that this command has not written.
    """

    def __init__(self, folder: Path, kind: Format) -> None:
        self.folder, self.kind = folder, kind
        self.counts = {"ok": 0, "empty": 0, "failed": 0}
        self._images: list[dict[str, Any]] = []
        self._num_annotations = 0
        check_folder(folder)

    def __enter__(self) -> Output:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._manifest = (self.folder / _PARTIAL_MANIFEST).open("w", encoding="ascii")
        self._lines = (self.folder / _LINES).open("w+", encoding="ascii")
        (self.folder / _PARTIAL_MASKS).unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, OSError):  # a full disk: leave the files as they are
            for file in (self._manifest, self._lines):
                with suppress(OSError):  # the same error, of the buffered rest
                    file.close()
            return
        self._manifest.close()
        is_complete = kind is None
        if self.kind == "coco":
            path = self.folder / (MASKS if is_complete else _PARTIAL_MASKS)
            write_coco(path, self._images, _read_lines(self._lines), {"description": _DESCRIPTION})
        self._lines.close()
        if is_complete:
            (self.folder / _PARTIAL_MANIFEST).replace(self.folder / MANIFEST)
        (self.folder / _LINES).unlink()

    def add(self, done: SegmentedPhoto) -> dict[str, Any]:
        """Write the files of a photo. Returns its manifest row."""
        photo = done.photo
        if done.reason:
            return self._add_row(photo, {"status": "failed", "reason": done.reason})
        names = {"picture": f"{photo.name}.png", "masks": f"{photo.name}{_SUFFIXES[self.kind]}"}
        write_whole(self.folder / names["picture"], done.picture)
        if self.kind == "coco":
            names["masks"] = MASKS
            self._add_annotations(done)
        else:
            write_whole(self.folder / names["masks"], done.masks)
        row = {"status": "ok" if done.num_masks else "empty", **names, "num_masks": done.num_masks}
        return self._add_row(photo, row | {"seconds": round(done.seconds, 3)})

    def _add_annotations(self, done: SegmentedPhoto) -> None:
        image_id, before = len(self._images) + 1, self._num_annotations
        height, width = done.size
        self._images.append({"id": image_id, "file_name": str(done.photo.path), "width": width, "height": height})
        for one in done.annotations:
            parent = None if one["parent"] is None else one["parent"] + before
            self._lines.write(
                json.dumps(one | {"id": one["id"] + before, "image_id": image_id, "parent": parent}) + "\n"
            )
        self._num_annotations += len(done.annotations)
        self._lines.flush()

    def _add_row(self, photo: Photo, row: dict[str, Any]) -> dict[str, Any]:
        row = {"file_name": str(photo.path), **row}
        self.counts[row["status"]] += 1
        self._manifest.write(json.dumps(row) + "\n")
        self._manifest.flush()
        return row


_SUFFIXES = {"coco": ".json", "sam": ".json", "png": ".labels.png"}
SUFFIXES = (".png", ".labels.png", ".json")
"""Of all files that a photo may have, in any format."""


def check_folder(folder: Path) -> None:
    """Raises OutputError if `folder` is a file, or has a manifest or masks that this command has not written."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {folder}: expected a folder, this is a file")
    for name, is_own in ((MANIFEST, _is_own_row), (MASKS, _is_own_header)):
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline(1 << 20)
        if not is_own(first):
            raise OutputError(
                f"--out {folder}: its {name} was not written by sohes.segment and is not replaced: choose another"
            )


def is_own_picture(path: Path) -> bool:
    """Whether a file is a picture or label map written by this command; the file itself is marked."""
    if path.suffix.lower() != ".png" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return _MARK_CHUNK in file.read(_HEAD)
    except OSError:
        return False  # reading it as a photo reports the error


def files_of_earlier_calls(folder: Path) -> set[str]:
    """Resolved paths of the files that the manifests in `folder` name."""
    found = set()
    for manifest in (folder / MANIFEST, folder / _PARTIAL_MANIFEST):
        if not manifest.is_file():
            continue
        with manifest.open(encoding="utf-8", errors="replace") as lines:
            for line in filter(_is_own_row, lines):
                row = json.loads(line)
                found |= {str((folder / row[key]).resolve()) for key in ("picture", "masks") if key in row}
    return found


def _is_own_row(line: str) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False  # a line truncated by a kill
    return isinstance(row, dict) and {"file_name", "status"} <= row.keys() and ("picture" in row or "reason" in row)


def _is_own_header(line: str) -> bool:
    try:
        info = json.loads(line.strip().removesuffix(",") + "}")["info"]
    except (ValueError, KeyError, TypeError):
        return False
    return info == {} or info == {"description": _DESCRIPTION}  # {}: of version 0.1.0


def _png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] or uint16 [H, W] as a PNG file, marked as written by this command."""
    mark, buffer = PngInfo(), io.BytesIO()
    mark.add_text(*_MARK)
    Image.fromarray(pixels).save(buffer, "png", pnginfo=mark)
    return buffer.getvalue()


def _read_lines(file: TextIO) -> Iterator[dict[str, Any]]:
    file.seek(0)
    return map(json.loads, file)
