# SPDX-License-Identifier: Apache-2.0
"""Large photos in overlapping tiles at full resolution, with the objects that tile borders cut joined again. [ours]

The photo as a whole gives large objects, tiles give small ones. Where two tiles overlap, both see the same pixels: the
masks that agree there are one object. A mask that a tile's border cuts and that nothing continues is dropped: it is a
fragment of something that the whole photo shows better.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sohes.configs.run import InferConfig
from sohes.models.distinct import DistinctMasks, masks_per_chunk
from sohes.ops._words import num_words, zero_words
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, mask_iou

Piece = tuple[int, int]
"""(view, mask of that view)."""


@dataclass(frozen=True)
class Tile:
    """A part of the photo, in pixels: rows y0..y1, columns x0..x1, half-open."""

    y0: int
    x0: int
    y1: int
    x1: int

    def meet(self, other: Tile) -> Tile | None:
        """What both hold, or None."""
        both = Tile(*map(max, (self.y0, self.x0), (other.y0, other.x0)), min(self.y1, other.y1), min(self.x1, other.x1))
        return both if both.y0 < both.y1 and both.x0 < both.x1 else None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y1 - self.y0, self.x1 - self.x0

    def inner_borders(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """bool [N]: masks with boxes int64 [N, 4] in this tile of a photo (H, W) that touch a border with more photo
        behind it. An empty mask touches none."""
        (height, width), (x0, y0, x1, y1) = self.size, boxes.unbind(1)  # [N] each
        touches = ((y0 == 0) & (self.y0 > 0)) | ((y1 == height) & (self.y1 < size[0]))
        touches |= ((x0 == 0) & (self.x0 > 0)) | ((x1 == width) & (self.x1 < size[1]))
        return touches & (x1 > x0)


@dataclass(frozen=True, eq=False)
class View:
    """What was found in a part of a photo: N masks of the part's size, compressed. Thousands of packed masks of tiles
    would take as much memory as those of the whole photo."""

    tile: Tile
    rles: list[dict]
    scores: Tensor
    """float32 [N]."""
    areas: Tensor
    """int64 [N]."""
    boxes: Tensor
    """int64 [N, 4] in pixels of the tile: x0, y0, x1, y1, half-open."""

    @classmethod
    def of(cls, tile: Tile, forest: Forest) -> View:
        return cls(tile, forest.masks.to_rle(), forest.scores, forest.masks.areas, forest.masks.boxes)

    def __len__(self) -> int:
        return len(self.rles)

    def place(self, n: int) -> Tile:
        """Where in the photo mask n lies."""
        x0, y0, x1, y1 = self.boxes[n].tolist()
        return Tile(y0 + self.tile.y0, x0 + self.tile.x0, y1 + self.tile.y0, x1 + self.tile.x0)

    def within(self, part: Tile) -> list[int]:
        """Masks whose boxes meet a part of the photo."""
        left, right = part.x0 - self.tile.x0, part.x1 - self.tile.x0
        top, bottom = part.y0 - self.tile.y0, part.y1 - self.tile.y0
        x0, y0, x1, y1 = self.boxes.unbind(1)  # [N] each
        return ((x0 < right) & (x1 > left) & (y0 < bottom) & (y1 > top)).nonzero().flatten().tolist()

    def pixels(self, n: int, part: Tile) -> Tensor:
        """Mask n in a part of the photo that lies in this tile, dense: bool [h, w]. Only its columns are unpacked."""
        height, (left, right) = self.tile.size[0], (part.x0 - self.tile.x0, part.x1 - self.tile.x0)
        first = left // word_step(height) * word_step(height)
        words = PackedMasks.from_rle([self.rles[n]], self.tile.size).words
        columns = words[:, first * height // 64 :][:, : num_words((height, right - first))]
        dense = PackedMasks(columns, (height, right - first)).to_dense()[0]  # [H, w]
        return dense[part.y0 - self.tile.y0 : part.y1 - self.tile.y0, left - first :]


def word_step(height: int) -> int:
    """Of masks of this height, columns after which a column starts with a word again."""
    return 64 // math.gcd(height, 64)


def make_tiles(size: tuple[int, int], side: int, overlap: float) -> list[Tile]:
    """Tiles of `side` pixels that cover a photo (H, W) and overlap by at least this share of a side; row by row."""
    starts = []
    for length in size:
        if length <= side:
            starts.append([0])
            continue
        count = -(-(length - side) // max(1, int(side * (1 - overlap)))) + 1
        starts.append([round(i * (length - side) / (count - 1)) for i in range(count)])
    return [Tile(y, x, min(y + side, size[0]), min(x + side, size[1])) for y in starts[0] for x in starts[1]]


def join_tiles(whole: View, tiles: Sequence[View], config: InferConfig) -> Forest:
    """One forest of a photo from what was found in the whole photo and in its tiles.

    A joined object's score is the mean of its pieces', weighted by area; parents follow from coverage alone, since the
    ancestor head knows pairs of one forward pass only.
    """
    size, views = whole.tile.size, [whole, *tiles]
    cut = [view.tile.inner_borders(view.boxes, size) for view in views]
    objects = [group for group in _join(views, cut, config.join_iou) if len(group) > 1 or not _is_cut(group, cut)]
    scores = [_mean_score(group, views) for group in objects]
    best = sorted(range(len(objects)), key=lambda k: -scores[k])[: config.max_masks]
    objects = [[(0, n)] for n in range(len(whole))] + [objects[k] for k in best]
    score = torch.cat((whole.scores, whole.scores.new_tensor([scores[k] for k in best])))  # [whole + best]
    order = score.argsort(descending=True, stable=True)
    distinct = DistinctMasks(size, min(config.max_masks, len(objects)), config.nms_iou, torch.device("cpu"))
    kept = [order[:0]]
    for some in order.split(masks_per_chunk(size)):
        if len(distinct) == distinct.capacity:
            break
        kept.append(some[distinct.add(_draw([objects[k] for k in some.tolist()], views, whole.tile))])
    masks = distinct.masks
    return Forest(masks, score[torch.cat(kept)], build_forest(masks, config.theta_cover))


def _join(views: Sequence[View], cut: Sequence[Tensor], join_iou: float) -> Iterable[list[Piece]]:
    """Groups of pieces that agree where tiles overlap: the objects in tiles, views[1:]."""
    pieces = [(v, n) for v, view in enumerate(views) for n in range(len(view)) if v > 0]
    leader = {piece: piece for piece in pieces}

    def find(piece: Piece) -> Piece:
        while leader[piece] != piece:
            leader[piece] = leader[leader[piece]]
            piece = leader[piece]
        return piece

    for one, other in _agreeing(views, cut, join_iou):
        first, second = sorted((find(one), find(other)))
        leader[second] = first
    objects: dict[Piece, list[Piece]] = defaultdict(list)
    for piece in pieces:
        objects[find(piece)].append(piece)
    return objects.values()


def _agreeing(views: Sequence[View], cut: Sequence[Tensor], join_iou: float) -> Iterator[tuple[Piece, Piece]]:
    """Masks of two tiles: each the other's best match where the tiles overlap, and cut by a border of a tile."""
    for s in range(1, len(views)):
        for t in range(s + 1, len(views)):
            both = views[s].tile.meet(views[t].tile)
            if both is None:
                continue
            a, b = views[s].within(both), views[t].within(both)
            if not a or not b:
                continue
            others = _draw([[(t, m)] for m in b], views, both)
            step = masks_per_chunk(both.size)
            iou = torch.cat(
                [
                    mask_iou(_draw([[(s, n)] for n in a[i : i + step]], views, both), others)
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
    return any(bool(cut[v][n]) for v, n in group)


def _mean_score(group: Sequence[Piece], views: Sequence[View]) -> float:
    areas = [int(views[v].areas[n]) for v, n in group]
    return sum(a * float(views[v].scores[n]) for a, (v, n) in zip(areas, group, strict=True)) / max(1, sum(areas))


def _draw(objects: Sequence[Sequence[Piece]], views: Sequence[View], part: Tile) -> PackedMasks:
    """What a part of the photo shows of each object, the union of its pieces: masks of the part's size.

    Columns lie one after the other in a packed mask: those that an object reaches are painted, packed, and put at
    their place, which starts with a word.
    """
    height, step = part.size[0], word_step(part.size[0])
    words = zero_words(len(objects), part.size)
    for row, group in zip(words, objects, strict=True):
        seen = [(views[v], n, place) for v, n in group if (place := views[v].place(n).meet(part))]
        if not seen:
            continue
        left = (min(place.x0 for *_, place in seen) - part.x0) // step * step
        canvas = torch.zeros(
            height, max(place.x1 for *_, place in seen) - part.x0 - left, dtype=torch.bool, device="cpu"
        )
        for view, n, place in seen:
            x0, y0 = place.x0 - part.x0 - left, place.y0 - part.y0
            canvas[y0 : y0 + place.size[0], x0 : x0 + place.size[1]] |= view.pixels(n, place)
        painted = PackedMasks.from_dense(canvas[None]).words[0]
        row[left * height // 64 :][: len(painted)] = painted
    return PackedMasks(words, part.size)
