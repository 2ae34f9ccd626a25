# SPDX-License-Identifier: Apache-2.0
"""Unlabelled photos as small canvases, all in memory, for training that looks at each of them hundreds of times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sohes.data.errors import DataError
from sohes.data.images import UnreadableImage
from sohes.data.photo_pack import shrink
from sohes.data.sampling import step_samples
from sohes.data.sources import ImageList
from sohes.utils.workers import worker_pool


@dataclass(frozen=True, eq=False)
class PhotoBatch:
    """B photos. names: where they come from. images: uint8 [B, 3, S, S]; a photo lies in the corner at 0, 0, and its
    last row and column are repeated to the canvas' edge. sizes: int64 [B, 2], height and width of the photo itself.
    regions: uint8 [B, K, S', S'], K ways to cut the canvases into regions, or None."""

    names: list[str]
    images: Tensor
    sizes: Tensor
    regions: Tensor | None = None

    def to(self, device: torch.device | str) -> PhotoBatch:
        regions = None if self.regions is None else self.regions.to(device, non_blocking=True)
        return PhotoBatch(self.names, self.images.to(device, non_blocking=True), self.sizes.to(device), regions)


def photo_canvas(image: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    """uint8 [3, H, W], shrunk to a long side of `side` (never enlarged) -> uint8 [3, side, side] and its (h, w)."""
    image = shrink(image, side)
    h, w = image.shape[1:]
    place = torch.arange(side, device=image.device)
    rows, columns = place.clamp_max(h - 1), place.clamp_max(w - 1)
    return image[:, rows][:, :, columns], (h, w)


class PhotoSet:
    """Photos that were decoded once.

    names: those that could be read. failures: the others, with their reasons. regions: uint8 [N, K, S', S'] as in
    `PhotoBatch`, None until somebody sets them.
    """

    def __init__(self, photos: ImageList, side: int, num_threads: int, cache_gb: float) -> None:
        """Decode `photos` into canvases of `side` pixels.

        Raises:
            DataError: the canvases need more than `cache_gb`, or no photo can be read.
        """
        needed = len(photos) * 3 * side * side / 1e9
        if needed > cache_gb:
            raise DataError(
                f"{len(photos)} photos of {side} px need {needed:.3g} GB of memory, expected at most {cache_gb:g} GB: "
                "raise --cache-gb or lower --crops.photo-side"
            )
        self.names: list[str] = []
        self.failures: list[str] = []
        self.images = torch.empty((len(photos), 3, side, side), dtype=torch.uint8, device="cpu")
        sizes = []
        with worker_pool(num_threads, 1, "decode") as pool:
            for index, made in enumerate(pool.map(lambda index: _read(photos, index, side), range(len(photos)))):
                if isinstance(made, UnreadableImage):
                    self.failures.append(str(made))
                    continue
                self.images[len(sizes)] = made[0]
                sizes.append(made[1])
                self.names.append(str(photos[index]))
        if not sizes:
            raise DataError(f"none of {len(photos)} photos could be read; the first: {self.failures[0]}")
        self.images, self.sizes = self.images[: len(sizes)], torch.tensor(sizes, device="cpu")
        self.regions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def photo(self, index: int) -> Tensor:
        """Photo `index` as it lies in its canvas, uint8 [3, h, w]."""
        h, w = self.sizes[index].tolist()
        return self.images[index, :, :h, :w]

    def batch(self, indices: Sequence[int]) -> PhotoBatch:
        chosen = torch.tensor(indices, dtype=torch.int64, device="cpu")
        regions = None if self.regions is None else self.regions[chosen]
        return PhotoBatch([self.names[i] for i in indices], self.images[chosen], self.sizes[chosen], regions)


def photo_batches(
    photos: PhotoSet, batch_size: int, seed: int, start_step: int, stop_step: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, PhotoBatch]]:
    """Yield (step, batch): this process's slice of the global batch, the same from whatever step one starts."""
    share = batch_size // world
    for step in range(start_step, stop_step):
        samples = step_samples(len(photos), batch_size, step, seed)[rank * share : (rank + 1) * share]
        yield step, photos.batch([index for _, index in samples])


def _read(photos: ImageList, index: int, side: int) -> tuple[Tensor, tuple[int, int]] | UnreadableImage:
    """A canvas, or why there is none: one bad photo among thousands must not end the others."""
    try:
        return photo_canvas(photos.read(index), side)
    except UnreadableImage as error:
        return error
