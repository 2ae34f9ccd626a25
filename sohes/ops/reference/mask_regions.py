# SPDX-License-Identifier: Apache-2.0
"""Reference of components, holes, boundaries and resizing of packed masks, on dense masks with scipy.

The foreground is 8-connected and the background 4-connected, so that a closed line has an inside. Components are in
the order of their first pixels, column by column.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from sohes.ops.reference.mask_pack import chunks, mask_pack, mask_unpack, num_words

CORNERS = np.ones((3, 3), bool)  # 8 neighbours


def mask_fill_holes(words: Tensor, height: int, width: int) -> Tensor:
    """Masks with the background regions filled that do not touch the border of the image; words int64 [N, V]."""
    return _each(words, height, width, ndimage.binary_fill_holes)


def mask_largest_component(words: Tensor, height: int, width: int) -> Tensor:
    """The largest component of each mask, of equal ones the one with the first pixel; words int64 [N, V]."""

    def largest(columns: np.ndarray) -> np.ndarray:
        labels, count = ndimage.label(columns, CORNERS)
        return labels == np.bincount(labels[labels > 0]).argmax() if count else columns

    return _each(words, height, width, largest)


def mask_components(words: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Words [R, V] of all components, and the index of the mask of each, int64 [R]; from words int64 [N, V]."""
    components, owners = [words.new_zeros((0, num_words((height, width))))], [words.new_zeros(0)]
    for index in range(len(words)):
        columns = mask_unpack(words[index : index + 1].cpu(), height, width)[0].T.numpy()  # [W, H]
        labels, count = ndimage.label(columns, CORNERS)  # in the order of the first pixel of [W, H]
        dense = labels == np.arange(1, count + 1)[:, None, None]  # [r, W, H]
        components.append(mask_pack(torch.from_numpy(dense).transpose(1, 2))[0].to(words.device))  # [r, V]
        owners.append(words.new_full((count,), index))  # [r]
    return torch.cat(components), torch.cat(owners)


def mask_boundary(words: Tensor, height: int, width: int) -> Tensor:
    """The pixels of each mask with a 4-neighbour outside the mask or the image; words int64 [N, V]."""
    edges = torch.empty_like(words)  # [N, V]
    for chunk in chunks(len(words), height * width):
        dense = mask_unpack(words[chunk], height, width)  # [n, H, W]
        padded = F.pad(dense, (1, 1, 1, 1))  # [n, H+2, W+2]
        beside = padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]  # [n, H, W]
        above_below = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1]  # [n, H, W]
        edges[chunk] = mask_pack(dense & ~(beside & above_below))[0]  # [n, V]
    return edges


def nearest_table(source: int, target: int) -> Tensor:
    """Index of the `source` pixel that contains the centre of each `target` pixel, int64 [target], exact."""
    return (2 * torch.arange(target, device="cpu") + 1) * source // (2 * target)


def mask_resize(words: Tensor, height: int, width: int, new_height: int, new_width: int) -> Tensor:
    """Masks resized by nearest neighbour at pixel centres; words int64 [N, V] of H x W masks."""
    rows = nearest_table(height, new_height).to(words.device)  # [new H]
    columns = nearest_table(width, new_width).to(words.device)  # [new W]
    resized = words.new_zeros((len(words), num_words((new_height, new_width))))  # [N, new V]
    for chunk in chunks(len(words) if resized.numel() else 0, max(height * width, new_height * new_width)):
        dense = mask_unpack(words[chunk], height, width)  # [n, H, W]
        resized[chunk] = mask_pack(dense[:, rows][:, :, columns])[0]  # [n, new V]
    return resized


def _each(words: Tensor, height: int, width: int, change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """`change` applied to each mask as bool [W, H]; words int64 [N, V]."""
    changed = words.clone()
    for index in range(len(words) if words.shape[1] else 0):
        columns = mask_unpack(words[index : index + 1].cpu(), height, width)[0].T.numpy()  # [W, H]
        dense = torch.from_numpy(np.ascontiguousarray(change(columns))).T[None]  # [1, H, W]
        changed[index : index + 1] = mask_pack(dense)[0].to(words.device)  # [1, V]
    return changed
