# SPDX-License-Identifier: Apache-2.0
"""Large photos in tiles: objects that tile borders cut are joined."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sohes.configs.run import InferConfig
from sohes.data.transforms import normalize
from sohes.models.inference import predict
from sohes.models.outputs import Outputs
from sohes.models.tiles import Tile, TileMasks, _draw_objects, join_tiles, make_tiles
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks, mask_iou

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)


class ColourModel(nn.Module):
    """A model that predicts the pixels of each of four colours, at any size."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, grid_size: int | None = None) -> Outputs:
        height, width = images.shape[2:]
        wanted = normalize(COLOURS.T[:, :, None]).squeeze(-1).T  # [4, 3]
        distance = torch.cdist(images.flatten(2).transpose(1, 2), wanted[None]).transpose(1, 2)  # [B, 4, H*W]
        logits = torch.where(distance.unflatten(2, (height, width)) < 1.0, 9.0, -9.0)
        class_logits = torch.tensor([2.0, 0.0]).expand(len(images), 4, 2)
        return Outputs(class_logits, torch.eye(4).expand(len(images), 4, 4), logits, None, (height, width), 1)


def paint(size, *boxes):
    """uint8 [3, H, W], black with a box (y0, x0, y1, x1) of each colour; and the boxes as masks."""
    image, masks = torch.zeros(3, *size, dtype=torch.uint8), torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, colour, (y0, x0, y1, x1) in zip(masks, COLOURS, boxes, strict=False):
        image[:, y0:y1, x0:x1] = colour[:, None, None]
        mask[y0:y1, x0:x1] = True
    return image, PackedMasks.from_dense(masks)


@pytest.mark.parametrize(("size", "side"), [((64, 200), 64), ((130, 131), 64), ((64, 64), 64), ((10, 300), 64)])
def test_tiles_cover_the_photo_and_overlap(size, side):
    tiles = make_tiles(size, side, 0.25)
    seen = torch.zeros(size, dtype=torch.int64)
    for tile in tiles:
        assert 0 <= tile.y0 < tile.y1 <= size[0]
        assert 0 <= tile.x0 < tile.x1 <= size[1]
        assert max(tile.y1 - tile.y0, tile.x1 - tile.x0) <= side
        seen[tile.y0 : tile.y1, tile.x0 : tile.x1] += 1
    assert seen.min() >= 1
    assert (len(tiles) == 1) == (max(size) <= side)
    for a in tiles:
        neighbours = [b for b in tiles if b.y0 == a.y0 and b.x0 > a.x0]
        if neighbours:
            assert a.intersection(neighbours[0]).x1 - a.intersection(neighbours[0]).x0 >= 0.25 * side - 1
    assert Tile(0, 0, 4, 4).intersection(Tile(0, 4, 4, 8)) is None


def test_objects_across_tiles_are_whole_and_small_ones_are_found():
    """A bar across all tiles, a box across four tiles, one in a tile, and a dot too small for the whole photo."""
    image, expected = paint((128, 256), (20, 10, 40, 250), (50, 80, 100, 150), (4, 4, 12, 16), (110, 200, 114, 203))
    config = InferConfig(size=64, tile=64, min_area=4)
    (forest,) = predict(ColourModel(), [image], config)
    best = mask_iou(expected, forest.masks).amax(dim=1)
    assert best[:3].min() > 0.97, best
    assert best[3] > 0.7
    (plain,) = predict(ColourModel(), [image], replace(config, tile=0))
    assert mask_iou(expected, plain.masks).amax(dim=1)[3] < 0.5
    # No fragments of the bar or the box remain.
    assert (mask_iou(forest.masks, expected)[:, :2] > 0).sum(dim=0).tolist() == [1, 1]


def test_photos_that_fit_a_tile_are_as_without_tiles():
    image, _ = paint((60, 64), (10, 10, 30, 40), (35, 5, 50, 60))
    large, _ = paint((64, 200), (10, 10, 30, 180))
    config = InferConfig(size=64, tile=64)
    (plain,) = predict(ColourModel(), [image], replace(config, tile=0))
    for forest in (predict(ColourModel(), [image], config)[0], predict(ColourModel(), [image, large], config)[0]):
        assert torch.equal(forest.masks.words, plain.masks.words)
        assert torch.equal(forest.scores, plain.scores)


def test_a_photo_without_objects_gives_an_empty_forest():
    (forest,) = predict(ColourModel(), [torch.zeros(3, 64, 160, dtype=torch.uint8)], InferConfig(size=64, tile=64))
    assert len(forest) == 0
    assert forest.masks.size == (64, 160)


def test_masks_at_inner_borders_are_found_from_boxes():
    """A mask in the corner, one at the right border, one inside, an empty one; for tiles in all four corners."""
    masks = torch.zeros(4, 6, 8, dtype=torch.bool)
    masks[0, :2, :2] = masks[1, 2:4, 5:] = masks[2, 2:4, 2:4] = True
    boxes = PackedMasks.from_dense(masks).boxes
    for y0, x0, expected in (
        (0, 0, [False, True, False, False]),
        (0, 8, [True, False, False, False]),
        (6, 0, [True, True, False, False]),
        (6, 8, [True, False, False, False]),
    ):
        assert Tile(y0, x0, y0 + 6, x0 + 8).inner_borders(boxes, (12, 16)).tolist() == expected
    assert not Tile(0, 0, 6, 8).inner_borders(boxes, (6, 8)).any()


@pytest.mark.parametrize("height", [64, 63, 96, 100])
def test_pieces_are_drawn_at_their_place(height):
    """Unions of random pieces of three tiles, dense and packed, for columns that start at any bit of a word."""
    torch.manual_seed(0)
    size, views, dense = (height, 150), [], []
    for tile in (Tile(0, 0, height, 150), Tile(10, 0, 60, 80), Tile(13, 61, height, 150)):
        masks = torch.rand(3, *tile.size) > 0.7
        masks[1, :, : tile.size[1] // 2] = False
        masks[2] = False
        views.append(
            TileMasks.from_forest(tile, Forest(PackedMasks.from_dense(masks), torch.ones(3), torch.full((3,), -1)))
        )
        placed = torch.zeros(3, *size, dtype=torch.bool)
        placed[:, tile.y0 : tile.y1, tile.x0 : tile.x1] = masks
        dense.append(placed)
    objects = [[(0, 0)], [(1, 0)], [(2, 1)], [(1, 0), (2, 1)], [(1, 1), (2, 0), (1, 0)], [(0, 2)], [(1, 2), (2, 0)]]
    expected = torch.stack([torch.stack([dense[v][n] for v, n in group]).any(0) for group in objects])
    drawn = _draw_objects(objects, views, views[0].tile)
    assert torch.equal(drawn.to_dense(), expected)
    assert torch.equal(drawn.words, PackedMasks.from_dense(expected).words)
    part = Tile(20, 65, 50, 78)
    assert torch.equal(_draw_objects(objects, views, part).to_dense(), expected[:, 20:50, 65:78])
    for view, placed in zip(views, dense, strict=True):
        seen = placed[:, 20:50, 65:78].flatten(1).any(1)
        assert set(seen.nonzero().flatten().tolist()) <= set(view.masks_in(part)) <= {0, 1}


@pytest.mark.parametrize("default", [torch.float64, "meta"])
def test_joining_does_not_depend_on_torch_s_defaults(default):
    """Two halves of a box in two tiles, and an empty mask of the whole photo."""
    size, views = (40, 100), []
    for tile in (Tile(0, 0, 40, 100), Tile(0, 0, 40, 60), Tile(0, 40, 40, 100)):
        masks = torch.zeros(1, *tile.size, dtype=torch.bool)
        masks[0, 10:20, max(0, 30 - tile.x0) : 70 - tile.x0] = tile.size != size
        views.append(
            TileMasks.from_forest(tile, Forest(PackedMasks.from_dense(masks), torch.ones(1), torch.tensor([-1])))
        )
    expected = torch.zeros(1, *size, dtype=torch.bool)
    expected[0, 10:20, 30:70] = True
    try:
        if default == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(default)
        forest = join_tiles(views[0], views[1:], InferConfig())
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert forest.masks.areas.tolist() == [0, 400]  # with equal scores, the mask of the whole photo comes first
    assert torch.equal(forest.masks[1].to_dense(), expected)
    assert forest.scores.tolist() == [1, 1]
