# SPDX-License-Identifier: Apache-2.0
"""Training samples and batches: random views, of one size, of photos and their forests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from numpy.random import PCG64, Generator, SeedSequence
from torch import Tensor
from torch.utils.data import Dataset

from sohes.configs.run import ViewConfig
from sohes.data.coco import LabelledImage, LabelSet
from sohes.data.errors import DataError
from sohes.data.images import read_image
from sohes.data.transforms import (
    StrongView,
    draw_geometry,
    normalize,
    strong_view,
    view_image,
    view_masks,
    view_valid,
    visible_masks,
)
from sohes.structures.target import Target


@dataclass(frozen=True, eq=False)
class Sample:
    """One view of one photo, before batching.

    name: the path of the photo. image: uint8 [3, H, W]. strong: the strong view of the same crop, of the same shape, or
    None. valid: bool [H, W], False on padding.
    """

    name: str
    image: Tensor
    strong: Tensor | None
    valid: Tensor
    target: Target


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples.

    names: the paths of the photos. images: float32 [B, 3, H, W], normalized, 0 on padding. strong_images: the strong
    views of the same crops, or None. valid: bool [B, H, W], False on padding. targets: B of them, for both views.
    """

    names: list[str]
    images: Tensor
    strong_images: Tensor | None
    valid: Tensor
    targets: list[Target]

    def to(self, device: torch.device | str) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, which a GPU can copy asynchronously."""
        return self._map(Tensor.pin_memory)

    def share_memory(self) -> Batch:
        """The batch in shared memory, for another process. Raises RuntimeError if there is no space."""
        return self._map(Tensor.share_memory_)

    def split(self, num_parts: int) -> list[Batch]:
        """The batch in `num_parts` equal parts, in order; B must be a multiple of it."""
        size, rest = divmod(len(self.names), num_parts)
        if rest:
            raise ValueError(f"a batch of {len(self.names)} cannot be split into {num_parts} equal parts")
        spans = [slice(start, start + size) for start in range(0, len(self.names), size)]
        strong = self.strong_images
        return [
            Batch(self.names[s], self.images[s], None if strong is None else strong[s], self.valid[s], self.targets[s])
            for s in spans
        ]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            names=self.names,
            images=function(self.images),
            strong_images=None if self.strong_images is None else function(self.strong_images),
            valid=function(self.valid),
            targets=[Target(*map(function, (t.masks, t.ancestors, t.scores))) for t in self.targets],
        )


class LabelDataset(Dataset):
    """Random views of labelled photos. A sample is a pure function of (seed, epoch, index).

    Crowd regions are no targets. Each process caches decoded photos and masks in up to `views.cache_mb` megabytes; the
    cache does not change the samples.

    Args:
        labels: photos and their forests.
        views: size, scale range, smallest mask and cache of the views.
        seed: >= 0.
        strong: samples have only the strong view, as `image`.
        pairs: samples have both views, the weak one as `image`.
        strong_settings: of the strong view.
    """

    def __init__(
        self,
        labels: LabelSet,
        views: ViewConfig,
        seed: int,
        *,
        strong: bool = False,
        pairs: bool = False,
        strong_settings: StrongView | None = None,
    ):
        if strong and pairs:
            raise ValueError("LabelDataset: pairs=True has the strong view already; expected one of strong and pairs")
        if not 0 < views.scale[0] <= views.scale[1]:
            raise ValueError(f"LabelDataset: expected a scale range 0 < low <= high, got {views.scale}")
        self.labels = labels
        self.views = views
        self.seed = seed
        self.strong = strong
        self.pairs = pairs
        self.strong_settings = strong_settings or StrongView()
        self._cache: dict[int, tuple[LabelledImage, Tensor]] = {}
        self._cache_bytes_left = views.cache_mb * 10**6

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Sample `index` of epoch 0, or sample (epoch, index)."""
        epoch, index = (0, key) if isinstance(key, int) else key
        return self.sample(index, epoch)

    def sample(self, index: int, epoch: int) -> Sample:
        """View number `epoch` of photo `index`.

        Raises:
            IndexError: there is no such photo.
            UnreadableImage: its file cannot be read.
            DataError: its size is not that of its labels.
        """
        labelled, image = self._load(index)
        rng = Generator(PCG64(SeedSequence([self.seed, epoch, index])))
        geometry = draw_geometry(rng, labelled.size, self.views.size, self.views.scale)
        weak = view_image(image, geometry)
        strong = strong_view(rng, weak, self.strong_settings) if self.strong or self.pairs else None
        masks = view_masks(labelled.forest.masks, geometry)  # [N, size, size]
        ancestors = labelled.forest.ancestors()  # [N, N]
        keep = visible_masks(masks, ancestors, self.views.min_area)
        # A submatrix of a transitive closure is one too: grandparents of a dropped parent remain ancestors.
        target = Target(masks[keep], ancestors[keep][:, keep], labelled.forest.scores[keep])
        return Sample(
            name=str(labelled.path),
            image=weak if strong is None or self.pairs else strong,
            strong=strong if self.pairs else None,
            valid=view_valid(geometry),
            target=target,
        )

    def _load(self, index: int) -> tuple[LabelledImage, Tensor]:
        """Labels without crowds, and the photo uint8 [3, H, W]."""
        if index in self._cache:
            return self._cache[index]
        labelled = self.labels[index]
        image = read_image(labelled.path)
        if image.shape[1:] != labelled.size:
            raise DataError(
                f"{labelled.path} has {image.shape[2]}x{image.shape[1]} pixels, but its labels in {self.labels.source} "
                f"are for {labelled.size[1]}x{labelled.size[0]}"
            )
        if labelled.crowd.any():
            keep = ~labelled.crowd
            labelled = replace(
                labelled,
                forest=labelled.forest.select(keep),
                crowd=labelled.crowd[keep],
                annotator=None if labelled.annotator is None else labelled.annotator[keep],
            )
        num_bytes = image.nbytes + labelled.forest.masks.words.nbytes
        if num_bytes <= self._cache_bytes_left:
            self._cache_bytes_left -= num_bytes
            self._cache[index] = (labelled, image)
        return labelled, image


def collate(samples: Sequence[Sample]) -> Batch:
    """The batch of samples of one size and kind, with normalized images."""
    valid = torch.stack([sample.valid for sample in samples])  # [B, H, W]
    strong = [sample.strong for sample in samples if sample.strong is not None]
    return Batch(
        names=[sample.name for sample in samples],
        images=normalize(torch.stack([sample.image for sample in samples]), valid),
        strong_images=normalize(torch.stack(strong), valid) if strong else None,
        valid=valid,
        targets=[sample.target for sample in samples],
    )
