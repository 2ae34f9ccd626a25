# SPDX-License-Identifier: Apache-2.0
"""mask_pairs: the pairs of packed masks of one image whose IoU is large."""

from __future__ import annotations

import torch
from torch import Tensor

import sohes.ops.mask_overlap  # noqa: F401 - registers the operator that the reference calls
from sohes.ops._binary import require_binary
from sohes.ops._library import define_op, why_not_cpp
from sohes.ops._words import PackedLike
from sohes.ops.reference import mask_pairs as reference

PAIRS_OF_MASK = 64  # room for the first try, on average; a second one has room for all


def mask_pairs(masks: PackedLike, min_iou: float, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Pairs int64 [E, 2], i < j, of masks with an IoU of at least `min_iou`, sorted, and their IoU float32 [E].

    Args:
        masks: N PackedMasks; N and the masks may be empty. Two empty masks are no pair.
        min_iou: in (0, 1]. Decided on exact integers, shared >= min_iou * union with the product in float64.
        backend: "auto", "cpp" or "reference". The reference also runs on other devices, by `mask_overlap`.

    Raises:
        TypeError: not PackedMasks. ValueError: `min_iou` is not in (0, 1]. BackendUnavailable: see
        `sohes.ops._library`.
    """
    if not hasattr(masks, "words"):
        raise TypeError(f"mask_pairs: expected PackedMasks, got {type(masks).__name__}")
    if not 0 < min_iou <= 1:
        raise ValueError(f"mask_pairs: expected min_iou in (0, 1], got {min_iou}")
    return _pairs(masks.words, masks.areas, masks.boxes, float(min_iou), masks.size[0], backend)


def _run_cpp(words: Tensor, areas: Tensor, boxes: Tensor, min_iou: float, height: int) -> tuple[Tensor, Tensor]:
    words, areas, boxes = (t.contiguous() for t in (words, areas, boxes))
    num, order = len(words), areas.argsort(stable=True)  # the order of equal areas does not matter
    binary, threads = require_binary(), torch.get_num_threads()
    scratch = areas.new_empty(binary.mask_pairs_scratch(num))
    count, room = 0, min(num * (num - 1) // 2, PAIRS_OF_MASK * num)
    while True:  # at most twice
        found = areas.new_empty((room, 3))
        count = binary.mask_find_pairs(words, areas, boxes, order, min_iou, height, scratch, found, threads)
        if count <= room:
            break
        room = count
    pairs, iou = areas.new_empty((count, 2)), areas.new_empty(count, dtype=torch.float32)
    binary.mask_sort_pairs(found, areas, areas.new_empty(num + 1), pairs, iou, threads)
    return pairs, iou


def _fake(words: Tensor, areas: Tensor, boxes: Tensor, min_iou: float, height: int) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return areas.new_empty((count, 2)), areas.new_empty(count, dtype=torch.float32)


_pairs = define_op(
    "mask_pairs",
    '(Tensor words, Tensor areas, Tensor boxes, float min_iou, SymInt height, str backend="auto") '
    "-> (Tensor pairs, Tensor iou)",
    reference=reference.mask_pairs,
    fake=_fake,
)
_pairs.add_backend("cpp", _run_cpp, why_not_cpp)
