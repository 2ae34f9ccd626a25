# SPDX-License-Identifier: Apache-2.0
"""Data sets whose annotations are one COCO JSON file: COCO, LVIS, EntitySeg, PartImageNet, PACO, and plain ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pycocotools import mask as coco_mask

from sohes.data.coco import to_rle
from sohes.data.coco_fields import has_region
from sohes.evaluation.coco_index import BadInput, CocoIndex, ImageId
from sohes.evaluation.datasets.base import DataSet, Sample

_ENTITY_FOLDER = "annotations/entity_segmentation/"
# Keys of an annotation that are kept. `area` decides the area range, as in pycocotools.
_KEPT = ("id", "segmentation", "bbox", "area", "iscrowd", "category_id", "parent", "level", "annotator")


class CocoJson(DataSet[ImageId]):
    """A data set with one COCO JSON file. Subclasses define the file and the photo folder, and may change records."""

    version = 2

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.annotation_file, self.image_root = self.find_files()
        self._index: CocoIndex | None = None

    @abstractmethod
    def find_files(self) -> tuple[Path, Path]:
        """(the JSON file, the folder that file names are relative to). Raises LayoutError."""

    @property
    def index(self) -> CocoIndex:
        """The file, read on first use."""
        if self._index is None:
            index = CocoIndex(self.annotation_file)
            _ = index.named_images  # raises BadInput for a bare list
            self._index = index
        return self._index

    def inputs(self) -> list[Path]:
        return [self.annotation_file]

    def keys(self) -> Sequence[ImageId]:
        return list(self.index.named_images)

    def read(self, key: ImageId) -> Sample:
        record = self.index.named_images[key]
        image = {"id": key, "file_name": self.file_name(record)}
        for side in ("height", "width"):
            if not isinstance(record.get(side), int):
                raise BadInput(f"{self.annotation_file}: image {key!r} has no {side}")
            image[side] = record[side]
        return Sample(image, self.entities(self.index.annotations(key), record))

    def file_name(self, record: Mapping[str, Any]) -> str:
        """Path of the photo of an image record, relative to `image_root`. Raises BadInput."""
        name = record.get("file_name")
        if not isinstance(name, str):
            raise BadInput(f"{self.annotation_file}: image {record['id']!r} has no file_name")
        return name

    def entities(self, annotations: Sequence[Mapping[str, Any]], image: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The annotations of one image that count; by default all.

        The evaluation warns about annotations with a box but without a region, which are not masks.
        """
        return [{key: one[key] for key in _KEPT if key in one} for one in annotations]


def coco_image_path(record: Mapping[str, Any]) -> str | None:
    """Path such as `val2017/000000000139.jpg` of a COCO image record, from its file name or URL; None if unknown."""
    name = record.get("file_name")
    if isinstance(name, str) and "/" in name:
        return name
    url = record.get("coco_url")
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else None


class PlainJson(CocoJson):
    """A folder with COCO JSON and photos, or a COCO JSON file."""

    layout = "ROOT/annotations.json and photos in ROOT/images/ or ROOT/, or --root FILE.json with photos beside it"
    protocol = "every annotation is an entity; crowds, parents, levels and annotators are understood"

    def __init__(self, root: Path) -> None:
        self._file = root if root.is_file() else None
        super().__init__(root.parent if self._file else root)

    def find_files(self) -> tuple[Path, Path]:
        file = self._file or self.need("annotations.json")
        beside = file.parent / "images"
        return file, beside if beside.is_dir() else file.parent


class Coco(CocoJson):
    """COCO val2017."""

    layout = "ROOT/annotations/instances_val2017.json and ROOT/val2017/*.jpg"
    protocol = "objects of 80 classes; crowd regions are neither missed nor wrong to find"

    def find_files(self) -> tuple[Path, Path]:
        return self.need("annotations/instances_val2017.json"), self.root / "val2017"


class Lvis(CocoJson):
    """LVIS v1 val, on photos of COCO's train2017 and val2017."""

    layout = "ROOT/annotations/lvis_v1_val.json (or ROOT/lvis_v1_val.json), ROOT/val2017/*.jpg and ROOT/train2017/*.jpg"
    protocol = "objects of all 1203 classes; what LVIS did not annotate exhaustively costs precision, never recall"

    def find_files(self) -> tuple[Path, Path]:
        return self.need("annotations/lvis_v1_val.json", alternatives=["lvis_v1_val.json"]), self.root

    def file_name(self, record: Mapping[str, Any]) -> str:
        return coco_image_path(record) or super().file_name(record)


class EntitySeg(CocoJson):
    """EntitySeg val at low resolution, as commonly evaluated."""

    layout = "ROOT/entityseg_val_lr.json (or in ROOT/annotations/) and ROOT/images_lr/entity_01_11580/ and its siblings"
    protocol = "every entity, thing or stuff, of the validation set; photos at most 1333 x 800"
    files: ClassVar[Sequence[str]] = ("entityseg_val_lr.json", "entityv2_010203_entity_val_lr.json")
    image_folders: ClassVar[Sequence[str]] = ("images_lr", "images", ".")

    def find_files(self) -> tuple[Path, Path]:
        places = [f"{folder}{file}" for file in self.files for folder in ("", "annotations/", _ENTITY_FOLDER)]
        file = self.need(places[0], alternatives=places[1:])
        return file, next(self.root / folder for folder in self.image_folders if (self.root / folder).is_dir())


class EntitySegFull(EntitySeg):
    """EntitySeg val at full resolution."""

    layout = "ROOT/entityseg_val.json (or in ROOT/annotations/) and ROOT/images/entity_01_11580/ and its siblings"
    protocol = "every entity, thing or stuff, of the validation set; photos as they are, many over 2000 pixels"
    files = ("entityseg_val.json", "entityv2_010203_entity_val.json")
    image_folders = ("images", ".")


class PartImageNetParts(CocoJson):
    """PartImageNet val (OOD release), the annotated parts."""

    layout = (
        "ROOT/annotations/val/val.json and ROOT/images/val/*.JPEG, or as unpacked ROOT/val.json and ROOT/val/n*/*.JPEG"
    )
    protocol = "every annotated part"

    def find_files(self) -> tuple[Path, Path]:
        file = self.need("annotations/val/val.json", alternatives=["val.json", "annotations/val.json"])
        folders = [self.root / "images" / "val", self.root / "val"]
        return file, next((folder for folder in folders if folder.is_dir()), self.root)

    def file_name(self, record: Mapping[str, Any]) -> str:
        """The file name, with the folder of its ImageNet class if the file is there."""
        name = super().file_name(record)
        of_class = f"{name.split('_')[0]}/{name}"
        return of_class if (self.image_root / of_class).is_file() else name


class PartImageNet(PartImageNetParts):
    """PartImageNet val, the parts and their union as the object, their parent. A photo shows one object."""

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
    """PACO-LVIS v1 val, parts only."""

    protocol = "every part, without the objects"

    def entities(self, annotations: Sequence[Mapping[str, Any]], image: Mapping[str, Any]) -> list[dict[str, Any]]:
        parts = [one for one in super().entities(annotations, image) if one["level"] == 1]
        return [{key: value for key, value in one.items() if key not in ("parent", "level")} for one in parts]
