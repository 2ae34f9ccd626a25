# SPDX-License-Identifier: Apache-2.0
"""COCO JSON files of parts and the objects they belong to: PartImageNet and PACO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from sohes.data.coco import to_rle
from sohes.data.coco_fields import has_region
from sohes.evaluation.datasets.coco_json import CocoJson, coco_image_path


class PartImageNetParts(CocoJson):
    """PartImageNet (its OOD release) val: the parts as they are annotated."""

    layout = (
        "ROOT/annotations/val/val.json and ROOT/images/val/*.JPEG, or as unpacked ROOT/val.json and ROOT/val/n*/*.JPEG"
    )
    protocol = "every annotated part"

    def find_files(self) -> tuple[Path, Path]:
        file = self.need("annotations/val/val.json", alternatives=["val.json", "annotations/val.json"])
        folders = [self.root / "images" / "val", self.root / "val"]
        return file, next((folder for folder in folders if folder.is_dir()), self.root)

    def file_name(self, record: Mapping[str, Any]) -> str:
        """The file itself, or in the folder of its ImageNet class, whichever is there."""
        name = super().file_name(record)
        of_class = f"{name.split('_')[0]}/{name}"
        return of_class if (self.image_root / of_class).is_file() else name


class PartImageNet(PartImageNetParts):
    """The parts, and the whole object as their union, which is their parent. A photo shows one object."""

    protocol = "every annotated part, and as their parent the object: the union of the photo's parts, if several"

    def entities(self, annotations: Sequence[Mapping[str, Any]], image: Mapping[str, Any]) -> list[dict[str, Any]]:
        parts = super().entities(annotations, image)
        drawn = [part for part in parts if has_region(part)]
        if len(drawn) < 2:
            return parts
        size = (image["height"], image["width"])
        rles = [to_rle(part, size) for part in drawn]
        compressed = [
            rle if isinstance(rle["counts"], str | bytes) else coco_mask.frPyObjects(rle, *size) for rle in rles
        ]
        union = coco_mask.merge(compressed)
        whole = {"id": "whole", "segmentation": {**union, "counts": union["counts"].decode("ascii")}, "level": 0}
        return [whole] + [{**part, "parent": "whole", "level": 1} for part in parts]


class Paco(CocoJson):
    """PACO-LVIS v1 val, on photos of COCO's train2017 and val2017."""

    layout = "ROOT/paco_lvis_v1_val.json (or in ROOT/annotations/ or ROOT/paco/), ROOT/train2017/ and ROOT/val2017/"
    protocol = "every object of 75 classes and every part of it; a part's parent is its object"

    def find_files(self) -> tuple[Path, Path]:
        name = "paco_lvis_v1_val.json"
        return self.need(name, alternatives=[f"annotations/{name}", f"paco/{name}"]), self.root

    def file_name(self, record: Mapping[str, Any]) -> str:
        return coco_image_path(record) or super().file_name(record)

    def entities(self, annotations: Sequence[Mapping[str, Any]], image: Mapping[str, Any]) -> list[dict[str, Any]]:
        object_of = {one["id"]: one.get("obj_ann_id") for one in annotations}
        kept = super().entities(annotations, image)
        known = {one["id"] for one in kept}
        for one in kept:
            owner = object_of[one["id"]]
            is_part = owner is not None and owner != one["id"]
            one |= {"parent": owner if is_part and owner in known else None, "level": int(is_part)}
        return kept


class PacoParts(Paco):
    """The parts of PACO-LVIS v1 val alone."""

    protocol = "every part, without the objects"

    def entities(self, annotations: Sequence[Mapping[str, Any]], image: Mapping[str, Any]) -> list[dict[str, Any]]:
        parts = [one for one in super().entities(annotations, image) if one["level"] == 1]
        return [{key: value for key, value in one.items() if key not in ("parent", "level")} for one in parts]
