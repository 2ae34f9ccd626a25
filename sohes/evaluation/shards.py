# SPDX-License-Identifier: Apache-2.0
"""What is scored, kept on disk a shard of images at a time: to go on after a kill, and for processes to share."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sohes._version import __version__
from sohes.evaluation.coco_index import BadInput
from sohes.evaluation.hierarchy import HierarchyCounts
from sohes.evaluation.image import ImageRecord, Outcomes, compact
from sohes.evaluation.matching import Matches
from sohes.evaluation.protocol import IouType, Protocol
from sohes.files import write_whole

Scored = list[tuple[IouType, Hashable, ImageRecord]]  # what is compared, key of the evaluator, record
DESCRIPTION = "evaluation.json"


class Shards:
    """A folder with one file for each shard of images, which is there in full or not at all.

    ``evaluation.json`` says what was evaluated and how; a folder of anything else is refused, never mixed up.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path, gt: Path, pred: Path, protocols: Mapping[IouType, Protocol]) -> Shards:
        """The folder, made where it is not there. Raises BadInput where it holds something else's shards."""
        described = {
            "sohes": __version__,
            "gt": _describe(gt),
            "pred": _describe(pred),
            "protocols": {name: dataclasses.asdict(protocol) for name, protocol in protocols.items()},
        }
        described = json.loads(json.dumps(described))  # tuples become lists, as in the file
        file = folder / DESCRIPTION
        if file.is_file():
            found = json.loads(file.read_text())
            different = sorted(key for key in described.keys() | found.keys() if described.get(key) != found.get(key))
            if different:
                raise BadInput(
                    f"{folder} holds shards of another evaluation ({', '.join(different)} differ, see {file}): "
                    "delete it or choose another"
                )
        else:
            write_whole(file, json.dumps(described, indent=1) + "\n")
        return cls(folder)

    def has(self, number: int) -> bool:
        return self._path(number).is_file()

    def write(self, number: int, scored: Scored) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **_flatten(scored))
        write_whole(self._path(number), buffer.getvalue())

    def read(self, number: int) -> Scored:
        with np.load(self._path(number), allow_pickle=False) as arrays:
            return _restore(dict(arrays))

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:06d}.npz"


def _describe(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"path": str(path.resolve()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _flatten(scored: Scored) -> dict[str, np.ndarray]:
    """Records as a few long arrays; how many entries each record has stands in ``images`` and ``outcomes``."""
    outcomes = [one for _, _, record in scored for one in record.outcomes.values()]
    names = [
        [iou_type, *(key if isinstance(key, tuple) else (key,))] for iou_type, key, _ in scored
    ]  # JSON, as ids may be numbers or strings
    return {
        "names": np.frombuffer(json.dumps(names).encode(), np.uint8),
        "images": np.array([[r.num_predictions, len(r.outcomes)] for _, _, r in scored], np.int64).reshape(-1, 2),
        "hierarchy": np.array([r.hierarchy.counts() for _, _, r in scored], np.int64),
        "has_category": np.array([c is not None for _, _, r in scored for c in r.outcomes], bool),
        "category": np.array([c or 0 for _, _, r in scored for c in r.outcomes], np.int64),
        "outcomes": np.array([[len(o.scores), len(o.matches.pred)] for o in outcomes], np.int64).reshape(-1, 2),
        "num_gt": _join([o.num_gt for o in outcomes], np.int64),
        "scores": _join([o.scores for o in outcomes], np.float64),
        "outside": _join([o.outside for o in outcomes], np.uint8),
        "pred": _join([o.matches.pred for o in outcomes], np.int64),
        "hit": _join([o.matches.hit for o in outcomes], np.uint8),
        "ignored": _join([o.matches.ignored for o in outcomes], np.uint8),
    }


def _join(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(array.ravel().astype(dtype) for array in arrays)])


def _restore(arrays: dict[str, np.ndarray]) -> Scored:
    counts = arrays["outcomes"]  # [outcomes, 2]: predictions, matched predictions
    num_ranges = len(arrays["num_gt"]) // max(len(counts), 1)
    num_bytes = len(arrays["hit"]) // max(int(counts[:, 1].sum()), 1)
    place = dict.fromkeys(("num_gt", "scores", "outside", "pred", "hit", "ignored"), 0)

    def cut(name: str, *shape: int) -> np.ndarray:
        start, size = place[name], int(np.prod(shape))
        place[name] += size
        return arrays[name][start : start + size].reshape(shape).copy()

    outcomes = [
        Outcomes(
            cut("num_gt", num_ranges),
            compact(cut("scores", num_pred)),
            cut("outside", num_ranges, -(-num_pred // 8)),
            Matches(cut("pred", matched), cut("hit", matched, num_bytes), cut("ignored", matched, num_bytes)),
        )
        for num_pred, matched in counts.tolist()
    ]
    given = zip(arrays["has_category"].tolist(), arrays["category"].tolist(), strict=True)
    categories = [category if has_category else None for has_category, category in given]
    names = json.loads(arrays["names"].tobytes())
    scored: Scored = []
    first = 0
    for (iou_type, *key), (num_predictions, count), hierarchy in zip(
        names, arrays["images"].tolist(), arrays["hierarchy"].tolist(), strict=True
    ):
        mine = slice(first, first + count)
        first += count
        record = ImageRecord(
            num_predictions, HierarchyCounts(*hierarchy), dict(zip(categories[mine], outcomes[mine], strict=True))
        )
        scored.append((iou_type, tuple(key) if len(key) > 1 else key[0], record))
    return scored
