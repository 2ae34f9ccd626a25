# SPDX-License-Identifier: Apache-2.0
"""Large photos in overlapping tiles at full resolution, with the objects that tile borders cut joined again. [ours]

The photo as a whole gives large objects, tiles give small ones. Where two tiles overlap, both see the same pixels: the
masks that agree there are one object. A mask that a tile's border cuts and that nothing continues is dropped: it is a
fragment of something that the whole photo shows better.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sohes.config import InferConfig
from sohes.forest import Forest, build_forest
from sohes.masks import PackedMasks, nms_masks

_CHUNK_BYTES = 2**27  # of dense masks that exist at a time


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

    def inner_borders(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """bool [N]: masks bool [N, h, w] of this tile that touch a border with more photo behind it."""
        touches = torch.zeros(len(masks), dtype=torch.bool)
        for inside, line in (
            (self.y0 > 0, masks[:, 0]),
            (self.y1 < size[0], masks[:, -1]),
            (self.x0 > 0, masks[:, :, 0]),
            (self.x1 < size[1], masks[:, :, -1]),
        ):
            if inside:
                touches |= line.any(dim=1)
        return touches


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


def join_tiles(
    whole: Forest, tiles: Sequence[Tile], forests: Sequence[Forest], size: tuple[int, int], config: InferConfig
) -> Forest:
    """One forest of a photo (H, W) from that of the whole photo and those of its tiles, each of its tile's size.

    A joined object's score is the mean of its pieces', weighted by area; parents follow from coverage alone, since the
    ancestor head knows pairs of one forward pass only.
    """
    pieces = [(t, n) for t, forest in enumerate(forests) for n in range(len(forest))]
    place = {piece: index for index, piece in enumerate(pieces)}
    dense = [forest.masks.to_dense() for forest in forests]  # bool [N, h, w] each
    leader = list(range(len(pieces)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    cut = [tile.inner_borders(masks, size) for tile, masks in zip(tiles, dense, strict=True)]
    for s, t, a, b in _agreeing(tiles, dense, cut, config.join_iou):
        first, second = sorted((find(place[s, a]), find(place[t, b])))
        leader[second] = first
    objects: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, piece in enumerate(pieces):
        objects[find(index)].append(piece)

    found = [group for group in objects.values() if len(group) > 1 or not cut[group[0][0]][group[0][1]]]
    scores = [_mean_score(group, forests) for group in found]
    best = sorted(range(len(found)), key=lambda k: -scores[k])[: config.max_masks]
    masks = [whole.masks, *_draw([found[k] for k in best], tiles, dense, size)]
    packed = PackedMasks.cat(masks)
    score = torch.cat((whole.scores, torch.tensor([scores[k] for k in best])))
    kept = nms_masks(packed, config.nms_iou, score)[: config.max_masks]
    packed = packed[kept]
    return Forest(packed, score[kept], build_forest(packed, config.theta_cover))


def _agreeing(
    tiles: Sequence[Tile], dense: Sequence[Tensor], cut: Sequence[Tensor], join_iou: float
) -> Iterator[tuple[int, int, int, int]]:
    """(tile, tile, mask, mask): each the other's best match where the tiles overlap, and cut by a border of a tile."""
    for s, one in enumerate(tiles):
        for t in range(s + 1, len(tiles)):
            both = one.meet(tiles[t])
            if both is None or not len(dense[s]) or not len(dense[t]):
                continue
            a, b = (
                masks[:, both.y0 - tile.y0 : both.y1 - tile.y0, both.x0 - tile.x0 : both.x1 - tile.x0]
                .flatten(1)
                .float()
                for tile, masks in ((one, dense[s]), (tiles[t], dense[t]))
            )
            shared = a @ b.T  # [N, M], exact below 2^24 pixels
            iou = shared / (a.sum(1)[:, None] + b.sum(1) - shared).clamp(min=1)
            value, match = iou.max(dim=1)
            mutual = iou.argmax(dim=0)[match] == torch.arange(len(a))
            for n in (mutual & (value > join_iou)).nonzero().flatten().tolist():
                m = int(match[n])
                if cut[s][n] or cut[t][m]:
                    yield s, t, n, m


def _mean_score(group: Sequence[tuple[int, int]], forests: Sequence[Forest]) -> float:
    areas = [int(forests[t].masks.areas[n]) for t, n in group]
    return sum(a * float(forests[t].scores[n]) for a, (t, n) in zip(areas, group, strict=True)) / max(1, sum(areas))


def _draw(
    objects: Sequence[Sequence[tuple[int, int]]], tiles: Sequence[Tile], dense: Sequence[Tensor], size: tuple[int, int]
) -> Iterator[PackedMasks]:
    """Packed masks of the photo's size, from the pieces of each object."""
    step = max(1, _CHUNK_BYTES // (size[0] * size[1]))
    for start in range(0, len(objects), step):
        chunk = objects[start : start + step]
        canvas = torch.zeros(len(chunk), *size, dtype=torch.bool)
        for row, group in zip(canvas, chunk, strict=True):
            for t, n in group:
                tile = tiles[t]
                row[tile.y0 : tile.y1, tile.x0 : tile.x1] |= dense[t][n]
        yield PackedMasks.from_dense(canvas)
