# SPDX-License-Identifier: Apache-2.0
"""Operators between packed masks and dense masks, logits and index maps.

The layout of the bits is defined in `sohes/ops/reference/mask_pack.py`. All backends return equal results.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sohes.ops._binary import find_binary, require_binary
from sohes.ops._cuda import run_cuda
from sohes.ops._library import define_op, refuse_tangents, why_not_cpp, why_not_cuda
from sohes.ops._words import PackedLike, Size, reused_words, zero_words
from sohes.ops.reference import mask_pack as reference
from sohes.ops.reference.mask_pack import num_words

MASKS_AT_A_TIME = 64  # masks made contiguous at a time: one cache line of an array [H, W, N]


def mask_pack(dense: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    """Words int64 [N, V], areas int64 [N] and boxes int64 [N, 4] of dense masks, bool or uint8 [N, H, W]."""
    if dense.ndim != 3 or dense.dtype not in (torch.bool, torch.uint8):
        raise ValueError(f"mask_pack: expected bool or uint8 [N, H, W], got {dense.dtype} {list(dense.shape)}")
    return _pack(dense, backend)


def mask_unpack(words: Tensor, size: tuple[int, int], backend: str = "auto") -> Tensor:
    """Dense masks bool [N, H, W] from words int64 [N, V] and their `size` (H, W)."""
    return _unpack(words, *size, backend)


def mask_stats(words: Tensor, size: tuple[int, int], backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Areas int64 [N] and boxes int64 [N, 4] (x0, y0, x1, y1, half-open) from words int64 [N, V] and (H, W)."""
    return _stats(words, *size, backend)


def mask_pack_logits(
    logits: Tensor, size: tuple[int, int], threshold: float, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Words, areas and boxes of the masks where logits [N, h, w], upsampled bilinearly to `size`, are > threshold."""
    if logits.ndim != 3 or not logits.is_floating_point():
        raise ValueError(
            f"mask_pack_logits: expected floating-point [N, h, w], got {logits.dtype} {list(logits.shape)}"
        )
    if 0 in logits.shape[1:] and 0 not in size:
        raise ValueError(f"mask_pack_logits: cannot upsample {list(logits.shape)} to {list(size)}")
    refuse_tangents("mask_pack_logits", logits)
    return _pack_logits(logits.detach(), *size, float(threshold), backend)


def mask_take(words: Tensor, boxes: Tensor, height: int, index: Tensor, out: Tensor | None = None) -> Tensor:
    """words[index], int64 [K, V], copied only inside the boxes of the masks.

    Args:
        words, boxes: int64 [N, V] and [N, 4] of masks of this height.
        index: int64 [K], from 0 to N - 1.
        out: zeros int64 [K, V], contiguous, to fill and return; None allocates them.
    """
    binary = find_binary().module
    if binary is None or not words.is_cpu or len(index) == 0:
        return words[index] if out is None else out.copy_(words[index])
    out = zero_words(len(index), (words.shape[1] * 64, 1)) if out is None else out
    binary.mask_take(words.contiguous(), boxes.contiguous(), height, index.contiguous(), out, torch.get_num_threads())
    return out


def mask_cat(sets: Sequence[PackedLike]) -> Tensor:
    """The words of all sets of one size and device, int64 [N, V], one set after the other.

    On the CPU only words inside the boxes are read and written: the masks of five looks take 6 ms, by `torch.cat` 25.
    """
    if find_binary().module is None or not all(masks.words.is_cpu for masks in sets):
        return torch.cat([masks.words for masks in sets])
    out, first = zero_words(sum(len(masks.words) for masks in sets), sets[0].size), 0
    for masks in sets:
        index = torch.arange(len(masks.words), device="cpu")
        mask_take(masks.words, masks.boxes, masks.size[0], index, out=out[first : first + len(index)])
        first += len(index)
    return out


def mask_from_index(index: Tensor, num_masks: int, backend: str = "auto") -> Tensor:
    """Words int64 [num_masks, V] from the index of the mask at each pixel, int64 [H, W], -1 for none."""
    return _from_index(index, num_masks, backend)


def _new_stats(like: Tensor) -> tuple[Tensor, Tensor]:
    """Empty tensors for areas and boxes of len(like) masks, on the device of `like`."""
    areas = torch.empty(like.shape[0], dtype=torch.int64, device=like.device)
    return areas, torch.empty((like.shape[0], 4), dtype=torch.int64, device=like.device)


def _fake_packed(like: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    words = torch.empty((like.shape[0], num_words(size)), dtype=torch.int64, device=like.device)
    return words, *_new_stats(like)


def _pack_cpp(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    N, H, W = dense.shape
    words, is_zero = reused_words(N, (H, W))
    out = (words, *_new_stats(dense))
    threads = torch.get_num_threads()
    scratch = words.new_zeros((0 if is_zero else threads, words.shape[1]))
    is_column_major = dense.stride(1) == 1 and dense.stride(2) == H
    is_packable = dense.stride(2) == 1 or is_column_major
    step = max(N, 1) if is_packable else MASKS_AT_A_TIME
    for start in range(0, N, step):
        chunk = dense[start : start + step]
        args = (t[start : start + step] for t in out)
        require_binary().mask_pack(chunk if is_packable else chunk.contiguous(), scratch, *args, threads)
    return out


def _unpack_cpp(words: Tensor, height: int, width: int) -> Tensor:
    dense = torch.empty((len(words), height, width), dtype=torch.bool, device="cpu")
    require_binary().mask_unpack(words.contiguous(), dense, torch.get_num_threads())
    return dense


def _stats_cpp(words: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    out = _new_stats(words)
    require_binary().mask_stats(words.contiguous(), height, width, *out, torch.get_num_threads())
    return out


def _tables(source: Size, target: Size) -> tuple[Tensor, ...]:
    """Tables of bilinear upsampling: rows, row starts, row weights, columns, column weights.

    rows [H] and columns [W] give the source row and column. Row start [h + 1] gives the first target row that reads
    this or a later source row.
    """
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
    for chunk in reference.chunks(N, h * w):  # limits the memory of copies in float32
        values = logits[chunk].float().contiguous()
        binary.mask_pack_logits(values, threshold, *tables, scratch, *(t[chunk] for t in out), threads)
    return out


def _zero_packed(like: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros for words, areas and boxes of len(like) masks, on the device of `like`."""
    words = torch.zeros((len(like), num_words(size)), dtype=torch.int64, device=like.device)
    return words, words.new_zeros(len(like)), words.new_zeros((len(like), 4))


def _pack_cuda(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out = _zero_packed(dense, (dense.shape[1], dense.shape[2]))
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
    needs_copy = logits.dtype != torch.float32 or not logits.is_contiguous()
    for chunk in reference.chunks(N, h * w) if needs_copy else [slice(N)]:  # limits the memory of copies in float32
        values = logits[chunk].float().contiguous()
        run_cuda("mask_pack_logits_cuda", logits, values, threshold, *tables, *(t[chunk] for t in out))
    return out


def _from_index_cuda(index: Tensor, num_masks: int) -> Tensor:
    shape = (num_masks, num_words((index.shape[0], index.shape[1])))
    words = torch.zeros(shape, dtype=torch.int64, device=index.device)
    run_cuda("mask_from_index_cuda", index, index.T.contiguous(), words)
    return words


def _from_index_cpp(index: Tensor, num_masks: int) -> Tensor:
    words = zero_words(num_masks, (index.shape[0], index.shape[1]))
    require_binary().mask_from_index(index.T.contiguous(), words)
    return words


def _fake_from_index(index: Tensor, num_masks: int) -> Tensor:
    return index.new_empty((num_masks, num_words((index.shape[0], index.shape[1]))))


_pack = define_op(
    "mask_pack",
    '(Tensor dense, str backend="auto") -> (Tensor words, Tensor areas, Tensor boxes)',
    reference=reference.mask_pack,
    fake=lambda dense: _fake_packed(dense, (dense.shape[1], dense.shape[2])),
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
