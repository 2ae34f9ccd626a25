# SPDX-License-Identifier: Apache-2.0
"""Dense masks, logits and label maps to packed masks, and back: operators over tensors.

The layout of the bits is defined in `sohes/ops/reference/mask_pack.py`. All results are exact and the same on every
backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.ops._binary import find_binary, require_binary
from sohes.ops._cuda import run_cuda
from sohes.ops._library import define_op, refuse_tangents, why_not_cpp, why_not_cuda
from sohes.ops._words import num_words, reused_words, zero_words
from sohes.ops.reference import mask_pack as reference

MASKS_AT_A_TIME = 64  # masks copied at a time to bring their pixels side by side: one cache line of a masks-last array


def mask_pack(dense: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    """bool or uint8 [N, H, W] of any strides -> words int64 [N, V], areas int64 [N], boxes int64 [N, 4]."""
    if dense.ndim != 3 or dense.dtype not in (torch.bool, torch.uint8):
        raise ValueError(f"mask_pack: expected bool or uint8 [N, H, W], got {dense.dtype} {list(dense.shape)}")
    return _pack(dense, backend)


def mask_unpack(words: Tensor, size: tuple[int, int], backend: str = "auto") -> Tensor:
    """words int64 [N, V] of masks of `size` (H, W) -> bool [N, H, W]."""
    return _unpack(words, *size, backend)


def mask_stats(words: Tensor, size: tuple[int, int], backend: str = "auto") -> tuple[Tensor, Tensor]:
    """words int64 [N, V] of masks of this (H, W) -> areas int64 [N], boxes int64 [N, 4]: half-open x0, y0, x1, y1."""
    return _stats(words, *size, backend)


def mask_pack_logits(
    logits: Tensor, size: tuple[int, int], threshold: float, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Floating-point [N, h, w] -> words, areas, boxes of the masks where the bilinear upsampling is > threshold."""
    if logits.ndim != 3 or not logits.is_floating_point():
        raise ValueError(
            f"mask_pack_logits: expected floating-point [N, h, w], got {logits.dtype} {list(logits.shape)}"
        )
    if 0 in logits.shape[1:] and 0 not in size:
        raise ValueError(f"mask_pack_logits: cannot upsample {list(logits.shape)} to {list(size)}")
    refuse_tangents("mask_pack_logits", logits)
    return _pack_logits(logits.detach(), *size, float(threshold), backend)


def mask_take(words: Tensor, boxes: Tensor, height: int, index: Tensor, out: Tensor | None = None) -> Tensor:
    """words int64 [N, V] and boxes of masks of this height -> words[index], for index int64 [K] from 0 to N - 1.

    out: zeros int64 [K, V], contiguous, to be filled and returned; of them only what the boxes reach is touched.
    """
    binary = find_binary().module
    if binary is None or not words.is_cpu or len(index) == 0:
        return words[index] if out is None else out.copy_(words[index])
    out = zero_words(len(index), (words.shape[1] * 64, 1)) if out is None else out
    binary.mask_take(words.contiguous(), boxes.contiguous(), height, index.contiguous(), out, torch.get_num_threads())
    return out


def mask_from_index(index: Tensor, num_masks: int, backend: str = "auto") -> Tensor:
    """int64 [H, W], for each pixel the mask (below num_masks) that holds it or -1 -> words int64 [num_masks, V]."""
    return _from_index(index, num_masks, backend)


def _new_stats(like: Tensor) -> tuple[Tensor, Tensor]:
    """Areas and boxes for as many masks as `like` has."""
    areas = torch.empty(like.shape[0], dtype=torch.int64, device=like.device)
    return areas, torch.empty((like.shape[0], 4), dtype=torch.int64, device=like.device)


def _fake_packed(like: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    words = torch.empty((like.shape[0], num_words(size)), dtype=torch.int64, device=like.device)
    return words, *_new_stats(like)


def _pack_cpp(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    N, H, W = dense.shape
    words, is_zero = reused_words(N, (H, W))
    out = (words, *_new_stats(dense))
    threads = torch.get_num_threads()
    scratch = words.new_zeros((0 if is_zero else threads, words.shape[1]))
    columns_first = dense.stride(1) == 1 and dense.stride(2) == H
    side_by_side = dense.stride(2) == 1 or columns_first
    step = max(N, 1) if side_by_side else MASKS_AT_A_TIME
    for start in range(0, N, step):
        part = dense[start : start + step]
        args = (t[start : start + step] for t in out)
        require_binary().mask_pack(part if side_by_side else part.contiguous(), scratch, *args, threads)
    return out


def _unpack_cpp(words: Tensor, height: int, width: int) -> Tensor:
    dense = torch.empty((len(words), height, width), dtype=torch.bool, device="cpu")
    require_binary().mask_unpack(words.contiguous(), dense, torch.get_num_threads())
    return dense


def _stats_cpp(words: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    out = _new_stats(words)
    require_binary().mask_stats(words.contiguous(), height, width, *out, torch.get_num_threads())
    return out


def _tables(source: tuple[int, int], target: tuple[int, int]) -> tuple[Tensor, ...]:
    """What the kernels read where: of each row its source row, of each source row the first row that reads it or a
    later one, weights of the rows; then of each column its source column, weights of the columns."""
    rows, row_weight = reference.bilinear_table(source[0], target[0])  # [H]
    columns, column_weight = reference.bilinear_table(source[1], target[1])  # [W]
    return rows, torch.searchsorted(rows, torch.arange(source[0] + 1, device="cpu")), row_weight, columns, column_weight


def _pack_logits_cpp(logits: Tensor, height: int, width: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    N, h, w = logits.shape
    out = (zero_words(N, (height, width)), *_new_stats(logits))
    if out[0].numel() == 0:
        return reference.mask_pack_logits(logits, height, width, threshold)
    tables = _tables((h, w), (height, width))[1:]
    threads = torch.get_num_threads()
    binary = require_binary()
    scratch = torch.empty((threads, binary.mask_pack_logits_scratch(h, w)), dtype=torch.int64, device="cpu")
    for part in reference.chunks(N, h * w):  # float32 copies of other types stay small
        values = logits[part].float().contiguous()
        binary.mask_pack_logits(values, threshold, *tables, scratch, *(t[part] for t in out), threads)
    return out


def _zero_packed(like: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Words, areas and boxes of as many masks as `like` has, on its device, full of zeros."""
    words = torch.zeros((len(like), num_words(size)), dtype=torch.int64, device=like.device)
    return words, words.new_zeros(len(like)), words.new_zeros((len(like), 4))


def _pack_cuda(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out = _zero_packed(dense, tuple(dense.shape[1:]))
    run_cuda("mask_pack_cuda", dense, dense, *out)
    return out


def _unpack_cuda(words: Tensor, height: int, width: int) -> Tensor:
    dense = torch.empty((len(words), height, width), dtype=torch.bool, device=words.device)
    run_cuda("mask_unpack_cuda", words, words.contiguous(), dense)
    return dense


def _stats_cuda(words: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    areas, boxes = words.new_zeros(len(words)), words.new_zeros((len(words), 4))
    run_cuda("mask_stats_cuda", words, words.contiguous(), height, width, areas, boxes)
    return areas, boxes


def _pack_logits_cuda(logits: Tensor, height: int, width: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    N, h, w = logits.shape
    out = _zero_packed(logits, (height, width))
    if out[0].numel() == 0:
        return out
    tables = [t.to(logits.device, non_blocking=True) for t in _tables((h, w), (height, width))]
    ready = logits.dtype == torch.float32 and logits.is_contiguous()
    for part in [slice(N)] if ready else reference.chunks(N, h * w):  # copies as float32 stay small
        values = logits[part].float().contiguous()
        run_cuda("mask_pack_logits_cuda", logits, values, threshold, *tables, *(t[part] for t in out))
    return out


def _from_index_cuda(index: Tensor, num_masks: int) -> Tensor:
    words = torch.zeros((num_masks, num_words(tuple(index.shape))), dtype=torch.int64, device=index.device)
    run_cuda("mask_from_index_cuda", index, index.T.contiguous(), words)
    return words


def _from_index_cpp(index: Tensor, num_masks: int) -> Tensor:
    words = zero_words(num_masks, tuple(index.shape))
    require_binary().mask_from_index(index.T.contiguous(), words)
    return words


def _fake_from_index(index: Tensor, num_masks: int) -> Tensor:
    return index.new_empty((num_masks, num_words(tuple(index.shape))))


_pack = define_op(
    "mask_pack",
    '(Tensor dense, str backend="auto") -> (Tensor words, Tensor areas, Tensor boxes)',
    reference=reference.mask_pack,
    fake=lambda dense: _fake_packed(dense, tuple(dense.shape[1:])),
)
_unpack = define_op(
    "mask_unpack",
    '(Tensor words, SymInt height, SymInt width, str backend="auto") -> Tensor',
    reference=reference.mask_unpack,
    fake=lambda words, height, width: words.new_empty((words.shape[0], height, width), dtype=torch.bool),
)
_stats = define_op(
    "mask_stats",
    '(Tensor words, SymInt height, SymInt width, str backend="auto") -> (Tensor areas, Tensor boxes)',
    reference=reference.mask_stats,
    fake=lambda words, height, width: _new_stats(words),
)
_pack_logits = define_op(
    "mask_pack_logits",
    "(Tensor logits, SymInt height, SymInt width, float threshold, "
    'str backend="auto") -> (Tensor words, Tensor areas, Tensor boxes)',
    reference=reference.mask_pack_logits,
    fake=lambda logits, height, width, threshold: _fake_packed(logits, (height, width)),
)
_from_index = define_op(
    "mask_from_index",
    '(Tensor index, SymInt num_masks, str backend="auto") -> Tensor',
    reference=reference.mask_from_index,
    fake=_fake_from_index,
)
for _op, _cpp, _cuda in (
    (_pack, _pack_cpp, _pack_cuda),
    (_unpack, _unpack_cpp, _unpack_cuda),
    (_stats, _stats_cpp, _stats_cuda),
    (_pack_logits, _pack_logits_cpp, _pack_logits_cuda),
    (_from_index, _from_index_cpp, _from_index_cuda),
):
    _op.add_backend("cpp", _cpp, why_not_cpp)
    _op.add_backend("cuda", _cuda, why_not_cuda)
