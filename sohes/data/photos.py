# SPDX-License-Identifier: Apache-2.0
"""Unlabelled photos as small canvases, all in memory, for pretraining that reads each of them hundreds of times."""

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
    """B photos.

    names: their paths. images: uint8 [B, 3, S, S], canvases with the photo in the top left corner, padded by its last
    row and column. sizes: int64 [B, 2], height and width of the photo itself. regions: uint8 [B, K, S', S'], region
    numbers in K cuts of the canvases, or None.
    """

    names: list[str]
    images: Tensor
    sizes: Tensor
    regions: Tensor | None = None

    def to(self, device: torch.device | str) -> PhotoBatch:
        regions = None if self.regions is None else self.regions.to(device, non_blocking=True)
        return PhotoBatch(self.names, self.images.to(device, non_blocking=True), self.sizes.to(device), regions)


def photo_canvas(image: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    """A photo uint8 [3, H, W] as a canvas uint8 [3, side, side], and its (h, w) there; it is never enlarged."""
    image = shrink(image, side)
    h, w = image.shape[1:]
    place = torch.arange(side, device=image.device)
    rows, columns = place.clamp_max(h - 1), place.clamp_max(w - 1)
    return image[:, rows][:, :, columns], (h, w)


class PhotoSet:
    """N decoded photos in memory.

    names: of the photos that could be read. failures: the others, with reasons. images, sizes, regions: as in
    `PhotoBatch`; regions are None until they are assigned.
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
        sizes: list[tuple[int, int]] = []
        with worker_pool(num_threads, 1, "decode") as pool:
            for index, result in enumerate(pool.map(lambda index: _read(photos, index, side), range(len(photos)))):
                if isinstance(result, UnreadableImage):
                    self.failures.append(str(result))
                    continue
                self.images[len(sizes)] = result[0]
                sizes.append(result[1])
                self.names.append(str(photos[index]))
        if not sizes:
            raise DataError(f"none of {len(photos)} photos could be read; the first: {self.failures[0]}")
        self.images, self.sizes = self.images[: len(sizes)], torch.tensor(sizes, device="cpu")
        self.regions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def photo(self, index: int) -> Tensor:
        """Photo `index` without the padding of its canvas, uint8 [3, h, w]."""
        h, w = self.sizes[index].tolist()
        return self.images[index, :, :h, :w]

    def batch(self, indices: Sequence[int]) -> PhotoBatch:
        chosen = torch.tensor(indices, dtype=torch.int64, device="cpu")
        regions = None if self.regions is None else self.regions[chosen]
        return PhotoBatch([self.names[i] for i in indices], self.images[chosen], self.sizes[chosen], regions)


def photo_batches(
    photos: PhotoSet, batch_size: int, seed: int, start_step: int, stop_step: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, PhotoBatch]]:
    """Yield (step, batch): this process's slice of the global batch, which does not depend on `start_step`."""
    share = batch_size // world
    for step in range(start_step, stop_step):
        samples = step_samples(len(photos), batch_size, step, seed)[rank * share : (rank + 1) * share]
        yield step, photos.batch([index for _, index in samples])


def _read(photos: ImageList, index: int, side: int) -> tuple[Tensor, tuple[int, int]] | UnreadableImage:
    """The canvas of a photo and its size, or the error: one unreadable photo must not stop the others."""
    try:
        return photo_canvas(photos.read(index), side)
    except UnreadableImage as error:
        return error
