# SPDX-License-Identifier: Apache-2.0
"""COCO RLE of packed masks, both ways, bit-identical with pycocotools. Plain functions: strings are no tensors."""

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

CHUNK_CHARACTERS = 1 << 25  # room for text alive at a time, so that many noisy masks do not need it all at once


def encode_rle(words: Tensor, num_pixels: int, boxes: Tensor | None = None, height: int = 0) -> list[str]:
    """words int64 [N, V] of masks of so many pixels, on any device -> N compressed `counts`.

    With boxes int64 [N, 4] of masks of this height only the words that they reach are read.
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
    room = num_runs * (num_pixels.bit_length() // 5 + 1) + binary.RLE_SLACK  # [N]
    counts: list[str] = []
    for part in _parts(room):
        stops = room[part].cumsum(0)  # [n]
        starts = stops - room[part]  # [n]
        text = torch.empty(int(stops[-1]), dtype=torch.uint8, device="cpu")
        lengths = torch.empty_like(starts)  # [n]
        binary.rle_encode(words[part], num_pixels, boxes[part], height, starts, text, lengths, threads)
        letters = memoryview(text.numpy())
        ends = (starts + lengths).tolist()
        counts += [str(letters[start:end], "ascii") for start, end in zip(starts.tolist(), ends, strict=True)]
    return counts


def decode_rle(counts: Sequence[Counts], num_pixels: int) -> Tensor:
    """N `counts`, compressed (str or bytes) or plain run lengths -> words int64 [N, V] on the CPU.

    Raises ValueError when a string is no RLE or cut short, a run is negative, or the runs do not come to num_pixels.
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
        reference.decode_rle([counts[int(ok.long().argmin())]], num_pixels)  # says what is wrong with the first bad one
    return words


def _encode_cuda(words: Tensor, num_pixels: int) -> list[str]:
    """Runs and text are made on the device; only the text comes to the host."""
    num_runs = words.new_empty(len(words))  # [N]
    run_cuda("mask_num_runs_cuda", words, words, num_pixels, num_runs)
    counts: list[str] = []
    for part in _parts(8 * num_runs.cpu()):
        first = F.pad(num_runs[part].cumsum(0), (1, 0))  # [n + 1]
        stops = words.new_empty(int(first[-1]))  # [R], the pixel past each run
        lengths = torch.empty_like(stops)  # [R], characters of each run
        run_cuda("rle_stops_cuda", words, words[part], num_pixels, first, stops)
        run_cuda("rle_lengths_cuda", words, stops, first, lengths)
        text_stops = lengths.cumsum(0)  # [R]
        ends = text_stops[first[1:] - 1].tolist()  # n
        text = torch.empty(ends[-1], dtype=torch.uint8, device=words.device)
        run_cuda("rle_text_cuda", words, stops, first, text_stops, text)
        letters = memoryview(text.cpu().numpy())
        counts += [str(letters[start:end], "ascii") for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return counts


def _as_bytes(counts: Counts) -> bytes:
    if isinstance(counts, bytes):
        return counts
    if isinstance(counts, str):
        return counts.encode()  # what is not ASCII has bytes past 127, which are refused
    return reference.compress(reference.plain_runs(counts)).encode("ascii")


def _parts(room: Tensor) -> Iterator[slice]:
    """Slices over masks whose text needs at most CHUNK_CHARACTERS, or a single one."""
    start, used = 0, 0
    for index, need in enumerate(room.tolist()):
        if used and used + need > CHUNK_CHARACTERS:
            yield slice(start, index)
            start, used = index, 0
        used += need
    if used:
        yield slice(start, len(room))
