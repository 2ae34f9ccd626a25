# SPDX-License-Identifier: Apache-2.0
"""Data sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sohes.evaluation.datasets.base import DataSet
from sohes.evaluation.datasets.coco_json import Coco, PlainJson

DataSetName = Literal["coco", "plain"]
DATA_SETS: dict[DataSetName, type[DataSet]] = {
    "coco": Coco,
    "plain": PlainJson,
}


def open_dataset(name: DataSetName, root: Path) -> DataSet:
    """Raises LayoutError when the data set is not laid out under `root` as expected."""
    return DATA_SETS[name](root)
