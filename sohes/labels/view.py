# SPDX-License-Identifier: Apache-2.0
"""The view of a photo that is clustered: resized, in Lab, every pixel assigned to one patch of a grid.

The assignment makes masks of patches sharp: a square patch across an edge gives its pixels to the neighbours they
resemble. It is a few rounds of k-means in (L, a, b, y, x) in which a pixel may choose among the 3x3 patches around its
own (the local search of SLIC, Achanta et al. 2012), done once per photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.labels.color import rgb_to_lab


@dataclass(frozen=True, eq=False)
class View:
    """One photo at working size.

    image: uint8 [3, H, W]. lab: float32 [3, H, W]. grid: (h, w) patches. patches: int64 [H, W], the patch y*w + x that
    each pixel belongs to; no patch is empty. photo_size: (H, W) of the photo before the resize.
    """

    image: Tensor
    lab: Tensor
    grid: tuple[int, int]
    patches: Tensor
    photo_size: tuple[int, int]

    @property
    def patch_sizes(self) -> Tensor:
        """Number of pixels of each patch, int64 [h*w]."""
        return torch.bincount(self.patches.flatten(), minlength=self.grid[0] * self.grid[1])

    def pool(self, values: Tensor) -> Tensor:
        """Mean of values [C, H, W] over each patch, float32 [h*w, C]."""
        sums = values.new_zeros(values.shape[0], self.grid[0] * self.grid[1])  # [C, h*w]
        sums.index_add_(1, self.patches.flatten(), values.flatten(1))
        return (sums / self.patch_sizes).T.contiguous()

    def at_photo_size(self, labels: Tensor) -> Tensor:
        """Labels [H, W] of the view's pixels -> at the size of the photo, by nearest neighbour."""
        height, width = self.photo_size
        if labels.shape == self.photo_size:
            return labels
        rows = (torch.arange(height, device=labels.device) * 2 + 1) * labels.shape[0] // (2 * height)
        columns = (torch.arange(width, device=labels.device) * 2 + 1) * labels.shape[1] // (2 * width)
        return labels[rows[:, None], columns[None, :]]


def make_view(image: Tensor, size: tuple[int, int], grid: tuple[int, int], rounds: int, compactness: float) -> View:
    """The view of a photo: resized, its pixels assigned to patches.

    Args:
        image: uint8 [3, H, W].
        size: (H, W) of the view in pixels.
        grid: (h, w) in patches, at most `size`.
        rounds: of the assignment; 0 keeps patches rectangular.
        compactness: distance in Lab that counts as much as one patch side; a larger one keeps patches more square.
    """
    photo_size = (image.shape[1], image.shape[2])
    if photo_size != size:
        resized = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]  # [3, H, W]
        image = resized.round().clamp(0, 255).byte()
    lab = rgb_to_lab(image)
    return View(image, lab, grid, assign_pixels(lab, grid, rounds, compactness), photo_size)


def fit_area(size: tuple[int, int], area: float, multiple: int, enlarge: bool) -> tuple[int, int]:
    """(H, W) scaled to about `area` pixels, aspect ratio kept, each side a multiple (at least 1) of `multiple`.

    Without `enlarge` a smaller size is only rounded.
    """
    scale = sqrt(area / (size[0] * size[1]))
    if not enlarge:
        scale = min(scale, 1.0)
    height, width = (max(1, round(side * scale / multiple)) * multiple for side in size)
    return height, width


def assign_pixels(lab: Tensor, grid: tuple[int, int], rounds: int, compactness: float) -> Tensor:
    """Patch of each pixel, int64 [H, W], see the module's docstring. The middle pixel of a square keeps its patch."""
    _, height, width = lab.shape
    h, w = grid
    y = (torch.arange(height, dtype=torch.float32, device=lab.device) + 0.5) * (h / height)  # [H], in patches
    x = (torch.arange(width, dtype=torch.float32, device=lab.device) + 0.5) * (w / width)  # [W]
    row, column = y.long().clamp(max=h - 1), x.long().clamp(max=w - 1)
    square = row[:, None] * w + column[None, :]  # [H, W]
    if rounds == 0:
        return square
    place = torch.stack([y[:, None].expand(height, width), x[None, :].expand(height, width)])  # [2, H, W]
    points = torch.cat([lab, compactness * place]).flatten(1)  # [5, H*W]
    shifts = [(dy, dx) for dy in (0, -1, 1) for dx in (0, -1, 1)]  # the own square first, so that it wins ties
    choices = [
        ((row + dy).clamp(0, h - 1)[:, None] * w + (column + dx).clamp(0, w - 1)[None, :]).flatten()
        for dy, dx in shifts
    ]
    middle_rows = (torch.arange(h, device=lab.device) * 2 + 1) * height // (2 * h)
    middle_columns = (torch.arange(w, device=lab.device) * 2 + 1) * width // (2 * w)
    middles = (middle_rows[:, None] * width + middle_columns[None, :]).flatten()  # [h*w]
    own = torch.arange(h * w, device=lab.device)

    patch = square.flatten()  # [H*W]
    for _ in range(rounds):
        counts = torch.bincount(patch, minlength=h * w)  # [h*w]
        centers = points.new_zeros(5, h * w).index_add_(1, patch, points) / counts  # [5, h*w]
        best = torch.full_like(points[0], torch.inf)  # [H*W]
        for choice in choices:
            distance = torch.zeros_like(best)
            for channel in range(5):
                distance += (points[channel] - centers[channel][choice]).square_()
            closer = distance < best
            best = torch.where(closer, distance, best)
            patch = torch.where(closer, choice, patch)
        patch[middles] = own
    return patch.view(height, width)
