# SPDX-License-Identifier: Apache-2.0
"""Data sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from sohes.configs.run import DataSetName
from sohes.evaluation.datasets.base import DataSet
from sohes.evaluation.datasets.coco_json import (
    Coco,
    EntitySeg,
    EntitySegFull,
    Lvis,
    Paco,
    PacoParts,
    PartImageNet,
    PartImageNetParts,
    PlainJson,
)
from sohes.evaluation.datasets.label_maps import Ade20k, Ade20kFull, Bsds500, Bsds500Val
from sohes.evaluation.datasets.sa1b import Sa1b

DATA_SETS: dict[DataSetName, type[DataSet]] = {
    "coco": Coco,
    "lvis": Lvis,
    "ade20k": Ade20k,
    "ade20k-full": Ade20kFull,
    "entityseg": EntitySeg,
    "entityseg-full": EntitySegFull,
    "sa1b": Sa1b,
    "partimagenet": PartImageNet,
    "partimagenet-parts": PartImageNetParts,
    "paco": Paco,
    "paco-parts": PacoParts,
    "bsds500": Bsds500,
    "bsds500-val": Bsds500Val,
    "plain": PlainJson,
}
assert tuple(DATA_SETS) == get_args(DataSetName)


def open_dataset(name: DataSetName, root: Path) -> DataSet:
    """The data set under `root`. Raises LayoutError if it does not have the expected layout."""
    return DATA_SETS[name](root)
