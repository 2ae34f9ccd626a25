# SPDX-License-Identifier: Apache-2.0
"""merge_regions: one merge tree per image by greedy merging of adjacent regions, exactly or in rounds.

The order of merging (similarity, ties, zero and NaN features) is defined in `sohes/ops/reference/merge_regions.py`, for
rounds in `sohes/ops/reference/merge_rounds.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf, isnan

import torch
from torch import Tensor

from sohes.ops._binary import require_binary
from sohes.ops._cuda import run_cuda
from sohes.ops._library import Operator, define_op, refuse_tangents, why_not_cpp, why_not_cuda, why_not_triton
from sohes.ops.merge_tree import MergeTree
from sohes.ops.reference import merge_regions as reference
from sohes.ops.reference import merge_rounds as rounds_reference

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def merge_regions(
    features: Tensor | Sequence[Tensor],
    *,
    min_similarity: float = -inf,
    region_mask: Tensor | Sequence[Tensor] | None = None,
    schedule: str = "exact",
    backend: str = "auto",
) -> list[MergeTree]:
    """The merge tree of each image: adjacent patches merged, most similar pair first, until one region is left.

    Args:
        features: [h, w, C], [B, h, w, C], or a list of [h, w, C] of mixed sizes; float32, float16 or bfloat16, any
            device, any strides. Sums are float32 for every dtype.
        min_similarity: stop before the first merge below this; the tree then has no cuts at lower thresholds.
        region_mask: bool, in the shape of features without C; patches that are False are not merged and have no label.
        schedule: "exact" merges the best of all pairs, one at a time. "rounds" merges all mutually best pairs at once,
            which gives another tree and suits parallel devices; on a CPU "exact" is faster. Their agreement is
            measured in benchmarks/bench_merge_regions.py.
        backend: "auto", "cpp", "cuda", "triton" (exact only) or "reference".

    Returns:
        One MergeTree per image (a list of one for a single [h, w, C]), on the CPU, without gradients.

    Raises:
        ValueError: invalid shape, dtype, device or schedule. BackendUnavailable: see `sohes.ops._library`.
    """
    operator = _operator_for(schedule)
    images = _as_list(features, 3, "features [h, w, C], [B, h, w, C] or a list of [h, w, C]")
    _check_features(images)
    _check_min_similarity(min_similarity)
    refuse_tangents("merge_regions", *images)
    if not images:
        return []
    masks = None
    if region_mask is not None:
        masks = _as_list(region_mask, 2, "region_mask [h, w], [B, h, w] or a list of [h, w]")
        _check_masks(masks, images)
    packed = _pack(features, images)
    packed_mask = None if masks is None else torch.cat([mask.reshape(-1) for mask in masks]).to(packed.device)
    sizes = [side for image in images for side in image.shape[:2]]
    merges, similarity, num_merges = operator(packed, None, packed_mask, sizes, float(min_similarity), backend)

    merges, similarity, counts = merges.cpu(), similarity.cpu(), num_merges.tolist()
    trees, start = [], 0
    for i, image in enumerate(images):
        height, width = image.shape[:2]
        tree = MergeTree(
            num_leaves=height * width,
            merges=merges[start : start + counts[i]],
            similarity=similarity[start : start + counts[i]],
            grid=(height, width),
            min_similarity=min_similarity,
            leaf_mask=None if masks is None else masks[i].reshape(-1).cpu(),
        )
        trees.append(tree)
        start += height * width
    return trees


def merge_rounds(
    features: Tensor | Sequence[Tensor],
    *,
    min_similarity: float = -inf,
    region_mask: Tensor | Sequence[Tensor] | None = None,
    backend: str = "auto",
) -> list[MergeTree]:
    """The merge trees of `merge_regions` with `schedule="rounds"`: all mutually best pairs are merged at once."""
    return merge_regions(
        features, min_similarity=min_similarity, region_mask=region_mask, schedule="rounds", backend=backend
    )


def merge_regions_graph(
    features: Tensor,
    edges: Tensor,
    *,
    sizes: Tensor | None = None,
    min_similarity: float = -inf,
    schedule: str = "exact",
    backend: str = "auto",
) -> MergeTree:
    """The merge tree of arbitrary starting regions, such as superpixels, along a list of adjacent pairs.

    Args:
        features: [N, C], the mean feature of each starting region; float32, float16 or bfloat16.
        edges: int32 or int64 [E, 2], adjacent pairs of different regions, in any order, with or without repetition.
        sizes: int64 [N], patches or pixels of each starting region: its weight in the sums (the feature of a merged
            region is the sum of mean * size) and in the areas of the tree. None means 1 each.
        min_similarity, schedule, backend: as in merge_regions.

    Returns:
        A MergeTree with grid None.

    Raises:
        ValueError: invalid shape, dtype, id or schedule. BackendUnavailable: see `sohes.ops._library`.
    """
    operator = _operator_for(schedule)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"merge_regions_graph: expected features [N, C], none empty, got {list(features.shape)}")
    _check_dtype(features)
    _check_min_similarity(min_similarity)
    refuse_tangents("merge_regions_graph", features)
    num_leaves = features.shape[0]
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"merge_regions_graph: expected edges int64 [E, 2], got {edges.dtype} {list(edges.shape)}")
    edges = edges.to(device=features.device, dtype=torch.int64)
    if edges.numel() and (edges.min() < 0 or edges.max() >= num_leaves or (edges[:, 0] == edges[:, 1]).any()):
        raise ValueError(
            f"merge_regions_graph: expected edges between different regions in [0, {num_leaves}), "
            f"got ids from {int(edges.min())} to {int(edges.max())}, "
            f"{int((edges[:, 0] == edges[:, 1]).sum())} of the edges from a region to itself"
        )
    sums = features.detach()
    if sizes is not None:
        if sizes.shape != (num_leaves,) or sizes.dtype != torch.int64:
            raise ValueError(
                f"merge_regions_graph: expected sizes int64 [{num_leaves}], got {sizes.dtype} {list(sizes.shape)}"
            )
        sums = sums.float() * sizes.to(sums.device)[:, None].float()
    args = (sums.contiguous(), edges.contiguous(), None, [num_leaves, 1], float(min_similarity), backend)
    merges, similarity, num_merges = operator(*args)
    count = int(num_merges)
    return MergeTree(
        num_leaves=num_leaves,
        merges=merges[:count].cpu(),
        similarity=similarity[:count].cpu(),
        min_similarity=min_similarity,
        leaf_sizes=None if sizes is None else sizes.cpu(),
    )


def _fake(
    features: Tensor,
    edges: Tensor | None,
    region_mask: Tensor | None,
    grid_sizes: list[int],
    min_similarity: float,
) -> tuple[Tensor, Tensor, Tensor]:
    total = features.shape[0]
    return (
        features.new_empty((total, 2), dtype=torch.int32),
        features.new_empty((total,), dtype=torch.float32),
        features.new_empty((len(grid_sizes) // 2,), dtype=torch.int32),
    )


_SCHEMA = (
    "(Tensor features, Tensor? edges, Tensor? region_mask, SymInt[] grid_sizes, float min_similarity, "
    'str backend="auto") -> (Tensor merges, Tensor similarity, Tensor num_merges)'
)
OPERATOR = define_op("merge_regions", _SCHEMA, reference=reference.merge_regions, fake=_fake)
ROUNDS = define_op("merge_rounds", _SCHEMA, reference=rounds_reference.merge_rounds, fake=_fake)


def _operator_for(schedule: str) -> Operator:
    operators = {"exact": OPERATOR, "rounds": ROUNDS}
    if schedule not in operators:
        raise ValueError(f"merge_regions: unknown schedule '{schedule}', expected one of: {', '.join(operators)}")
    return operators[schedule]


def run_cpp(
    features: Tensor,
    edges: Tensor | None,
    region_mask: Tensor | None,
    grid_sizes: list[int],
    min_similarity: float,
    loops: str = "",
    in_rounds: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the C++ kernel with the loops of the instruction set `loops`, "" for the fastest."""
    kernels = require_binary()
    features = features.contiguous()
    outputs = _fake(features, edges, region_mask, grid_sizes, min_similarity)
    heights = torch.empty_like(outputs[1]) if in_rounds else None
    num_edges, num_threads = -1 if edges is None else len(edges), torch.get_num_threads()
    is_half, channels = features.dtype != torch.float32, features.shape[1]
    num_bytes = kernels.merge_regions_scratch(grid_sizes, num_edges, channels, is_half, num_threads, in_rounds)
    scratch = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")
    if edges is not None:
        pairs = edges.int().contiguous()
        kernels.merge_regions_graph(features, pairs, min_similarity, loops, scratch, *outputs, heights)
    else:
        mask = None if region_mask is None else region_mask.contiguous()
        kernels.merge_regions(
            features, mask, grid_sizes, min_similarity, num_threads, loops, scratch, *outputs, heights
        )
    return outputs if heights is None else _sort_merges(outputs, heights, edges, grid_sizes, min_similarity)


def _sort_merges(
    outputs: tuple[Tensor, Tensor, Tensor],
    heights: Tensor,
    edges: Tensor | None,
    grid_sizes: list[int],
    min_similarity: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges of rounds sorted by similarity, see `sohes.ops.reference.merge_rounds.sort_merges`."""
    merges, similarity, num_merges = outputs
    sizes = [height * width for height, width in zip(grid_sizes[::2], grid_sizes[1::2], strict=True)]
    if edges is not None:
        sizes = [len(merges)]
    return rounds_reference.sort_merges(merges, similarity, heights, num_merges, sizes, min_similarity)


def _run_cuda(
    features: Tensor,
    edges: Tensor | None,
    region_mask: Tensor | None,
    grid_sizes: list[int],
    min_similarity: float,
    in_rounds: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    sums = features.to(torch.float32, copy=True).contiguous()  # overwritten by the kernel
    outputs = _fake(features, edges, region_mask, grid_sizes, min_similarity)
    heights = torch.empty_like(outputs[1]) if in_rounds else None
    pairs = None if edges is None else edges.int().contiguous()
    mask = None if region_mask is None else region_mask.contiguous()
    table = require_binary().merge_regions_cuda_table(grid_sizes, -1 if pairs is None else len(pairs), in_rounds)
    scratch = torch.empty(table[-1], dtype=torch.uint8, device=features.device)
    spans = torch.tensor(table[:-1], dtype=torch.int64, device="cpu").to(features.device, non_blocking=True)
    inputs = (sums, pairs, mask, grid_sizes, spans)
    if heights is None:
        run_cuda("merge_regions_cuda", sums, *inputs, min_similarity, scratch, *outputs)
        return outputs
    run_cuda("merge_rounds_cuda", sums, *inputs, scratch, *outputs, heights)
    return _sort_merges(outputs, heights, edges, grid_sizes, min_similarity)


def _run_triton(
    features: Tensor,
    edges: Tensor | None,
    region_mask: Tensor | None,
    grid_sizes: list[int],
    min_similarity: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from sohes.ops.triton import merge_regions as kernels  # triton may not be installed

    return kernels.merge_regions(features, edges, region_mask, grid_sizes, min_similarity)


OPERATOR.add_backend("cpp", run=run_cpp, why_not=why_not_cpp)
OPERATOR.add_backend("cuda", run=_run_cuda, why_not=why_not_cuda)
OPERATOR.add_backend("triton", run=_run_triton, why_not=why_not_triton)
ROUNDS.add_backend("cpp", run=partial(run_cpp, in_rounds=True), why_not=why_not_cpp)
ROUNDS.add_backend("cuda", run=partial(_run_cuda, in_rounds=True), why_not=why_not_cuda)


def _as_list(value: Tensor | Sequence[Tensor], ndim: int, expected: str) -> list[Tensor]:
    """A list with one tensor per image, from one image, a batch or a list."""
    if isinstance(value, Tensor):
        value = value.unbind(0) if value.ndim == ndim + 1 else [value]
    for image in value:
        if image.ndim != ndim:
            raise ValueError(f"merge_regions: expected {expected}, got {list(image.shape)}")
    return list(value)


def _check_features(images: list[Tensor]) -> None:
    for image in images:
        _check_dtype(image)
        if 0 in image.shape:
            raise ValueError(f"merge_regions: expected at least one patch and channel, got {list(image.shape)}")
        first = images[0]
        if (image.shape[2], image.dtype, image.device) != (first.shape[2], first.dtype, first.device):
            raise ValueError(
                "merge_regions: expected images of one number of channels, dtype and device, "
                f"got {first.shape[2]} {first.dtype} {first.device} and {image.shape[2]} {image.dtype} {image.device}"
            )


def _check_dtype(features: Tensor) -> None:
    if features.dtype not in _DTYPES:
        raise ValueError(f"merge_regions: expected float32, float16 or bfloat16 features, got {features.dtype}")


def _check_min_similarity(min_similarity: float) -> None:
    if isnan(min_similarity):
        raise ValueError("merge_regions: min_similarity is NaN; -inf merges everything")


def _check_masks(masks: list[Tensor], images: list[Tensor]) -> None:
    shapes, expected = [list(mask.shape) for mask in masks], [list(image.shape[:2]) for image in images]
    if shapes != expected:
        raise ValueError(f"merge_regions: expected region_mask of sizes {expected}, got {shapes}")
    for mask in masks:
        if mask.dtype != torch.bool:
            raise ValueError(f"merge_regions: expected a bool region_mask, got {mask.dtype}")


def _pack(features: Tensor | Sequence[Tensor], images: list[Tensor]) -> Tensor:
    """Features of all images [T, C], contiguous; not copied if the input is one contiguous tensor."""
    channels = images[0].shape[2]
    if isinstance(features, Tensor):
        return features.detach().reshape(-1, channels).contiguous()
    if len(images) == 1:
        return images[0].detach().reshape(-1, channels).contiguous()
    return torch.cat([image.detach().reshape(-1, channels) for image in images])
