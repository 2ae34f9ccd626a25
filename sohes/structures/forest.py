# SPDX-License-Identifier: Apache-2.0
"""Forest: the masks of one image with scores and parents, used by labels, predictions, metrics and exports."""

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
    votes: float32 [N] in 0..1, of labels from several looks at the photo the share of looks that have a mask like this
        one; None where there are no votes.

    The level of a mask is the number of its ancestors in this forest: 0 for a root, 1 for its children, and so on.
    JSON, visualizations, the report and `--depth` use this level. `select` returns a smaller forest with new levels;
    visualizations of the best masks keep the levels of the full forest.
    """

    masks: PackedMasks
    scores: Tensor
    parents: Tensor
    votes: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.masks)
        fields = [("scores", self.scores, torch.float32), ("parents", self.parents, torch.int64)]
        if self.votes is not None:
            fields.append(("votes", self.votes, torch.float32))
        for name, values, dtype in fields:
            if not isinstance(values, Tensor):
                raise TypeError(f"Forest: expected {name} {dtype} [{count}], got {type(values).__name__}")
            if values.shape != (count,) or values.dtype != dtype:
                got = f"{values.dtype} {list(values.shape)}"
                raise ValueError(f"Forest: expected {name} {dtype} [{count}], got {got}")
        if count and (int(self.parents.min()) < -1 or int(self.parents.max()) >= count):
            raise ValueError(f"Forest: expected parents from -1 to {count - 1}, got {self.parents.tolist()}")
        self.levels  # noqa: B018  (raises ValueError for cycles)

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        height, width = self.masks.size
        roots = int((self.parents < 0).sum())
        return f"Forest({len(self)} masks of {height} x {width}, {roots} without a parent)"

    @cached_property
    def levels(self) -> Tensor:
        """Number of ancestors of each mask, int64 [N]."""
        levels = torch.zeros_like(self.parents)  # [N]
        above = self.parents  # [N], one step closer to the root in each iteration
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
        """Ancestor matrix, bool [N, N]: [i, j] is True if mask i is an ancestor of mask j, at any distance."""
        count = len(self)
        matrix = torch.zeros((count, count), dtype=torch.bool, device=self.parents.device)  # [N, N]
        below = torch.arange(count, device=self.parents.device)  # [N]
        above = self.parents  # [N]
        while (inside := above >= 0).any():
            matrix[above[inside], below[inside]] = True
            above = torch.where(inside, self.parents[above], above)
        return matrix

    def select(self, indices: Index) -> Forest:
        """The forest of some masks, in the given order; a removed parent is replaced by the nearest kept ancestor.

        indices: without repeats, in a form that `sohes.structures.masks.as_indices` accepts.
        """
        indices = as_indices(indices, len(self), self.parents.device)  # [kept]
        place = torch.full_like(self.parents, -1)  # [N], old index -> new index
        place[indices] = torch.arange(len(indices), device=indices.device)
        if int((place >= 0).sum()) != len(indices):
            raise ValueError("Forest.select: expected indices without repeats")
        above = self.parents[indices]  # [kept], old indices
        while (gone := (above >= 0) & (place[above] < 0)).any():
            above = torch.where(gone, self.parents[above], above)
        parents = torch.where(above >= 0, place[above], above)  # [kept]
        votes = None if self.votes is None else self.votes[indices]
        return Forest(self.masks[indices], self.scores[indices], parents, votes)

    def to_coco(self, image_id: int | str, first_id: int = 1) -> list[dict]:
        """COCO annotations with ids from `first_id` on; `parent` is an annotation id or None, `bbox` is x, y, w, h.

        `votes` only if the forest has votes.
        """
        if isinstance(image_id, np.generic):
            image_id = image_id.item()
        first_id = int(first_id)
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
        votes = [{}] * len(self) if self.votes is None else [{"votes": vote} for vote in self.votes.tolist()]
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
                **votes[index],
                "level": level,
                "parent": None if parent < 0 else first_id + parent,
            }
            for index, (rle, area, box, score, level, parent) in enumerate(rows)
        ]

    @classmethod
    def from_coco(cls, annotations: Sequence[Mapping], size: Size) -> Forest:
        """The forest of one image's annotations (RLE segmentations).

        A missing score is 1; votes are read if every annotation has them. A mask is a root if it has no parent, or if
        the parent is not among the annotations.
        """
        masks = PackedMasks.from_rle([annotation["segmentation"] for annotation in annotations], size)
        index_of = {annotation["id"]: index for index, annotation in enumerate(annotations) if "id" in annotation}
        scores = torch.tensor(
            [annotation.get("score", 1.0) for annotation in annotations], dtype=torch.float32, device="cpu"
        )
        parents = [index_of.get(annotation.get("parent"), -1) for annotation in annotations]
        votes = read_votes(annotations)
        return cls(masks, scores, torch.tensor(parents, dtype=torch.int64, device="cpu"), votes)

    def to_label_map(self, depth: int | None = None) -> Tensor:
        """Index of the deepest mask at each pixel, int64 [H, W], -1 for none.

        depth: the deepest level to show; None shows all. Within a level a smaller mask covers a larger one, and of
            masks with equal area the one with the lower index covers the other.
        """
        shown = torch.arange(len(self), device=self.parents.device)  # [N]
        if depth is not None:
            shown = shown[self.levels <= depth]
        shown = shown.flip(0)  # painted in this order; of equal masks the lower index is painted last
        shown = shown[self.masks.areas[shown].argsort(descending=True, stable=True)]
        shown = shown[self.levels[shown].argsort(stable=True)]
        labels = torch.full(self.masks.size, -1, dtype=torch.int64, device=self.parents.device)  # [H, W]
        for index in shown.tolist():
            labels[self.masks[index].to_dense()[0]] = index
        return labels

    def to_sam(self) -> list[dict]:
        """Records in the format of SAM's automatic mask generator, plus `parent` (index or None) and `level`."""
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
        """The forest of one image's records, from `to_sam` or from SAM's automatic mask generator.

        `segmentation` is RLE or bool [H, W]. `predicted_iou` is the score. A mask without `parent` is a root.
        """
        masks = [PackedMasks.empty(size)]
        for record in records:
            segmentation = record["segmentation"]
            if isinstance(segmentation, Mapping):
                masks.append(PackedMasks.from_rle([segmentation], size))
            else:
                masks.append(PackedMasks.from_dense(torch.as_tensor(segmentation, device="cpu")[None]))
        scores = torch.tensor([record["predicted_iou"] for record in records], dtype=torch.float32, device="cpu")
        parents = [-1 if record.get("parent") is None else record["parent"] for record in records]
        return cls(PackedMasks.cat(masks), scores, torch.tensor(parents, dtype=torch.int64, device="cpu"))


def read_votes(annotations: Sequence[Mapping]) -> Tensor | None:
    """The votes of COCO annotations, float32 [N]; None unless every annotation has them."""
    votes = [annotation.get("votes") for annotation in annotations]
    if not votes or None in votes:
        return None
    return torch.tensor(votes, dtype=torch.float32, device="cpu")


def build_forest(masks: PackedMasks, theta_cover: float = 0.9, backend: str = "auto") -> Tensor:
    """Parent of each mask by coverage, int64 [N], -1 for a root.

    A is inside B if B covers at least `theta_cover` of A and A covers less than that of B. The parent of A is the
    smallest such B, of equal ones the one with the lower index. B has more pixels than A, so there are no cycles. An
    empty mask is a root without children. The rule of SOHES, with the coverage of HASSOD.

    Raises ValueError unless 0 < theta_cover <= 1.
    """
    if not 0 < theta_cover <= 1:
        raise ValueError(f"build_forest: expected theta_cover in (0, 1], got {theta_cover}")
    order = masks.areas.argsort(stable=True)  # [N], of equal areas the lower index first
    return mask_parents(masks.words, masks.areas, masks.boxes, order, theta_cover, masks.size[0], backend)
