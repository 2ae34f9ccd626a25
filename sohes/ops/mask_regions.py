# SPDX-License-Identifier: Apache-2.0
"""Operators on the shape of packed masks: connected components, holes, boundaries, resizing.

Connectivity and ties are defined in `sohes/ops/reference/mask_regions.py`. All backends return equal results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from sohes.ops._binary import find_binary, require_binary
from sohes.ops._cuda import run_cuda
from sohes.ops._library import Operator, define_op, why_not_cpp, why_not_cuda
from sohes.ops._words import Packed, Size, like_masks, words_of, zero_words
from sohes.ops.reference import mask_regions as reference
from sohes.ops.reference.mask_pack import num_words


@overload
def mask_fill_holes(masks: Packed, *, backend: str = "auto") -> Packed: ...
@overload
def mask_fill_holes(masks: Tensor, size: Size, backend: str = "auto") -> Tensor: ...
def mask_fill_holes(masks: Any, size: Size | None = None, backend: str = "auto") -> Any:
    """Masks with their holes filled: background regions (4-connected) that do not touch the border of the image.

    Takes PackedMasks, or words int64 [N, V] and their `size` (H, W), and returns the same type.
    """
    return _map("mask_fill_holes", _fill_holes, masks, size, backend)


@overload
def mask_largest_component(masks: Packed, *, backend: str = "auto") -> Packed: ...
@overload
def mask_largest_component(masks: Tensor, size: Size, backend: str = "auto") -> Tensor: ...
def mask_largest_component(masks: Any, size: Size | None = None, backend: str = "auto") -> Any:
    """The largest component (8-connected) of each mask; an empty mask stays empty. Types as `mask_fill_holes`."""
    return _map("mask_largest_component", _largest_component, masks, size, backend)


@overload
def mask_boundary(masks: Packed, *, backend: str = "auto") -> Packed: ...
@overload
def mask_boundary(masks: Tensor, size: Size, backend: str = "auto") -> Tensor: ...
def mask_boundary(masks: Any, size: Size | None = None, backend: str = "auto") -> Any:
    """The boundary of each mask: its pixels with a 4-neighbour outside the mask or the image.

    Types as `mask_fill_holes`.
    """
    return _map("mask_boundary", _boundary, masks, size, backend)


@overload
def mask_resize(masks: Packed, new_size: Size, /, *, backend: str = "auto") -> Packed: ...
@overload
def mask_resize(masks: Packed, *, new_size: Size, backend: str = "auto") -> Packed: ...
@overload
def mask_resize(masks: Tensor, size: Size, new_size: Size, backend: str = "auto") -> Tensor: ...
def mask_resize(masks: Any, size: Size | None = None, new_size: Size | None = None, backend: str = "auto") -> Any:
    """Masks resized to `new_size` by nearest neighbour at pixel centres, from PackedMasks or words and their `size`.

    Raises ValueError if masks without pixels are resized to a size with pixels.
    """
    if not isinstance(masks, Tensor) and new_size is None:
        size, new_size = None, size  # PackedMasks and one size: the new size
    words, size = words_of("mask_resize", masks, size)
    if new_size is None:
        raise TypeError("mask_resize: expected a new size (H, W)")
    new_size = (int(new_size[0]), int(new_size[1]))
    if 0 in size and 0 not in new_size:
        raise ValueError(f"mask_resize: cannot resize masks of {list(size)} to {list(new_size)}")
    return like_masks(masks, _resize(words, *size, *new_size, backend), new_size)


@overload
def mask_components(masks: Packed) -> tuple[Packed, Tensor]: ...
@overload
def mask_components(masks: Tensor, size: Size) -> tuple[Tensor, Tensor]: ...
def mask_components(masks: Any, size: Size | None = None) -> tuple[Any, Tensor]:
    """All R components (8-connected) of all masks, and the index of the mask of each, int64 [R].

    Types as `mask_fill_holes`. Not a torch operator, because R depends on the data. Runs in C++ or CUDA if available.
    """
    words, size = words_of("mask_components", masks, size)
    components, owners = _components(words, size)
    return like_masks(masks, components, size), owners


def _components(words: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    if why_not_cuda(words.device, words.dtype) is None:
        return _components_cuda(words, *size)
    binary = find_binary().module
    if binary is None or not words.is_cpu:
        return reference.mask_components(words, *size)
    words, threads = words.contiguous(), torch.get_num_threads()
    scratch = _scratch(words, *size)
    counts = torch.empty(len(words), dtype=torch.int64, device="cpu")  # [N]
    binary.mask_count_components(words, *size, scratch, counts, threads)
    stops = counts.cumsum(0)  # [N]
    out = zero_words(int(counts.sum()), size)  # [R, V]
    binary.mask_components(words, *size, scratch, stops - counts, out, threads)
    return out, torch.repeat_interleave(torch.arange(len(words), device="cpu"), counts)


def _map(name: str, operator: Operator, masks: Any, size: Size | None, backend: str) -> Any:
    words, size = words_of(name, masks, size)
    return like_masks(masks, operator(words, *size, backend), size)


def _scratch(words: Tensor, height: int, width: int) -> Tensor:
    """Scratch for the runs of the mask with the most runs, for each thread."""
    threads = torch.get_num_threads()
    num_runs = torch.empty(len(words), dtype=torch.int64, device="cpu")  # [N]
    require_binary().mask_num_runs(words, height * width, words.new_empty(0), height, num_runs, threads)
    most = int(num_runs.max()) if len(words) else 0
    return torch.empty((threads, 4 * (most + width)), dtype=torch.int64, device="cpu")


def _fill_holes_cpp(words: Tensor, height: int, width: int) -> Tensor:
    words, out = words.contiguous(), torch.empty_like(words, memory_format=torch.contiguous_format)
    scratch = _scratch(words, height, width)
    require_binary().mask_fill_holes(words, height, width, scratch, out, torch.get_num_threads())
    return out


def _largest_component_cpp(words: Tensor, height: int, width: int) -> Tensor:
    words, out = words.contiguous(), zero_words(len(words), (height, width))
    scratch = _scratch(words, height, width)
    require_binary().mask_largest_component(words, height, width, scratch, out, torch.get_num_threads())
    return out


def _boundary_cpp(words: Tensor, height: int, width: int) -> Tensor:
    words, out = words.contiguous(), torch.empty_like(words, memory_format=torch.contiguous_format)
    require_binary().mask_boundary(words, height, width, out, torch.get_num_threads())
    return out


def _resize_cpp(words: Tensor, height: int, width: int, new_height: int, new_width: int) -> Tensor:
    rows = reference.nearest_table(height, new_height)  # [new H]
    row_start = torch.searchsorted(rows, torch.arange(height + 1, device="cpu"))  # [H + 1], first target of row r
    columns = reference.nearest_table(width, new_width)  # [new W]
    out = zero_words(len(words), (new_height, new_width))
    binary, threads = require_binary(), torch.get_num_threads()
    binary.mask_resize(words.contiguous(), height, row_start, columns, new_height, out, threads)
    return out


@dataclass(frozen=True)
class _Runs:
    """The R runs of the columns of masks on a CUDA device.

    starts, stops: flat bits, half-open. labels: the first run of the component. masks: the mask. All int64 [R].
    """

    starts: Tensor
    stops: Tensor
    labels: Tensor
    masks: Tensor

    def paint(self, target: Tensor, words: Tensor) -> Tensor:
        """`words` with the pixels of each run set in mask target[run]; a negative target is skipped."""
        run_cuda("mask_paint_runs_cuda", words, self.starts, self.stops, target, words)
        return words


def _runs_cuda(words: Tensor, height: int, width: int, value: bool) -> _Runs:
    """Runs of the pixels that equal `value`: True for foreground, False for background."""
    num_runs = words.new_empty(len(words))  # [N]
    run_cuda("mask_num_column_runs_cuda", words, words, height, width, value, num_runs)
    first = F.pad(num_runs.cumsum(0), (1, 0))  # [N + 1]
    starts, stops, labels = words.new_empty((3, int(first[-1])))  # [R] each
    run_cuda("mask_label_runs_cuda", words, words, height, width, value, first, starts, stops, labels)
    masks = torch.repeat_interleave(torch.arange(len(words), device=words.device), num_runs)  # [R]
    return _Runs(starts, stops, labels, masks)


def _components_cuda(words: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    runs = _runs_cuda(words.contiguous(), height, width, True)
    is_root = runs.labels == torch.arange(len(runs.labels), device=words.device)  # [R]
    rank = is_root.cumsum(0) - 1  # [R], index of the component at its root
    owners = runs.masks[is_root]  # [components]
    return runs.paint(rank[runs.labels], words.new_zeros((len(owners), words.shape[1]))), owners


def _largest_component_cuda(words: Tensor, height: int, width: int) -> Tensor:
    runs = _runs_cuda(words.contiguous(), height, width, True)
    places = torch.arange(len(runs.labels), device=words.device)  # [R]
    sizes = torch.zeros_like(places).index_add_(0, runs.labels, runs.stops - runs.starts)  # [R], 0 except at roots
    most = words.new_zeros(len(words)).scatter_reduce_(0, runs.masks, sizes, "amax")  # [N]
    is_best = (sizes > 0) & (sizes == most[runs.masks])  # [R]
    best = words.new_full((len(words),), len(places))  # [N], the first root of that size
    best.scatter_reduce_(0, runs.masks[is_best], places[is_best], "amin")
    target = torch.where(best[runs.masks] == runs.labels, runs.masks, -1)  # [R]
    return runs.paint(target, torch.zeros_like(words, memory_format=torch.contiguous_format))


def _fill_holes_cuda(words: Tensor, height: int, width: int) -> Tensor:
    filled = words.clone(memory_format=torch.contiguous_format)
    if 0 in words.shape:
        return filled
    runs = _runs_cuda(filled, height, width, False)
    at_side = (runs.starts < height) | (runs.starts >= (width - 1) * height)
    at_border = at_side | (runs.starts % height == 0) | (runs.stops % height == 0)  # [R]
    is_open = torch.zeros_like(at_border)  # [R], at a root: whether its component touches the border
    is_open[runs.labels[at_border]] = True
    return runs.paint(torch.where(is_open[runs.labels], -1, runs.masks), filled)


def _boundary_cuda(words: Tensor, height: int, width: int) -> Tensor:
    out = torch.empty_like(words, memory_format=torch.contiguous_format)
    run_cuda("mask_boundary_cuda", words, words.contiguous(), height, width, out)
    return out


def _resize_cuda(words: Tensor, height: int, width: int, new_height: int, new_width: int) -> Tensor:
    rows = reference.nearest_table(height, new_height).to(words.device)  # [new H]
    columns = reference.nearest_table(width, new_width).to(words.device)  # [new W]
    out = words.new_empty((len(words), num_words((new_height, new_width))))
    run_cuda("mask_resize_cuda", words, words.contiguous(), height, rows, columns, out)
    return out


def _define(
    name: str, definition: Callable[..., Tensor], cpp: Callable[..., Tensor], cuda: Callable[..., Tensor]
) -> Operator:
    op = define_op(
        name,
        '(Tensor words, SymInt height, SymInt width, str backend="auto") -> Tensor',
        reference=definition,
        fake=lambda words, height, width: torch.empty_like(words, memory_format=torch.contiguous_format),
    )
    op.add_backend("cpp", cpp, why_not_cpp)
    op.add_backend("cuda", cuda, why_not_cuda)
    return op


_fill_holes = _define("mask_fill_holes", reference.mask_fill_holes, _fill_holes_cpp, _fill_holes_cuda)
_largest_component = _define(
    "mask_largest_component", reference.mask_largest_component, _largest_component_cpp, _largest_component_cuda
)
_boundary = _define("mask_boundary", reference.mask_boundary, _boundary_cpp, _boundary_cuda)
_resize = define_op(
    "mask_resize",
    '(Tensor words, SymInt height, SymInt width, SymInt new_height, SymInt new_width, str backend="auto") -> Tensor',
    reference=reference.mask_resize,
    fake=lambda words, height, width, new_height, new_width: words.new_empty(
        (words.shape[0], num_words((new_height, new_width)))
    ),
)
_resize.add_backend("cpp", _resize_cpp, why_not_cpp)
_resize.add_backend("cuda", _resize_cuda, why_not_cuda)
