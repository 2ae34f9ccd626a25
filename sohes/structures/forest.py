# SPDX-License-Identifier: Apache-2.0
"""The forest of masks of one image: what labels, predictions, metrics and exports all are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sohes.ops.mask_select import mask_parents
from sohes.structures.masks import Index, PackedMasks, Size, as_indices


@dataclass(frozen=True, eq=False, repr=False)
class Forest:
    """Masks, scores and parents of one image.

    masks: N masks of one size.
    scores: float32 [N].
    parents: int64 [N], the index of each mask's parent, -1 for a root. No cycles.

    The level of a mask is the number of its ancestors in this forest: 0 for a root, 1 for a root's parts, and so on.
    JSON, pictures, the report and `--depth` all mean this. `select` makes a forest of fewer masks, with levels of its
    own; pictures that show the best masks of a forest keep the levels of the forest.
    """

    masks: PackedMasks
    scores: Tensor
    parents: Tensor

    def __post_init__(self) -> None:
        count = len(self.masks)
        for name, values, dtype in (("scores", self.scores, torch.float32), ("parents", self.parents, torch.int64)):
            if not isinstance(values, Tensor):
                raise TypeError(f"Forest: expected {name} {dtype} [{count}], got {type(values).__name__}")
            if values.shape != (count,) or values.dtype != dtype:
                got = f"{values.dtype} {list(values.shape)}"
                raise ValueError(f"Forest: expected {name} {dtype} [{count}], got {got}")
        if count and (int(self.parents.min()) < -1 or int(self.parents.max()) >= count):
            raise ValueError(f"Forest: expected parents from -1 to {count - 1}, got {self.parents.tolist()}")
        self.levels  # noqa: B018  (walks to every root, and so refuses cycles)

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        height, width = self.masks.size
        roots = int((self.parents < 0).sum())
        return f"Forest({len(self)} masks of {height} x {width}, {roots} without a parent)"

    @cached_property
    def levels(self) -> Tensor:
        """The number of ancestors of each mask, int64 [N]: the steps up to its root."""
        levels = torch.zeros_like(self.parents)  # [N]
        above = self.parents  # [N], walks up one step a turn
        for _ in range(len(self)):
            inside = above >= 0
            if not inside.any():
                return levels
            levels = levels + inside
            above = torch.where(inside, self.parents[above], above)
        if (above >= 0).any():
            raise ValueError("Forest: parents hold a cycle")
        return levels

    def ancestors(self) -> Tensor:
        """bool [N, N]: [i, j] says that mask i is an ancestor of mask j (parent, parent's parent, ...)."""
        count = len(self)
        matrix = torch.zeros((count, count), dtype=torch.bool, device=self.parents.device)  # [N, N]
        below = torch.arange(count, device=self.parents.device)  # [N]
        above = self.parents  # [N]
        while (inside := above >= 0).any():
            matrix[above[inside], below[inside]] = True
            above = torch.where(inside, self.parents[above], above)
        return matrix

    def select(self, indices: Index) -> Forest:
        """The forest of some masks, in the order asked for. Where a parent is gone, the nearest kept ancestor follows.

        indices: without repeats, as of `sohes.structures.masks.as_indices`.
        """
        indices = as_indices(indices, len(self), self.parents.device)  # [kept]
        place = torch.full_like(self.parents, -1)  # [N], new index of an old one
        place[indices] = torch.arange(len(indices), device=indices.device)
        if int((place >= 0).sum()) != len(indices):
            raise ValueError("Forest.select: expected indices without repeats")
        above = self.parents[indices]  # [kept], old indices
        while (gone := (above >= 0) & (place[above] < 0)).any():
            above = torch.where(gone, self.parents[above], above)
        parents = torch.where(above >= 0, place[above], above)  # [kept]
        return Forest(self.masks[indices], self.scores[indices], parents)

    def to_coco(self, image_id: int | str, first_id: int = 1) -> list[dict]:
        """COCO annotations, ids from `first_id` on; `parent` is an annotation id or None, `bbox` is x, y, w, h."""
        image_id, first_id = (one.item() if isinstance(one, np.generic) else one for one in (image_id, first_id))
        x0, y0, x1, y1 = self.masks.boxes.cpu().unbind(1)  # [N] each
        rows = zip(
            self.masks.to_rle(),
            self.masks.areas.tolist(),
            torch.stack((x0, y0, x1 - x0, y1 - y0), 1).tolist(),
            self.scores.tolist(),
            self.levels.tolist(),
            self.parents.tolist(),
            strict=True,
        )
        return [
            {
                "id": first_id + index,
                "image_id": image_id,
                "category_id": 1,
                "segmentation": rle,
                "area": area,
                "bbox": box,
                "iscrowd": 0,
                "score": score,
                "level": level,
                "parent": None if parent < 0 else first_id + parent,
            }
            for index, (rle, area, box, score, level, parent) in enumerate(rows)
        ]

    @classmethod
    def from_coco(cls, annotations: Sequence[Mapping], size: Size) -> Forest:
        """The forest of one image's annotations (RLE segmentations).

        A missing score is 1. Without a parent, or with one that is not among the annotations, a mask is a root.
        """
        masks = PackedMasks.from_rle([annotation["segmentation"] for annotation in annotations], size)
        index_of = {annotation["id"]: index for index, annotation in enumerate(annotations) if "id" in annotation}
        scores = torch.tensor(
            [annotation.get("score", 1.0) for annotation in annotations], dtype=torch.float32, device="cpu"
        )
        parents = [index_of.get(annotation.get("parent"), -1) for annotation in annotations]
        return cls(masks, scores, torch.tensor(parents, dtype=torch.int64, device="cpu"))

    def to_label_map(self, depth: int | None = None) -> Tensor:
        """One label per pixel, int64 [H, W]: the index of the deepest mask there, -1 where there is none.

        depth: the deepest level to show; None shows all. Within a level a smaller mask lies over a larger one, of
            equals the lower index over the higher.
        """
        shown = torch.arange(len(self), device=self.parents.device)  # [N]
        if depth is not None:
            shown = shown[self.levels <= depth]
        shown = shown.flip(0)  # painted first to last: of equals the lower index is painted last
        shown = shown[self.masks.areas[shown].argsort(descending=True, stable=True)]
        shown = shown[self.levels[shown].argsort(stable=True)]
        labels = torch.full(self.masks.size, -1, dtype=torch.int64, device=self.parents.device)  # [H, W]
        for index in shown.tolist():
            labels[self.masks[index].to_dense()[0]] = index
        return labels

    def to_sam(self) -> list[dict]:
        """Records in the form of SAM's automatic mask generator, with `parent` (index or None) and `level` added."""
        return [
            {
                "segmentation": annotation["segmentation"],
                "area": annotation["area"],
                "bbox": annotation["bbox"],
                "predicted_iou": annotation["score"],
                "stability_score": annotation["score"],
                "crop_box": [0, 0, self.masks.size[1], self.masks.size[0]],
                "point_coords": [],
                "level": annotation["level"],
                "parent": annotation["parent"],
            }
            for annotation in self.to_coco(image_id=0, first_id=0)
        ]

    @classmethod
    def from_sam(cls, records: Sequence[Mapping], size: Size) -> Forest:
        """The forest of one image's records in the form of SAM's automatic mask generator, its own or SAM's.

        A `segmentation` is an RLE or bool [H, W]. `predicted_iou` is the score; without a `parent` a mask is a root.
        """
        masks = [PackedMasks.empty(size)]
        for record in records:
            segmentation = record["segmentation"]
            is_rle = isinstance(segmentation, Mapping)
            one = [segmentation] if is_rle else torch.as_tensor(segmentation, device="cpu")[None]
            masks.append(PackedMasks.from_rle(one, size) if is_rle else PackedMasks.from_dense(one))
        scores = torch.tensor([record["predicted_iou"] for record in records], dtype=torch.float32, device="cpu")
        parents = [-1 if record.get("parent") is None else record["parent"] for record in records]
        return cls(PackedMasks.cat(masks), scores, torch.tensor(parents, dtype=torch.int64, device="cpu"))


def build_forest(masks: PackedMasks, theta_cover: float = 0.9, backend: str = "auto") -> Tensor:
    """Parents int64 [N] of masks by coverage, -1 for a root.

    A lies inside B when at least `theta_cover` of A lies in B and not the other way round; its parent is the smallest
    such B, of equals the lower index. B then has more pixels than A, so there are no cycles. An empty mask is a root
    without children. (The rule of SOHES, with the coverage of its sibling HASSOD.)

    Raises ValueError unless 0 < theta_cover <= 1.
    """
    if not 0 < theta_cover <= 1:
        raise ValueError(f"build_forest: expected theta_cover in (0, 1], got {theta_cover}")
    order = masks.areas.argsort(stable=True)  # [N], the lower index first among equals
    return mask_parents(masks.words, masks.areas, masks.boxes, order, theta_cover, masks.size[0], backend)
