# SPDX-License-Identifier: Apache-2.0
"""What is scored, on disk a shard of images at a time: so that memory does not follow the images, an evaluation goes on
after a kill, and processes share one.

A shard is two files, which are there in full or not at all. ``shard-000007.rows`` has the predictions of its images,
of each IoU type and category all together by falling score, as rows of ``ranking.row_type``: average precision merges
the shards as it reads them. ``shard-000007.npz`` has the sums of each image and says where the rows lie.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
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

Scored = list[tuple[IouType, Hashable, ScoredImage]]  # what is compared, id, what is kept of it
Where = dict[tuple[IouType, int | None], tuple[int, int]]  # first row, number of rows
DESCRIPTION = "evaluation.json"


class Shards:
    """A folder of shards.

    ``evaluation.json`` says what was evaluated and how; a folder of anything else is refused, never mixed up.
    """

    def __init__(self, folder: Path, protocols: Mapping[IouType, Protocol]) -> None:
        self.folder = folder
        self.protocols = protocols

    @classmethod
    def open(cls, folder: Path, gt: Path, pred: Path, protocols: Mapping[IouType, Protocol]) -> Shards:
        """The folder, made where it is not there. Raises BadInput for a file, or for shards of something else."""
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
        return all(self._path(number, suffix).is_file() for suffix in ("rows", "npz"))

    def write(self, number: int, scored: Scored) -> None:
        """Safe to call from several threads, for different shards."""
        parts: dict[tuple[IouType, int | None], list[np.ndarray]] = {}
        for iou_type, _, image in scored:
            for category, rows in image.rows.items():
                parts.setdefault((iou_type, category), []).append(rows)
        where, first, sections = [], 0, []
        for (iou_type, category), rows in parts.items():
            sections.append(sort_rows(join_rows(rows)).tobytes())
            count = sum(map(len, rows))
            where.append([iou_type, category, first, count])
            first += count
        write_whole(self._path(number, "rows"), b"".join(sections))
        buffer = io.BytesIO()
        np.savez(buffer, where=_as_json(where), **_flatten([(*names, image.record) for *names, image in scored]))
        write_whole(self._path(number, "npz"), buffer.getvalue())

    def records(self, number: int, iou_type: IouType) -> Iterator[tuple[Hashable, ImageRecord]]:
        """(id, record) of the images of a shard, in the order in which they were written."""
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
    """The images of shards 0 up to ``num_shards``, which are in the order of their ids. Nothing of them is in memory.

    temporary: a folder that is removed with this.
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


def _flatten(scored: list[tuple[IouType, Hashable, ImageRecord]]) -> dict[str, np.ndarray]:
    """Records as a few long arrays; how many outcomes each record has stands in ``images``."""
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
