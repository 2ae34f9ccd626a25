# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks
from sohes.visual import draw
from sohes.visual.colors import forest_colors, oklch_to_srgb, srgb_to_oklch
from sohes.visual.draw import draw_forest, draw_panel, overlay_forest, resize_forest, resize_image


def make_forest(height=12, width=16):
    """Two roots side by side; the left one has two children, one of which has a child."""
    masks = torch.zeros(5, height, width, dtype=torch.bool)
    masks[0, 1:11, 1:8] = True
    masks[1, 1:11, 9:15] = True
    masks[2, 2:6, 2:7] = True
    masks[3, 7:10, 2:7] = True
    masks[4, 3:5, 3:6] = True
    parents = torch.tensor([-1, -1, 0, 0, 2])
    return Forest(PackedMasks.from_dense(masks), torch.ones(5), parents), masks


def lightness_and_hue(color):
    lightness, _, hue = srgb_to_oklch(color.tolist())
    return lightness, hue


def test_color_space_round_trip_and_known_values():
    for color in [(0, 0, 0), (255, 255, 255), (0, 114, 178), (240, 228, 66), (1, 2, 3)]:
        assert oklch_to_srgb(*srgb_to_oklch(color)) == color
    # The reference values that Oklab's author gives for white and for sRGB red.
    assert srgb_to_oklch((255, 255, 255))[0] == pytest.approx(1.0, abs=1e-4)
    assert srgb_to_oklch((255, 0, 0)) == pytest.approx((0.62796, 0.25768, 29.234), abs=1e-3)


def test_color_outside_srgb_keeps_lightness():
    lightness, chroma, _ = srgb_to_oklch(oklch_to_srgb(0.9, 0.4, 260))
    assert lightness == pytest.approx(0.9, abs=0.02)
    assert chroma < 0.2


def test_children_keep_the_hue_of_their_parent_and_change_its_lightness():
    forest, _ = make_forest()
    colors = forest_colors(forest)
    assert colors.dtype == torch.uint8
    assert colors.shape == (5, 3)
    for child, parent in [(2, 0), (3, 0), (4, 2)]:
        (light, hue), (parent_light, parent_hue) = (
            lightness_and_hue(colors[child]),
            lightness_and_hue(colors[parent]),
        )
        assert abs((hue - parent_hue + 180) % 360 - 180) < 40
        assert abs(light - parent_light) > 0.05
    assert abs(lightness_and_hue(colors[0])[1] - lightness_and_hue(colors[1])[1]) > 60


@pytest.mark.parametrize("parent", [-1, 0])
def test_siblings_differ(parent):
    count = 40
    masks = torch.zeros(count, 8, 8, dtype=torch.bool)
    masks[0] = True
    masks[1:, :2, :2] = True
    parents = torch.full((count,), parent)
    parents[0] = -1
    colors = forest_colors(Forest(PackedMasks.from_dense(masks), torch.ones(count), parents)).int()
    distance = (colors[:, None] - colors[None]).abs().sum(-1) + 1000 * torch.eye(count, dtype=torch.int32)
    assert distance.min() >= 2


def test_overlay_fills_frames_and_leaves_the_rest_clear():
    forest, masks = make_forest()
    overlay = overlay_forest(forest)
    assert overlay.dtype == torch.uint8
    assert overlay.shape == (4, 12, 16)
    assert torch.equal(overlay[3] > 0, masks.any(0))
    # Interior of the deepest mask is empty (2 x 3 pixels: all contour), of the right root it is not.
    assert overlay[3, 3, 3] == 255
    assert overlay[3, 1, 9] == 255
    assert 0 < overlay[3, 5, 11] < 255
    assert torch.equal(overlay[:3, 5, 11], forest_colors(forest)[1])


def test_contour_is_one_pixel_and_ignores_the_frame():
    masks = torch.zeros(1, 6, 6, dtype=torch.bool)
    masks[0, :4, :4] = True
    forest = Forest(PackedMasks.from_dense(masks), torch.ones(1), torch.tensor([-1]))
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[3, :4] = True
    expected[:4, 3] = True
    assert torch.equal(overlay_forest(forest)[3] == 255, expected)
    assert torch.equal(overlay_forest(forest, fill=False)[3] > 0, expected)


def test_smaller_masks_lie_over_larger_ones_whatever_their_order():
    forest, _ = make_forest()
    order = torch.tensor([4, 2, 0, 3, 1])
    assert torch.equal(overlay_forest(forest), overlay_forest(forest.select(order)))


def test_level_and_max_masks_choose_what_is_drawn():
    forest, masks = make_forest()
    for level, members in [(0, [0, 1]), (1, [2, 3]), (2, [4]), (3, [])]:
        drawn = overlay_forest(forest, level)[3] > 0
        assert torch.equal(drawn, masks[members].any(0))
    forest = Forest(forest.masks, torch.tensor([0.5, 0.9, 0.8, 0.1, 0.2]), forest.parents)
    assert torch.equal(overlay_forest(forest, max_masks=1)[3] > 0, masks[1])


@pytest.mark.parametrize("size", [(12, 16), (24, 32), (36, 48), (6, 8), (5, 7), (1, 1), (13, 17)])
def test_resize_forest_samples_pixel_centres(size):
    forest, masks = make_forest()
    resized = resize_forest(forest, size)
    ys = ((np.arange(size[0]) + 0.5) * 12 / size[0]).astype(int)
    xs = ((np.arange(size[1]) + 0.5) * 16 / size[1]).astype(int)
    assert np.array_equal(resized.masks.to_dense().numpy(), masks.numpy()[:, ys][:, :, xs])
    assert torch.equal(resized.parents, forest.parents)
    assert torch.equal(resized.scores, forest.scores)


def test_resize_forest_in_chunks_changes_nothing(monkeypatch):
    forest, _ = make_forest()
    whole = resize_forest(forest, (20, 10)).masks.words
    monkeypatch.setattr("sohes.visual.draw._CHUNK_PIXELS", 450)
    assert torch.equal(resize_forest(forest, (20, 10)).masks.words, whole)


def test_resize_image_keeps_small_photos_in_whole_pixels():
    image = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    enlarged = resize_image(image, 17)
    assert enlarged.shape == (3, 12, 15)
    assert torch.equal(enlarged[:, 1::3, 1::3], image)
    assert resize_image(image, 9).shape == (3, 7, 9)
    assert resize_image(image, 2).shape == (3, 2, 2)


def test_draw_forest_changes_masks_only_and_is_repeatable():
    forest, masks = make_forest()
    image = torch.full((3, 12, 16), 100, dtype=torch.uint8)
    before = image.clone()
    picture = draw_forest(image, forest)
    assert picture.dtype == torch.uint8
    assert picture.shape == image.shape
    assert torch.equal(picture, draw_forest(image, forest))
    assert torch.equal(image, before)
    assert (picture[:, ~masks.any(0)] == 100).all()
    assert (picture[:, masks.any(0)] != 100).any(0).all()
    assert (draw_forest(image, forest, fill=False)[:, ~masks.any(0)] == 50).all()


def test_empty_forest_draws_the_photo():
    image = torch.full((3, 5, 9), 77, dtype=torch.uint8)
    forest = Forest(PackedMasks.empty((5, 9)), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(draw_forest(image, forest), image)
    assert draw_panel(image, forest, tile=90).shape[0] == 3


@pytest.mark.parametrize(("size", "tile", "expected"), [((12, 16), 160, (120, 160)), ((300, 2), 100, (100, 1))])
def test_panel_has_five_tiles_of_the_asked_size(size, tile, expected):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(1, *size, dtype=torch.bool)
    forest = Forest(PackedMasks.from_dense(masks), torch.ones(1), torch.tensor([-1]))
    panel = draw_panel(image, forest, tile=tile)
    assert panel.dtype == torch.uint8
    assert panel.shape == (3, expected[0] + 26, 5 * expected[1] + 4 * 8)
    assert torch.equal(panel[:, 26:, : expected[1]], resize_image(image, tile))


def test_errors_name_what_is_wrong():
    forest, _ = make_forest()
    with pytest.raises(ValueError, match=r"^image must be uint8 \[3, H, W\], got torch.float32 \[3, 12, 16\]$"):
        draw_forest(torch.zeros(3, 12, 16), forest)
    with pytest.raises(ValueError, match=r"^image of size \(6, 8\) given with masks of size \(12, 16\)$"):
        draw_panel(torch.zeros(3, 6, 8, dtype=torch.uint8), forest)


def test_resizing_no_masks_gives_no_masks():
    nothing = Forest.from_coco([], (40, 30))  # decoded, as a file's image without annotations is
    assert resize_forest(nothing, (20, 15)).masks.size == (20, 15)
    assert len(resize_forest(nothing, (20, 15))) == 0


def test_pictures_have_the_levels_of_the_forest(monkeypatch):
    """The best masks only are drawn, but as what they are in the forest: in a chain of six, 4 and 5 score best."""
    masks = torch.zeros(6, 24, 24, dtype=torch.bool)
    for depth, mask in enumerate(masks):
        mask[2 * depth : 24 - 2 * depth, 2 * depth : 24 - 2 * depth] = True
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9, 0.8])
    forest = Forest(PackedMasks.from_dense(masks), scores, torch.arange(-1, 5))
    for level in range(6):
        assert torch.equal(overlay_forest(forest, level, max_masks=1)[3] > 0, masks[level])
    assert torch.equal(overlay_forest(forest, max_masks=1)[3] > 0, masks[4])
    captions, rows = [], draw._row_of_tiles
    monkeypatch.setattr(draw, "_row_of_tiles", lambda tiles: captions.extend(t for t, _ in tiles) or rows(tiles))
    draw_panel(torch.zeros(3, 24, 24, dtype=torch.uint8), forest, max_masks=2)
    assert captions == ["photo", "level 0: 1 mask", "level 1: 1 mask", "level 2: 1 mask", "contours: best 2 of 6 masks"]
    captions.clear()
    flat = Forest(forest.masks, scores, torch.tensor([-1, -1, -1, 0, 0, 3]))
    draw_panel(torch.zeros(3, 24, 24, dtype=torch.uint8), flat, max_masks=2)
    levels = [f"level {level}" for level in range(3)]
    assert captions[1:4] == [f"{levels[0]}: best 2 of 3 masks", f"{levels[1]}: 2 masks", f"{levels[2]}: 1 mask"]
    assert [int(n) for n in flat.levels.bincount()] == [3, 2, 1]
    assert [one["level"] for one in flat.to_coco(1)] == flat.levels.tolist()


def test_a_picture_of_another_size_shows_the_resized_masks():
    forest, _ = make_forest()
    for size in ((24, 32), (6, 8), (13, 17)):
        assert torch.equal(overlay_forest(forest, size=size), overlay_forest(resize_forest(forest, size)))


@pytest.mark.parametrize("default", [torch.float64, torch.float16, "meta"])
def test_pictures_do_not_depend_on_torch_s_defaults(default):
    forest, _ = make_forest()
    image = torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = draw_panel(image, forest, tile=37)
    try:
        if default == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(default)
        drawn = draw_panel(image, forest, tile=37)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(drawn, expected)
