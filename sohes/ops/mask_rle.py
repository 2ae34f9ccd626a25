# SPDX-License-Identifier: Apache-2.0
"""COCO RLE of packed masks, encoded and decoded, equal to pycocotools bit by bit. Not torch operators: RLE is text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sohes.ops._binary import find_binary
from sohes.ops._cuda import run_cuda
from sohes.ops._library import why_not_cuda
from sohes.ops._words import zero_words
from sohes.ops.reference import mask_rle as reference
from sohes.ops.reference.mask_rle import Counts

CHUNK_CHARACTERS = 1 << 25  # characters of text encoded at a time, to limit memory


def encode_rle(words: Tensor, num_pixels: int, boxes: Tensor | None = None, height: int = 0) -> list[str]:
    """Compressed `counts` of N masks.

    Args:
        words: int64 [N, V] on any device.
        num_pixels: H * W of a mask.
        boxes, height: int64 [N, 4] and H; with them only words inside the boxes are read.
    """
    if why_not_cuda(words.device, words.dtype) is None:
        return _encode_cuda(words.contiguous(), num_pixels)
    words = words.cpu().contiguous()
    binary = find_binary().module
    if binary is None:
        return reference.encode_rle(words, num_pixels)
    threads = torch.get_num_threads()
    num_runs = torch.empty(len(words), dtype=torch.int64, device="cpu")  # [N]
    boxes = words.new_empty(0) if boxes is None else boxes.cpu().contiguous()
    binary.mask_num_runs(words, num_pixels, boxes, height, num_runs, threads)
    capacity = num_runs * (num_pixels.bit_length() // 5 + 1) + binary.RLE_SLACK  # [N], characters
    counts: list[str] = []
    for chunk in _chunks(capacity):
        stops = capacity[chunk].cumsum(0)  # [n]
        starts = stops - capacity[chunk]  # [n]
        text = torch.empty(int(stops[-1]), dtype=torch.uint8, device="cpu")
        lengths = torch.empty_like(starts)  # [n]
        binary.rle_encode(words[chunk], num_pixels, boxes[chunk], height, starts, text, lengths, threads)
        letters = text.numpy().data
        ends = (starts + lengths).tolist()
        counts += [str(letters[start:end], "ascii") for start, end in zip(starts.tolist(), ends, strict=True)]
    return counts


def decode_rle(counts: Sequence[Counts], num_pixels: int) -> Tensor:
    """Words int64 [N, V] on the CPU from N `counts`, compressed (str or bytes) or lists of run lengths.

    Raises ValueError if a string is not RLE or is truncated, a run is negative, or the runs do not sum to num_pixels.
    """
    binary = find_binary().module
    if binary is None:
        return reference.decode_rle(counts, num_pixels)
    texts = [_as_bytes(one) for one in counts]
    offsets = torch.tensor([0, *map(len, texts)], dtype=torch.int64, device="cpu").cumsum(0)  # [N + 1]
    text = torch.frombuffer(bytearray(b"".join(texts) or b" "), dtype=torch.uint8)
    words = zero_words(len(texts), (num_pixels, 1))  # [N, V]
    ok = torch.empty(len(texts), dtype=torch.bool, device="cpu")  # [N]
    binary.rle_decode(text, offsets, num_pixels, words, ok, torch.get_num_threads())
    if not ok.all():
        reference.decode_rle([counts[int(ok.long().argmin())]], num_pixels)  # raises the error of the first invalid one
    return words


def _encode_cuda(words: Tensor, num_pixels: int) -> list[str]:
    """Compressed `counts`, encoded on the device; only the text is copied to the host."""
    num_runs = words.new_empty(len(words))  # [N]
    run_cuda("mask_num_runs_cuda", words, words, num_pixels, num_runs)
    counts: list[str] = []
    for chunk in _chunks(8 * num_runs.cpu()):
        first = F.pad(num_runs[chunk].cumsum(0), (1, 0))  # [n + 1]
        stops = words.new_empty(int(first[-1]))  # [R], the pixel after each run
        lengths = torch.empty_like(stops)  # [R], characters of each run
        run_cuda("rle_stops_cuda", words, words[chunk], num_pixels, first, stops)
        run_cuda("rle_lengths_cuda", words, stops, first, lengths)
        text_stops = lengths.cumsum(0)  # [R]
        ends = text_stops[first[1:] - 1].tolist()  # n
        text = torch.empty(ends[-1], dtype=torch.uint8, device=words.device)
        run_cuda("rle_text_cuda", words, stops, first, text_stops, text)
        letters = text.cpu().numpy().data
        counts += [str(letters[start:end], "ascii") for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return counts


def _as_bytes(counts: Counts) -> bytes:
    if isinstance(counts, bytes):
        return counts
    if isinstance(counts, str):
        return counts.encode()  # characters other than ASCII become bytes above 127, which are refused
    return reference.compress(reference.plain_runs(counts)).encode("ascii")


def _chunks(capacity: Tensor) -> Iterator[slice]:
    """Slices of masks whose text needs at most CHUNK_CHARACTERS, or of a single mask."""
    start, used = 0, 0
    for index, need in enumerate(capacity.tolist()):
        if used and used + need > CHUNK_CHARACTERS:
            yield slice(start, index)
            start, used = index, 0
        used += need
    if used:
        yield slice(start, len(capacity))
