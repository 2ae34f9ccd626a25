# SPDX-License-Identifier: Apache-2.0
"""The folder that sohes.segment writes: every file whole or as it was, and told apart from other people's files."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
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
# Of a call that is under way or was stopped.
_PARTIAL_MANIFEST, _PARTIAL_MASKS, _LINES = "manifest.partial.jsonl", "segments.partial.json", "segments.partial.jsonl"
_DESCRIPTION = "masks of sohes.segment"
_MARK = ("Software", "sohes.segment")
_MARK_CHUNK = b"tEXt" + b"\0".join(text.encode("ascii") for text in _MARK)
_HEAD = 1024  # bytes of a PNG file in which its mark is


class OutputError(SohesError):
    """A folder that holds what is not to be replaced."""


@dataclass(frozen=True)
class Photo:
    """A photo to segment. `name`: its place below --out, without suffix, distinct from every other photo's."""

    path: Path
    name: str


@dataclass(frozen=True)
class Segmented:
    """What became of a photo. reason: why it failed, else "". size: (H, W). picture: of its masks, PNG. masks: the
    content of its own file, or its COCO annotations with ids from 1. seconds: that it took."""

    photo: Photo
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    num_masks: int = 0
    picture: bytes = b""
    masks: bytes | list[dict[str, Any]] = b""
    seconds: float = 0.0


def finish(photo: Photo, image: torch.Tensor, forest: Forest, kind: Format, started: float) -> Segmented:
    """Draw and encode the masks of a photo; `image` uint8 [3, H, W]. Threads may do so for several at once."""
    if kind == "coco":
        masks = forest.to_coco(image_id=0)
    elif kind == "sam":
        masks = (json.dumps(forest.to_sam()) + "\n").encode("ascii")
    else:
        masks = _png((forest.to_label_map() + 1).to(torch.int32).numpy().astype("uint16"))
    picture = _png(draw_panel(image, forest).permute(1, 2, 0).numpy())
    seconds = time.perf_counter() - started
    return Segmented(photo, "", tuple(forest.masks.size), len(forest), picture, masks, seconds)


class Output:
    """The folder that is written to.

    The files of a photo appear as soon as it is done. `segments.json` and `manifest.jsonl` are replaced when all photos
    are done; until then, and after an error or Ctrl-C, finished ones of an earlier call stay as they were, and what was
    done is in `manifest.partial.jsonl` and `segments.partial.json` (after a kill as lines, `segments.partial.jsonl`).
    Masks are collected in that file, not in memory.

    Raises OutputError where the folder's manifest or masks are not of this command.
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
        if kind is not None and issubclass(kind, OSError):  # a full disk: what is there stays as it is
            for file in (self._manifest, self._lines):
                with suppress(OSError):  # of what waits in the buffer, told already
                    file.close()
            return
        self._manifest.close()
        is_whole = kind is None
        if self.kind == "coco":
            path = self.folder / (MASKS if is_whole else _PARTIAL_MASKS)
            write_coco(path, self._images, _read_lines(self._lines), {"description": _DESCRIPTION})
        self._lines.close()
        if is_whole:
            (self.folder / _PARTIAL_MANIFEST).replace(self.folder / MANIFEST)
        (self.folder / _LINES).unlink()

    def add(self, done: Segmented) -> dict[str, Any]:
        """Write what a photo gave. Returns its manifest row."""
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

    def _add_annotations(self, done: Segmented) -> None:
        image_id, before = len(self._images) + 1, self._num_annotations
        height, width = done.size
        self._images.append({"id": image_id, "file_name": str(done.photo.path), "width": width, "height": height})
        for one in done.masks:
            parent = None if one["parent"] is None else one["parent"] + before
            self._lines.write(
                json.dumps(one | {"id": one["id"] + before, "image_id": image_id, "parent": parent}) + "\n"
            )
        self._num_annotations += len(done.masks)
        self._lines.flush()

    def _add_row(self, photo: Photo, row: dict[str, Any]) -> dict[str, Any]:
        row = {"file_name": str(photo.path), **row}
        self.counts[row["status"]] += 1
        self._manifest.write(json.dumps(row) + "\n")
        self._manifest.flush()
        return row


_SUFFIXES = {"coco": ".json", "sam": ".json", "png": ".labels.png"}
SUFFIXES = (".png", ".labels.png", ".json")
"""Of every file that a photo may give, whatever the format."""


def check_folder(folder: Path) -> None:
    """Raises OutputError where `folder` is a file, or holds files of other origin that would be replaced."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {folder}: expected a folder, this is a file")
    for name, is_ours in ((MANIFEST, _is_our_row), (MASKS, _is_our_header)):
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline(1 << 20)
        if not is_ours(first):
            raise OutputError(f"--out {folder}: its {name} is not of sohes.segment, and is not replaced: give another")


def is_own_picture(path: Path) -> bool:
    """Whether a file is a picture or a label map that this command has made, wherever it lies now."""
    if path.suffix.lower() != ".png" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return _MARK_CHUNK in file.read(_HEAD)
    except OSError:
        return False  # whoever reads it as a photo tells why


def files_of_earlier_calls(folder: Path) -> set[str]:
    """Paths, resolved, of the files of photos that the manifests in `folder` name."""
    found = set()
    for manifest in (folder / MANIFEST, folder / _PARTIAL_MANIFEST):
        if not manifest.is_file():
            continue
        with manifest.open(encoding="utf-8", errors="replace") as lines:
            for line in filter(_is_our_row, lines):
                row = json.loads(line)
                found |= {str((folder / row[key]).resolve()) for key in ("picture", "masks") if key in row}
    return found


def _is_our_row(line: str) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False  # cut short by a kill
    return isinstance(row, dict) and {"file_name", "status"} <= row.keys() and ("picture" in row or "reason" in row)


def _is_our_header(line: str) -> bool:
    try:
        info = json.loads(line.strip().removesuffix(",") + "}")["info"]
    except (ValueError, KeyError, TypeError):
        return False
    return info == {} or info == {"description": _DESCRIPTION}  # version 0.1.0 wrote nothing there


def _png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] or uint16 [H, W] as a PNG file that says who made it."""
    mark, buffer = PngInfo(), io.BytesIO()
    mark.add_text(*_MARK)
    Image.fromarray(pixels).save(buffer, "png", pnginfo=mark)
    return buffer.getvalue()


def _read_lines(file: TextIO) -> Iterator[dict[str, Any]]:
    file.seek(0)
    return map(json.loads, file)
