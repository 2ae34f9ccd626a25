# SPDX-License-Identifier: Apache-2.0
"""Scored images on disk, in shards: memory stays bounded, an interrupted evaluation can continue, processes can share.

A shard is two files, each written atomically. ``shard-000007.rows`` has the predictions of its images as rows of
``ranking.row_type``, for each IoU type and category sorted by falling score; average precision merges the shards while
it reads them. ``shard-000007.npz`` has the sums of each image and the positions of the rows.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict
from zipfile import BadZipFile

import numpy as np

from sohes._version import __version__
from sohes.evaluation.coco_index import BadInput
from sohes.evaluation.hierarchy import HierarchyCounts
from sohes.evaluation.image import ImageRecord, Outcomes, ScoredImage
from sohes.evaluation.metrics import Evaluation
from sohes.evaluation.protocol import IouType, Protocol
from sohes.evaluation.ranking import RunInFile, join_rows, sort_rows
from sohes.utils.files import write_whole
from sohes.utils.json_stream import parse_json

Scored = list[tuple[IouType, Hashable, ScoredImage]]  # (IoU type, image id, scores)
Where = dict[tuple[IouType, int | None], tuple[int, int]]  # first row, number of rows
DESCRIPTION = "evaluation.json"


class Shards:
    """A folder of shards of one evaluation, which ``evaluation.json`` describes."""

    def __init__(self, folder: Path, protocols: Mapping[IouType, Protocol]) -> None:
        self.folder = folder
        self.protocols = protocols

    @classmethod
    def open(cls, folder: Path, gt: Path, pred: Path, protocols: Mapping[IouType, Protocol]) -> Shards:
        """The folder, created if missing. Raises BadInput for a file, or for shards of another evaluation."""
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"shards {folder}: a file, expected a folder")
        described = {
            "sohes": __version__,
            "gt": _describe(gt),
            "pred": _describe(pred),
            "protocols": {name: dataclasses.asdict(protocol) for name, protocol in protocols.items()},
        }
        described = json.loads(json.dumps(described))  # tuples become lists, as in the file
        file = folder / DESCRIPTION
        if file.is_file():
            found = _read_description(file)
            different = sorted(key for key in described.keys() | found.keys() if described.get(key) != found.get(key))
            if different:
                raise BadInput(
                    f"{folder} holds shards of another evaluation ({', '.join(different)} differ, see {file}): "
                    "delete it or choose another"
                )
        else:
            write_whole(file, json.dumps(described, indent=1) + "\n")
        return cls(folder, protocols)

    def has(self, number: int) -> bool:
        """Whether the shard is complete."""
        return all(self._path(number, suffix).is_file() for suffix in ("rows", "npz"))

    def write(self, number: int, scored: Scored) -> None:
        """Write a shard. Thread-safe for different shards."""
        parts: dict[tuple[IouType, int | None], list[np.ndarray]] = {}
        for iou_type, _, image in scored:
            for category, rows in image.rows.items():
                parts.setdefault((iou_type, category), []).append(rows)
        where, first, sections = [], 0, []
        for (iou_type, category), arrays in parts.items():
            sections.append(sort_rows(join_rows(arrays)).tobytes())
            count = sum(map(len, arrays))
            where.append([iou_type, category, first, count])
            first += count
        write_whole(self._path(number, "rows"), b"".join(sections))
        buffer = io.BytesIO()
        columns = _flatten([(iou_type, key, image.record) for iou_type, key, image in scored])
        np.savez(buffer, where=_as_json(where), **columns)
        write_whole(self._path(number, "npz"), buffer.getvalue())

    def records(self, number: int, iou_type: IouType) -> Iterator[tuple[Hashable, ImageRecord]]:
        """(id, record) of the images of a shard, in the order of writing."""
        yield from _restore(self._arrays(number), iou_type)

    def runs(self, number: int, iou_type: IouType) -> dict[int | None, RunInFile]:
        """The predictions of a shard by category."""
        where = json.loads(self._arrays(number)["where"].tobytes())
        path, row_type = self._path(number, "rows"), self.protocols[iou_type].row_type
        return {c: RunInFile(path, row_type, first, count) for name, c, first, count in where if name == iou_type}

    def _arrays(self, number: int) -> dict[str, np.ndarray]:
        path = self._path(number, "npz")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, EOFError, KeyError, BadZipFile) as error:
            raise BadInput(f"{path} is damaged: delete it, to have its images scored again") from error

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"shard-{number:06d}.{suffix}"


class StoredEvaluation(Evaluation):
    """The metrics of the images in shards 0 to ``num_shards`` - 1, which are sorted by id; nothing is kept in memory.

    temporary: a folder that is deleted with this object.
    """

    def __init__(
        self, shards: Shards, num_shards: int, iou_type: IouType, temporary: TemporaryDirectory | None = None
    ) -> None:
        super().__init__(shards.protocols[iou_type])
        self._shards, self._num_shards, self._iou_type, self._temporary = shards, num_shards, iou_type, temporary

    def records(self) -> Iterator[tuple[Hashable, ImageRecord]]:
        for number in range(self._num_shards):
            yield from self._shards.records(number, self._iou_type)

    def runs(self, category: int | None) -> list[RunInFile]:
        runs = (self._shards.runs(number, self._iou_type) for number in range(self._num_shards))
        return [found[category] for found in runs if category in found]


def _read_description(file: Path) -> dict[str, Any]:
    try:
        found = parse_json(file.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"{file} is damaged: delete its folder or choose another")
    return found


def _describe(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"path": str(path.resolve()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _as_json(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


class _Columns(TypedDict):
    names: np.ndarray
    images: np.ndarray
    hierarchy: np.ndarray
    categories: np.ndarray
    num_ranked: np.ndarray
    num_gt: np.ndarray
    found: np.ndarray


def _flatten(scored: list[tuple[IouType, Hashable, ImageRecord]]) -> _Columns:
    """Records as a few long arrays; ``images`` has the number of outcomes of each record."""
    outcomes = [one for _, _, record in scored for one in record.outcomes.values()]
    names = [
        [iou_type, *(key if isinstance(key, tuple) else (key,))] for iou_type, key, _ in scored
    ]  # JSON, as ids may be numbers or strings
    return {
        "names": _as_json(names),
        "images": np.array([[r.num_predictions, len(r.outcomes)] for _, _, r in scored], np.int64).reshape(-1, 2),
        "hierarchy": np.array([r.hierarchy.counts() for _, _, r in scored], np.int64),
        "categories": _as_json([category for _, _, r in scored for category in r.outcomes]),
        "num_ranked": np.array([one.num_ranked for one in outcomes], np.int64),
        "num_gt": np.array([one.num_gt for one in outcomes], np.int64),
        "found": np.array([one.found for one in outcomes], np.int32),
    }


def _restore(arrays: dict[str, np.ndarray], wanted: IouType) -> Iterator[tuple[Hashable, ImageRecord]]:
    columns = (arrays["num_gt"], arrays["found"], arrays["num_ranked"].tolist())
    outcomes = [Outcomes(*values) for values in zip(*columns, strict=True)]
    categories = json.loads(arrays["categories"].tobytes())
    names = json.loads(arrays["names"].tobytes())
    first = 0
    for (iou_type, *key), (num_predictions, count), hierarchy in zip(
        names, arrays["images"].tolist(), arrays["hierarchy"].tolist(), strict=True
    ):
        mine = slice(first, first + count)
        first += count
        if iou_type == wanted:
            own = dict(zip(categories[mine], outcomes[mine], strict=True))
            record = ImageRecord(num_predictions, HierarchyCounts(*hierarchy), own)
            yield tuple(key) if len(key) > 1 else key[0], record
