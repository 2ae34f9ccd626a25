# SPDX-License-Identifier: Apache-2.0
"""Joins the masks of overlapping full-resolution tiles of a large photo, and those of the whole photo. [ours]

The whole photo gives large objects, the tiles give small ones. Masks of two tiles that agree on the pixels that both
tiles show are one object. A mask that is cut by a tile's border and has no counterpart in another tile is dropped: it
is a fragment of an object that the whole photo shows better.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sohes.configs.run import InferConfig
from sohes.models.distinct import DistinctMasks, masks_per_chunk
from sohes.ops._words import zero_words
from sohes.ops.reference.mask_pack import num_words
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, mask_iou

Piece = tuple[int, int]
"""(index of the tile, index of the mask in this tile); tile 0 is the whole photo."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of the photo in pixels: rows y0..y1, columns x0..x1, half-open."""

    y0: int
    x0: int
    y1: int
    x1: int

    def intersection(self, other: Tile) -> Tile | None:
        """The rectangle that both cover, or None."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        y1, x1 = min(self.y1, other.y1), min(self.x1, other.x1)
        return Tile(y0, x0, y1, x1) if y0 < y1 and x0 < x1 else None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y1 - self.y0, self.x1 - self.x0

    def inner_borders(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """bool [N], True for masks that touch a border of this tile inside the photo; False for empty masks.

        boxes: int64 [N, 4], of masks in this tile. size: (H, W) of the photo.
        """
        (height, width), (x0, y0, x1, y1) = self.size, boxes.unbind(1)  # [N] each
        touches = ((y0 == 0) & (self.y0 > 0)) | ((y1 == height) & (self.y1 < size[0]))
        touches |= ((x0 == 0) & (self.x0 > 0)) | ((x1 == width) & (self.x1 < size[1]))
        return touches & (x1 > x0)


@dataclass(frozen=True, eq=False)
class TileMasks:
    """The N masks of a tile, at its size, as RLE: packed masks would take as much memory as those of the photo."""

    tile: Tile
    rles: list[dict[str, Any]]
    scores: Tensor
    """float32 [N]."""
    areas: Tensor
    """int64 [N]."""
    boxes: Tensor
    """int64 [N, 4] in pixels of the tile: x0, y0, x1, y1, half-open."""

    @classmethod
    def from_forest(cls, tile: Tile, forest: Forest) -> TileMasks:
        return cls(tile, forest.masks.to_rle(), forest.scores, forest.masks.areas, forest.masks.boxes)

    def __len__(self) -> int:
        return len(self.rles)

    def box_in_photo(self, n: int) -> Tile:
        """The box of mask n in the photo."""
        x0, y0, x1, y1 = self.boxes[n].tolist()
        return Tile(y0 + self.tile.y0, x0 + self.tile.x0, y1 + self.tile.y0, x1 + self.tile.x0)

    def masks_in(self, region: Tile) -> list[int]:
        """Indices of the masks whose boxes intersect a region of the photo."""
        left, right = region.x0 - self.tile.x0, region.x1 - self.tile.x0
        top, bottom = region.y0 - self.tile.y0, region.y1 - self.tile.y0
        x0, y0, x1, y1 = self.boxes.unbind(1)  # [N] each
        return ((x0 < right) & (x1 > left) & (y0 < bottom) & (y1 > top)).nonzero().flatten().tolist()

    def crop(self, n: int, region: Tile) -> Tensor:
        """Mask n in a region of the photo inside this tile: bool [h, w]. Unpacks only the columns of the region."""
        height, (left, right) = self.tile.size[0], (region.x0 - self.tile.x0, region.x1 - self.tile.x0)
        first = left // word_step(height) * word_step(height)
        words = PackedMasks.from_rle([self.rles[n]], self.tile.size).words
        columns = words[:, first * height // 64 :][:, : num_words((height, right - first))]
        dense = PackedMasks(columns, (height, right - first)).to_dense()[0]  # [H, w]
        return dense[region.y0 - self.tile.y0 : region.y1 - self.tile.y0, left - first :]


def word_step(height: int) -> int:
    """Period, in columns, with which a column of a packed mask of this height starts at the start of a word."""
    return 64 // math.gcd(height, 64)


def make_tiles(size: tuple[int, int], side: int, overlap: float) -> list[Tile]:
    """Tiles of `side` pixels that cover a photo (H, W), row by row, and overlap by at least `overlap` * side."""
    starts = []
    for length in size:
        if length <= side:
            starts.append([0])
            continue
        count = -(-(length - side) // max(1, int(side * (1 - overlap)))) + 1
        starts.append([round(i * (length - side) / (count - 1)) for i in range(count)])
    return [Tile(y, x, min(y + side, size[0]), min(x + side, size[1])) for y in starts[0] for x in starts[1]]


def join_tiles(whole: TileMasks, tiles: Sequence[TileMasks], config: InferConfig) -> Forest:
    """One forest of a photo from the masks of the whole photo and of its tiles.

    The score of a joined object is the mean of its pieces' scores, weighted by area. Parents depend on coverage alone,
    since the ancestor head compares only masks of one forward pass.
    """
    size, tiles = whole.tile.size, [whole, *tiles]
    cut = [found.tile.inner_borders(found.boxes, size) for found in tiles]
    objects = [
        group for group in _group_pieces(tiles, cut, config.join_iou) if len(group) > 1 or not _is_cut(group, cut)
    ]
    scores = [_mean_score(group, tiles) for group in objects]
    best = sorted(range(len(objects)), key=lambda k: -scores[k])[: config.max_masks]
    objects = [[(0, n)] for n in range(len(whole))] + [objects[k] for k in best]
    score = torch.cat((whole.scores, whole.scores.new_tensor([scores[k] for k in best])))  # [whole + best]
    order = score.argsort(descending=True, stable=True)
    distinct = DistinctMasks(size, min(config.max_masks, len(objects)), config.nms_iou, torch.device("cpu"))
    kept = [order[:0]]
    for chunk in order.split(masks_per_chunk(size)):
        if len(distinct) == distinct.capacity:
            break
        kept.append(chunk[distinct.add(_draw_objects([objects[k] for k in chunk.tolist()], tiles, whole.tile))])
    masks = distinct.masks
    return Forest(masks, score[torch.cat(kept)], build_forest(masks, config.theta_cover))


def _group_pieces(tiles: Sequence[TileMasks], cut: Sequence[Tensor], join_iou: float) -> Iterable[list[Piece]]:
    """Groups of matching pieces of tiles[1:], one group per object; by union-find."""
    pieces = [(t, n) for t, tile in enumerate(tiles) for n in range(len(tile)) if t > 0]
    parent = {piece: piece for piece in pieces}

    def find(piece: Piece) -> Piece:
        while parent[piece] != piece:
            parent[piece] = parent[parent[piece]]
            piece = parent[piece]
        return piece

    for a, b in _matching_pieces(tiles, cut, join_iou):
        first, second = sorted((find(a), find(b)))
        parent[second] = first
    objects: dict[Piece, list[Piece]] = defaultdict(list)
    for piece in pieces:
        objects[find(piece)].append(piece)
    return objects.values()


def _matching_pieces(
    tiles: Sequence[TileMasks], cut: Sequence[Tensor], join_iou: float
) -> Iterator[tuple[Piece, Piece]]:
    """Pairs of masks of two tiles that are each other's best match in the overlap, at least one cut by a border."""
    for s in range(1, len(tiles)):
        for t in range(s + 1, len(tiles)):
            overlap = tiles[s].tile.intersection(tiles[t].tile)
            if overlap is None:
                continue
            a, b = tiles[s].masks_in(overlap), tiles[t].masks_in(overlap)
            if not a or not b:
                continue
            others = _draw_objects([[(t, m)] for m in b], tiles, overlap)
            step = masks_per_chunk(overlap.size)
            iou = torch.cat(
                [
                    mask_iou(_draw_objects([[(s, n)] for n in a[i : i + step]], tiles, overlap), others)
                    for i in range(0, len(a), step)
                ]
            )  # [n, m]
            value, match = iou.max(dim=1)
            mutual = iou.argmax(dim=0)[match] == torch.arange(len(a), device=match.device)
            for k in (mutual & (value > join_iou)).nonzero().flatten().tolist():
                n, m = a[k], b[int(match[k])]
                if cut[s][n] or cut[t][m]:
                    yield (s, n), (t, m)


def _is_cut(group: Sequence[Piece], cut: Sequence[Tensor]) -> bool:
    return any(bool(cut[t][n]) for t, n in group)


def _mean_score(group: Sequence[Piece], tiles: Sequence[TileMasks]) -> float:
    areas = [int(tiles[t].areas[n]) for t, n in group]
    return sum(a * float(tiles[t].scores[n]) for a, (t, n) in zip(areas, group, strict=True)) / max(1, sum(areas))


def _draw_objects(objects: Sequence[Sequence[Piece]], tiles: Sequence[TileMasks], region: Tile) -> PackedMasks:
    """Masks of objects, each the union of its pieces, in a region of the photo, at the region's size.

    Packed masks store columns one after the other. Only the columns that an object covers are drawn and packed, from a
    column on that starts at the start of a word.
    """
    height, step = region.size[0], word_step(region.size[0])
    words = zero_words(len(objects), region.size)
    for row, group in zip(words, objects, strict=True):
        pieces = [(tiles[t], n, box) for t, n in group if (box := tiles[t].box_in_photo(n).intersection(region))]
        if not pieces:
            continue
        left = (min(box.x0 for *_, box in pieces) - region.x0) // step * step
        width = max(box.x1 for *_, box in pieces) - region.x0 - left
        canvas = torch.zeros(height, width, dtype=torch.bool, device="cpu")
        for tile, n, box in pieces:
            x0, y0 = box.x0 - region.x0 - left, box.y0 - region.y0
            canvas[y0 : y0 + box.size[0], x0 : x0 + box.size[1]] |= tile.crop(n, box)
        packed = PackedMasks.from_dense(canvas[None]).words[0]
        row[left * height // 64 :][: len(packed)] = packed
    return PackedMasks(words, region.size)
