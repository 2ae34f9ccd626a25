# SPDX-License-Identifier: Apache-2.0
"""SA-1B as released: tars of photos with one JSON file each, read without unpacking."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sohes.data.images import UnreadableImage, decode_image
from sohes.evaluation.datasets.base import DataSet, LayoutError, Sample

# One image in LIST_SHARE is evaluated: about 1000 of the 11,000 in a tar.
LIST_SHARE = 11
_NAME = re.compile(r"sa_(\d+)\.(jpg|json)")


@dataclass(frozen=True)
class _Member:
    """Position of one member of a tar."""

    tar: Path
    start: int
    length: int

    def read(self) -> bytes:
        with self.tar.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)


class Sa1b(DataSet[str]):
    """The images with `in_list` in the tars under root. The published list is of sa_000000.tar alone."""

    layout = "ROOT/sa_000000.tar, as downloaded, with sa_N.jpg and sa_N.json inside"
    protocol = f"every mask of the photos with in_list(N), one in {LIST_SHARE}; all tars under ROOT are taken"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.tars = sorted(file for file in root.glob("sa_*.tar") if file.is_file())
        if not self.tars:
            self.need("sa_000000.tar")
        self._photos: dict[str, _Member] = {}
        self._texts: dict[str, _Member] = {}
        self._is_listed = False

    def inputs(self) -> list[Path]:
        return self.tars

    def keys(self) -> Sequence[str]:
        """Names such as `sa_000000.tar/sa_1.jpg`, sorted by tar and number. Reads the tars' headers on first use."""
        if not self._is_listed:
            self._is_listed = True
            for tar in self.tars:
                self._read_headers(tar)
        return list(self._texts)

    def read(self, key: str) -> Sample | None:
        self.keys()
        try:
            content = json.loads(self._texts[key].read())
            record = content["image"]
            image = {"id": record["image_id"], "file_name": key, "height": record["height"], "width": record["width"]}
            return Sample(image, [_annotation(one) for one in content["annotations"]])
        except (ValueError, KeyError, TypeError) as error:
            self.problems.append(f"{key}: left out, its JSON is damaged ({type(error).__name__}: {error})")
            return None

    def read_image(self, file_name: str) -> Tensor:
        self.keys()
        if file_name not in self._photos:
            raise UnreadableImage(self.root / file_name, "no such photo in the tar")
        return decode_image(self._photos[file_name].read(), self.root / file_name, apply_exif=False)

    def _read_headers(self, tar: Path) -> None:
        """Find the members of the list in one tar. Members after damage are skipped, with a note in `problems`."""
        texts: dict[int, _Member] = {}
        photos: dict[int, _Member] = {}
        size = tar.stat().st_size
        try:
            with tarfile.open(tar, "r:") as members:
                for member in members:
                    named = _NAME.fullmatch(member.name.rsplit("/", 1)[-1])
                    if named is None or not in_list(int(named[1])):
                        continue
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError("it ends within a file")
                    place = _Member(tar, member.offset_data, member.size)
                    (photos if named[2] == "jpg" else texts)[int(named[1])] = place
        except (tarfile.TarError, OSError, EOFError) as error:
            self.problems.append(f"{tar}: damaged ({error}); {len(texts.keys() & photos.keys())} photos before that")
        for number in sorted(texts.keys() & photos.keys()):
            name = f"{tar.name}/sa_{number}.jpg"
            self._texts[name], self._photos[name] = texts[number], photos[number]


def in_list(number: int) -> bool:
    """Whether photo sa_`number` is evaluated.

    It is if the SHA-256 of its decimal number, first 8 bytes as big-endian integer, is divisible by 11. So the list
    depends on the numbers only, not on the tars that are present.
    """
    digest = hashlib.sha256(str(number).encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") % LIST_SHARE == 0


def _annotation(record: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(record["segmentation"], dict):
        raise LayoutError("expected masks as RLE")
    return {key: record[key] for key in ("id", "segmentation", "area") if key in record}
