# SPDX-License-Identifier: Apache-2.0
"""Connected regions, outlines and resizing of packed masks: operators over words, or PackedMasks.

Connectivity and ties are defined in `sohes/ops/reference/mask_regions.py`; results are the same on every backend.
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
    """Each mask with every background region (4-connected) that does not reach the border of the image.

    Takes and gives PackedMasks, or words int64 [N, V] of masks of `size` (H, W); so do the others below.
    """
    return _map("mask_fill_holes", _fill_holes, masks, size, backend)


@overload
def mask_largest_component(masks: Packed, *, backend: str = "auto") -> Packed: ...
@overload
def mask_largest_component(masks: Tensor, size: Size, backend: str = "auto") -> Tensor: ...
def mask_largest_component(masks: Any, size: Size | None = None, backend: str = "auto") -> Any:
    """Each mask's component (8-connected) with the most pixels; empty masks stay empty."""
    return _map("mask_largest_component", _largest_component, masks, size, backend)


@overload
def mask_boundary(masks: Packed, *, backend: str = "auto") -> Packed: ...
@overload
def mask_boundary(masks: Tensor, size: Size, backend: str = "auto") -> Tensor: ...
def mask_boundary(masks: Any, size: Size | None = None, backend: str = "auto") -> Any:
    """Pixels inside with one of their 4 neighbours outside; beyond the image is outside."""
    return _map("mask_boundary", _boundary, masks, size, backend)


@overload
def mask_resize(masks: Packed, new_size: Size, *, backend: str = "auto") -> Packed: ...
@overload
def mask_resize(masks: Tensor, size: Size, new_size: Size, backend: str = "auto") -> Tensor: ...
def mask_resize(masks: Any, size: Size | None = None, new_size: Size | None = None, backend: str = "auto") -> Any:
    """Masks of `new_size`, each pixel the one at its centre (nearest): of PackedMasks, or of words and their `size`.

    Raises ValueError where there is no pixel to take.
    """
    if not isinstance(masks, Tensor) and new_size is None:
        size, new_size = None, size  # the one size that is given is the new one
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
    """All components (8-connected) of all masks, R in number, and the mask int64 [R] that each is of.

    A plain function, since R depends on the data. Runs in C++ or CUDA where the binary is there.
    """
    words, size = words_of("mask_components", masks, size)
    parts, owners = _components(words, size)
    return like_masks(masks, parts, size), owners


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
    """Room for the runs of any one of the masks, for each thread."""
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
    row_start = torch.searchsorted(
        rows, torch.arange(height + 1, device="cpu")
    )  # [H + 1], first pixel that shows row r or a later one
    columns = reference.nearest_table(width, new_width)  # [new W]
    out = zero_words(len(words), (new_height, new_width))
    binary, threads = require_binary(), torch.get_num_threads()
    binary.mask_resize(words.contiguous(), height, row_start, columns, new_height, out, threads)
    return out


@dataclass(frozen=True)
class _Runs:
    """The runs of the columns of masks on a CUDA device, R in all: where each lies (flat bits, half-open), the first
    run of its component, and its mask. All int64 [R]."""

    starts: Tensor
    stops: Tensor
    labels: Tensor
    masks: Tensor

    def paint(self, target: Tensor, words: Tensor) -> Tensor:
        """Sets the pixels of each run in the mask target[run] of `words`, nowhere where that is negative."""
        run_cuda("mask_paint_runs_cuda", words, self.starts, self.stops, target, words)
        return words


def _runs_cuda(words: Tensor, height: int, width: int, value: bool) -> _Runs:
    """Runs of the pixels that are inside, or outside."""
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
    rank = is_root.cumsum(0) - 1  # [R], of a root the number of its component
    owners = runs.masks[is_root]  # [components]
    return runs.paint(rank[runs.labels], words.new_zeros((len(owners), words.shape[1]))), owners


def _largest_component_cuda(words: Tensor, height: int, width: int) -> Tensor:
    runs = _runs_cuda(words.contiguous(), height, width, True)
    places = torch.arange(len(runs.labels), device=words.device)  # [R]
    sizes = torch.zeros_like(places).index_add_(0, runs.labels, runs.stops - runs.starts)  # [R], 0 but for roots
    most = words.new_zeros(len(words)).scatter_reduce_(0, runs.masks, sizes, "amax")  # [N]
    is_best = (sizes > 0) & (sizes == most[runs.masks])  # [R]
    best = words.new_full((len(words),), len(places))  # [N], the first root of so many pixels
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
    is_open = torch.zeros_like(at_border)  # [R], of a root whether its component reaches the border
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
    name: str, definition: Callable[..., Tensor], run_cpp: Callable[..., Tensor], run_on_cuda: Callable[..., Tensor]
) -> Operator:
    op = define_op(
        name,
        '(Tensor words, SymInt height, SymInt width, str backend="auto") -> Tensor',
        reference=definition,
        fake=lambda words, height, width: torch.empty_like(words, memory_format=torch.contiguous_format),
    )
    op.add_backend("cpp", run_cpp, why_not_cpp)
    op.add_backend("cuda", run_on_cuda, why_not_cuda)
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
