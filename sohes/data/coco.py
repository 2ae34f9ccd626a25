# SPDX-License-Identifier: Apache-2.0
"""COCO JSON: label sets that are read from disk image by image, and files that are written atomically."""

import itertools
import json
import logging
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from sohes.data.coco_fields import is_number
from sohes.data.coco_image import LabelledImage, labelled_image, to_rle
from sohes.data.coco_records import read_spans, scan_coco
from sohes.data.errors import DataError, DataNotFoundError
from sohes.utils.files import whole_file

__all__ = ["LabelSet", "LabelledImage", "labelled_image", "to_rle", "write_coco", "write_coco_stream"]

logger = logging.getLogger(__name__)

CATEGORIES = [{"id": 1, "name": "entity"}]

# Of written files: JSON escapes keep file names that are not valid UTF-8.
_ENCODING = "ascii"


class LabelSet:
    """The images of COCO JSON with their forests: a file, or a folder with shards (`shard-*.json`) or
    `annotations.json`.

    Each file is scanned once. In memory stays only where the annotations of every image lie, about 150 bytes per image,
    in arrays that forked workers share without copying. Annotations are read, and masks decoded, when an image is
    accessed; the files must not change while the set is in use.

    `annotations` may hold `score`, `parent` (an annotation id or null), `iscrowd` and `annotator`; `category_id` and
    `level` are ignored (levels follow from parents). A segmentation is an RLE (compressed or not) or polygons.
    Annotations without one (missing, null, [] or {}), which have at most a box, are left out; a warning counts them.

    Args:
        source: the JSON file or the folder.
        image_root: folder that `file_name`s are relative to. Default: `images/` beside the JSON file if there is
            such a folder, else the folder of the JSON file.

    Raises:
        DataNotFoundError: `source` does not exist, or is a folder without labels.
        DataError: a file is not COCO JSON, or holds an invalid value; the message names the file and what was
            expected.
    """

    def __init__(self, source: str | os.PathLike, image_root: str | os.PathLike | None = None):
        self.source = Path(source)
        self._files = _label_files(self.source)
        self._roots = [_image_root(file) if image_root is None else Path(image_root) for file in self._files]
        records, ends, files = bytearray(), [0], array("i")
        spans, span_ends = array("q"), [0]
        image_ids: array | list = array("q")
        for index, file in enumerate(self._files):
            num_without_region = 0
            for image in scan_coco(file):
                records += image.text
                ends.append(len(records))
                spans.extend(itertools.chain.from_iterable(image.spans))
                span_ends.append(len(spans) // 2)
                files.append(index)
                image_ids = _add_id(image_ids, image.image_id)
                num_without_region += image.num_without_region
            if num_without_region:
                logger.warning("%s: %d annotations have no segmentation and are left out", file, num_without_region)
        self._records = np.frombuffer(bytes(records), dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 2)
        self._span_ends = np.array(span_ends, dtype=np.int64)
        self._file_of = np.array(files, dtype=np.int32)
        self.image_ids = np.array(image_ids, dtype=np.int64 if isinstance(image_ids, array) else object)
        """[number of images], in the order of the set: int64, or objects if any id is text or too large."""
        self._refuse_repeated_ids()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> LabelledImage:
        """The labels of image `index`.

        Raises:
            IndexError: there is no such image.
            DataError: a segmentation cannot be decoded or has another size than its image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a label set of {len(self)}")
        record = json.loads(self._records[self._ends[index] : self._ends[index + 1]].tobytes())
        spans = self._spans[self._span_ends[index] : self._span_ends[index + 1]].tolist()
        file = self._files[self._file_of[index]]
        path = self._roots[self._file_of[index]] / record["file_name"]
        try:
            return labelled_image(record, read_spans(file, spans), path)
        except ValueError as error:
            raise DataError(f"{file}, image {record['id']} ({record['file_name']}): {error}") from error

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self[index] for index in range(len(self)))

    def _refuse_repeated_ids(self) -> None:
        if self.image_ids.dtype == object:
            repeated = [image_id for image_id, count in Counter(self.image_ids.tolist()).items() if count > 1]
        else:
            unique, count = np.unique(self.image_ids, return_counts=True)
            repeated = unique[count > 1].tolist()
        for image_id in repeated[:1]:
            places = [place for place, other in enumerate(self.image_ids.tolist()) if other == image_id]
            files = " and ".join(str(self._files[self._file_of[place]]) for place in places[:2])
            raise DataError(f"image id {image_id} occurs twice, in {files}; expected every image once")


def _add_id(ids: array | list, image_id: int | str) -> array | list:
    """The ids with one more: an array of int64, or from the first id that is none a list."""
    if isinstance(ids, array) and not is_number(image_id, -(2**63), 2**63 - 1):
        ids = list(ids)
    ids.append(image_id)
    return ids


def write_coco(
    path: str | os.PathLike,
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a COCO file with the one category "entity" atomically; missing folders are created.

    One record per line, with sorted keys and no time stamp, so equal content gives equal bytes. The iterables are
    consumed while the file is written.

    Raises:
        ValueError: a value is NaN or infinite. TypeError: a value is not JSON.
    """
    with whole_file(path, encoding=_ENCODING) as file:
        file.write(f'{{"info": {_dump(info or {})},\n"categories": {_dump(CATEGORIES)},\n"images": [')
        _write_lines(file, images)
        file.write('],\n"annotations": [')
        _write_lines(file, annotations)
        file.write("]}\n")


def write_coco_stream(
    path: str | os.PathLike,
    pairs: Iterable[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
    info: Mapping[str, Any] | None = None,
) -> int:
    """`write_coco` of pairs (image, its annotations), of which only the image records are kept in memory.

    These come last in the file. Returns the number of images.
    """
    images = []
    with whole_file(path, encoding=_ENCODING) as file:
        file.write(f'{{"info": {_dump(info or {})},\n"categories": {_dump(CATEGORIES)},\n"annotations": [')

        def annotations() -> Iterator[Mapping[str, Any]]:
            for image, own in pairs:
                images.append(image)
                yield from own

        _write_lines(file, annotations())
        file.write('],\n"images": [')
        _write_lines(file, images)
        file.write("]}\n")
    return len(images)


def _dump(value: Mapping[str, Any] | list) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _write_lines(file: IO[str], records: Iterable[Mapping[str, Any]]) -> None:
    for index, record in enumerate(records):
        file.write((",\n" if index else "\n") + _dump(record))


def _label_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataNotFoundError(f"no such file or folder: {source} (expected COCO JSON)")
    shards = sorted(source.glob("shard-*.json"))
    if shards:
        return shards
    if (source / "annotations.json").is_file():
        return [source / "annotations.json"]
    raise DataNotFoundError(f"no labels in {source} (expected annotations.json or shard-*.json)")


def _image_root(file: Path) -> Path:
    beside = file.parent / "images"
    return beside if beside.is_dir() else file.parent
