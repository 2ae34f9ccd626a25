# SPDX-License-Identifier: Apache-2.0
"""Pictures of a forest of masks: coloured fills with contours one pixel wide.

Shapes: H W image, h w picture (a picture may be smaller or larger than the image), N masks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sohes.colors import forest_colors, oklch_to_srgb, srgb_to_oklch
from sohes.forest import Forest
from sohes.masks import PackedMasks

_FILL_ALPHA = 0.55
_DIM = 0.5  # brightness of the photo under bare contours
_CHUNK_PIXELS = 1 << 24  # masks are unpacked in chunks of at most this many picture pixels


def overlay_forest(
    forest: Forest,
    level: int | None = None,
    size: tuple[int, int] | None = None,
    fill: bool = True,
    max_masks: int = 200,
) -> Tensor:
    """Transparent picture of a forest, to lay over its photo: uint8 [4, h, w], RGBA with straight alpha.

    Args:
        forest: the masks; their size is the image's (H, W).
        level: draw only masks of this level (0 = roots); None draws every level.
        size: (h, w) of the picture, default the image's own. Masks are sampled at pixel centres; a contour is
            one pixel of the *picture* wide.
        fill: False draws the contours only.
        max_masks: of the masks asked for, draw the best by score (then area). At least 1.

    Smaller masks lie over larger ones, and all contours over all fills. A contour is the outermost pixels
    of a mask; the frame of the image is no contour.
    """
    height, width = size or forest.masks.size
    drawn = _drawing_order(forest, level, max_masks)
    colors = forest_colors(forest)
    # Slot 0 is "nothing", slot 1 + k the k-th mask in drawing order.
    top = torch.zeros(height, width, dtype=torch.int64)
    edge = torch.zeros_like(top)
    chunk = max(1, _CHUNK_PIXELS // max(height * width, 1))
    for start in range(0, len(drawn), chunk):
        block = _sample_masks(forest.masks[drawn[start : start + chunk]], (height, width))  # [n, h, w]
        for slot, (mask, contour) in enumerate(zip(block, _contours(block), strict=True), start=start + 1):
            top[mask] = slot
            edge[contour] = slot

    fills, lines = colors[drawn].float(), _line_colors(colors[drawn], over_fill=fill)
    picture = torch.zeros(height, width, 4)
    if fill:
        covered = top > 0
        picture[covered] = _with_alpha(fills[top[covered] - 1], _FILL_ALPHA)
    on_edge = edge > 0
    picture[on_edge] = _with_alpha(lines[edge[on_edge] - 1], 1.0)
    return picture.round().to(torch.uint8).permute(2, 0, 1).contiguous()


def draw_forest(
    image: Tensor, forest: Forest, level: int | None = None, max_masks: int = 200, fill: bool = True
) -> Tensor:
    """Masks of one level, or of all levels, over the photo they belong to.

    Args:
        image: uint8 [3, H, W]. May have another size than the masks (a picture scaled for display).
        forest, level, max_masks, fill: as in :func:`overlay_forest`.

    Returns: uint8 [3, H, W]. The photo is drawn pale (dark under bare contours): the hues are the masks'.
    Raises: ValueError when `image` is not uint8 [3, H, W].
    """
    _check_image(image)
    overlay = overlay_forest(forest, level, (image.shape[1], image.shape[2]), fill, max_masks).float()
    alpha = overlay[3:] / 255  # [1, H, W]
    photo = _pale(image) * (1.0 if fill else _DIM)
    blended = overlay[:3] * alpha + photo * (1 - alpha)  # [3, H, W]
    return blended.round().to(torch.uint8)


def draw_panel(
    image: Tensor, forest: Forest, tile: int = 480, max_levels: int = 3, max_masks: int = 200
) -> Tensor:
    """One wide picture: photo | level 0 | level 1 | level 2 | all contours, each with its caption.

    Args:
        image: uint8 [3, H, W]; forest: its masks, of the same (H, W).
        tile: long side of one tile in pixels; smaller photos are scaled up to it and larger ones down.
        max_levels: how many levels get a tile of their own.
        max_masks: per tile, as in :func:`overlay_forest`.

    Returns: uint8 [3, h, w].
    Raises: ValueError when `image` is not uint8 [3, H, W] or its size is not the forest's.
    """
    _check_image(image)
    if tuple(image.shape[1:]) != tuple(forest.masks.size):
        raise ValueError(
            f"image of size {tuple(image.shape[1:])} given with masks of size {tuple(forest.masks.size)}"
        )
    photo = resize_image(image, tile)
    counts = torch.bincount(forest.levels, minlength=max_levels).tolist()
    tiles = [("photo", photo)]
    for level in range(max_levels):
        caption = f"level {level}: {_counted(counts[level])}"
        tiles.append((caption, draw_forest(photo, forest, level, max_masks)))
    tiles.append(
        (f"contours: {_counted(len(forest))}", draw_forest(photo, forest, None, max_masks, fill=False))
    )
    return _row_of_tiles(tiles)


def resize_image(image: Tensor, long_side: int) -> Tensor:
    """uint8 [3, H, W] -> uint8 [3, h, w] with max(h, w) = long_side, aspect ratio kept, no side below 1."""
    height, width = image.shape[1:]
    scale = long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    # A tiny photo keeps its pixels when enlarged; smoothing would show more than the model saw.
    smooth = Image.Resampling.LANCZOS if scale < 3 else Image.Resampling.NEAREST
    return torch.from_numpy(np.array(picture.resize(size, smooth))).permute(2, 0, 1).contiguous()


def _drawing_order(forest: Forest, level: int | None, max_masks: int) -> Tensor:
    """Indices of the masks to draw, larger first: int64 [n]. Chosen by score, then area, then lower index."""
    areas, scores = forest.masks.areas.tolist(), forest.scores.tolist()
    levels = forest.levels.tolist()
    asked = [i for i in range(len(forest)) if areas[i] > 0 and (level is None or levels[i] == level)]
    best = sorted(asked, key=lambda i: (-scores[i], -areas[i], i))[:max_masks]
    # Equal areas: the deeper mask last, so that it shows.
    return torch.tensor(sorted(best, key=lambda i: (-areas[i], levels[i], i)), dtype=torch.int64)


def _sample_masks(masks: PackedMasks, size: tuple[int, int]) -> Tensor:
    """Masks at the pixel centres of an (h, w) picture: bool [N, h, w].

    A picture of another size than the image reads single bits, so no full-size mask is ever made.
    """
    height, width = masks.size
    if size == masks.size:
        return masks.to_dense().cpu()
    ys = ((torch.arange(size[0]) + 0.5) * height / size[0]).long().clamp(max=height - 1)  # [h]
    xs = ((torch.arange(size[1]) + 0.5) * width / size[1]).long().clamp(max=width - 1)  # [w]
    bits = xs[None, :] * height + ys[:, None]  # [h, w] flat bit of each picture pixel
    words = masks.words.cpu()[:, bits >> 6]  # [N, h, w]
    return ((words >> (bits & 63)) & 1).bool()


def _contours(masks: Tensor) -> Tensor:
    """Pixels with a 4-neighbour in the picture but not in their mask: bool [N, h, w] -> bool [N, h, w]."""
    inside = torch.nn.functional.pad(masks.to(torch.uint8), (1, 1, 1, 1), value=1)  # [N, h+2, w+2]
    core = inside[:, :-2, 1:-1] & inside[:, 2:, 1:-1] & inside[:, 1:-1, :-2] & inside[:, 1:-1, 2:]
    return masks & (core == 0)


def _line_colors(colors: Tensor, over_fill: bool) -> Tensor:
    """Contour colours, uint8 [N, 3] -> float [N, 3]: lighter than the fill, or bright on a dim photo."""
    lines = []
    for color in colors.tolist():
        lightness, chroma, hue = srgb_to_oklch(color)
        lighter = min(lightness + 0.22, 0.95) if over_fill else max(lightness, 0.75)
        lines.append(oklch_to_srgb(lighter, chroma, hue))
    return torch.tensor(lines, dtype=torch.float32).reshape(-1, 3)


def _with_alpha(colors: Tensor, alpha: float) -> Tensor:
    """[n, 3] -> [n, 4] with one alpha, 0..1, scaled to 0..255."""
    return torch.cat([colors, torch.full((len(colors), 1), alpha * 255)], dim=1)


def _pale(image: Tensor) -> Tensor:
    """Photo with most of its colour taken out: uint8 [3, H, W] -> float [3, H, W], 0..255."""
    photo = image.float()
    grey = (photo * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)  # [1, H, W]
    return 0.8 * grey + 0.2 * photo


def _row_of_tiles(tiles: Sequence[tuple[str, Tensor]], gap: int = 8, caption_height: int = 26) -> Tensor:
    """Tiles (caption, uint8 [3, h, w]) of one size side by side on white: uint8 [3, ., .]."""
    height, width = tiles[0][1].shape[1:]
    canvas = Image.new("RGB", (len(tiles) * (width + gap) - gap, height + caption_height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    for column, (caption, tile) in enumerate(tiles):
        left = column * (width + gap)
        canvas.paste(Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy()), (left, caption_height))
        pen.text(
            (left + 2, caption_height // 2), _fit_text(caption, font, width - 4), "#222222", font, anchor="lm"
        )
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()


def _fit_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The longest beginning of a text that fits into `width` pixels."""
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text


def _counted(count: int) -> str:
    return "1 mask" if count == 1 else f"{count} masks"


def _check_image(image: Tensor) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image must be uint8 [3, H, W], got {image.dtype} {list(image.shape)}")
