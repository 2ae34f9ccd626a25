# SPDX-License-Identifier: Apache-2.0
"""Pictures of a forest of masks: fills and one-pixel contours, coloured so that a family shares a hue.

Colours are a function of the forest alone, so a picture can be repeated and two levels of one photo agree. Roots
take hues that stay apart for colour-blind readers (the set of Okabe and Ito, "Color Universal Design", 2008); a child varies
its parent's hue a little and its lightness more, so that siblings differ even where hue is not seen.

Shapes: H W image, h w picture (a picture may be smaller or larger than the image), N masks.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sohes.forest import Forest
from sohes.masks import PackedMasks

# Okabe and Ito's colours without black, which a dark photo would swallow; ordered so that neighbours in the list differ most.
_ROOT_COLORS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
_LIGHTNESS_CYCLE = (0.0, -0.13, 0.10)  # of roots beyond the seven colours, by turn of the list
_GOLDEN = (math.sqrt(5) - 1) / 2
_FILL_ALPHA, _CONTOUR_ALPHA = 0.55, 1.0
_CHUNK_PIXELS = 1 << 24  # masks are unpacked in chunks of at most this many picture pixels


def forest_colors(forest: Forest) -> Tensor:
    """Colour of every mask: uint8 [N, 3], sRGB. Masks are ranked by score, then area, then index."""
    parents, areas, scores = forest.parents.tolist(), forest.masks.areas.tolist(), forest.scores.tolist()
    children: dict[int, list[int]] = {}
    for mask in sorted(range(len(forest)), key=lambda i: (-scores[i], -areas[i], i)):
        children.setdefault(parents[mask], []).append(mask)

    anchors = [_srgb_to_oklch(color) for color in _ROOT_COLORS]
    lch: dict[int, tuple[float, float, float]] = {}
    for rank, root in enumerate(children.get(-1, [])):
        turn, slot = divmod(rank, len(anchors))
        lightness, chroma, hue = anchors[slot]
        # Each turn of the list lands between the hues of the turns before it (golden ratio of the mean gap).
        hue += 360 / len(anchors) * ((turn * _GOLDEN) % 1)
        lch[root] = (lightness + _LIGHTNESS_CYCLE[turn % len(_LIGHTNESS_CYCLE)], chroma, hue)

    stack = [(root, 1) for root in children.get(-1, [])]
    while stack:
        parent, depth = stack.pop()
        family = children.get(parent, [])
        lightness, chroma, hue = lch[parent]
        spread = 56 / 2**depth if len(family) > 1 else 0.0
        for rank, child in enumerate(family):
            offset = 2 * rank / max(len(family) - 1, 1) - 1  # -1 .. 1 over the siblings
            step = (0.14, -0.14, 0.07)[rank % 3]
            # A step that would leave the visible range turns round, or the child would look like its parent.
            step = -step if not 0.32 <= lightness + step <= 0.93 else step
            lch[child] = (lightness + step, chroma * 0.95, hue + spread * offset)
            stack.append((child, depth + 1))

    colors = [_oklch_to_srgb(*lch[mask]) for mask in range(len(forest))]
    return torch.tensor(colors, dtype=torch.uint8).reshape(-1, 3)


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
        size: (h, w) of the picture, default the image's own. Masks are sampled at pixel centres, contours are one
            *picture* pixel wide.
        fill: False draws the contours only.
        max_masks: of the masks asked for, draw the best by score (then area). At least 1.

    Smaller masks lie over larger ones, and all contours over all fills. A contour is the outermost pixels of a mask;
    the frame of the image is no contour.
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

    fills, lines = colors[drawn].float(), _line_colors(colors[drawn])
    picture = torch.zeros(height, width, 4)
    if fill:
        covered = top > 0
        picture[covered] = _with_alpha(fills[top[covered] - 1], _FILL_ALPHA)
    on_edge = edge > 0
    picture[on_edge] = _with_alpha(lines[edge[on_edge] - 1], _CONTOUR_ALPHA)
    return picture.round().to(torch.uint8).permute(2, 0, 1).contiguous()


def draw_forest(image: Tensor, forest: Forest, level: int | None = None, max_masks: int = 200, fill: bool = True) -> Tensor:
    """Masks of one level, or of all levels, over the photo they belong to.

    Args:
        image: uint8 [3, H, W]. May have another size than the masks (a picture scaled for display).
        forest, level, max_masks, fill: as in :func:`overlay_forest`.

    Returns: uint8 [3, H, W]. The photo is drawn pale, so that the hues are the masks' and not the photo's.
    Raises: ValueError when `image` is not uint8 [3, H, W].
    """
    _check_image(image)
    overlay = overlay_forest(forest, level, (image.shape[1], image.shape[2]), fill, max_masks).float()
    alpha = overlay[3:] / 255  # [1, H, W]
    blended = overlay[:3] * alpha + _pale(image) * (1 - alpha)  # [3, H, W]
    return blended.round().to(torch.uint8)


def draw_panel(image: Tensor, forest: Forest, tile: int = 480, max_levels: int = 3, max_masks: int = 200) -> Tensor:
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
        raise ValueError(f"image of size {tuple(image.shape[1:])} given with masks of size {tuple(forest.masks.size)}")
    photo = resize_image(image, tile)
    counts = torch.bincount(forest.levels, minlength=max_levels).tolist()
    tiles = [("photo", photo)]
    for level in range(max_levels):
        caption = f"level {level}: {_counted(counts[level])}"
        tiles.append((caption, draw_forest(photo, forest, level, max_masks)))
    tiles.append((f"contours: {_counted(len(forest))}", draw_forest(photo, forest, None, max_masks, fill=False)))
    return _row_of_tiles(tiles)


def resize_image(image: Tensor, long_side: int) -> Tensor:
    """uint8 [3, H, W] -> uint8 [3, h, w] with max(h, w) = long_side and the aspect ratio kept (no side below 1)."""
    height, width = image.shape[1:]
    scale = long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    # Whole-number enlargements of tiny photos keep their pixels visible; blurring them would hide what the model saw.
    smooth = Image.Resampling.LANCZOS if scale < 3 else Image.Resampling.NEAREST
    return torch.from_numpy(np.array(picture.resize(size, smooth))).permute(2, 0, 1).contiguous()


def _drawing_order(forest: Forest, level: int | None, max_masks: int) -> Tensor:
    """Indices of the masks to draw, larger first: int64 [n]. Which ones: best score, then larger, then lower index."""
    areas, scores = forest.masks.areas.tolist(), forest.scores.tolist()
    levels = forest.levels.tolist()
    asked = [i for i in range(len(forest)) if areas[i] > 0 and (level is None or levels[i] == level)]
    best = sorted(asked, key=lambda i: (-scores[i], -areas[i], i))[:max_masks]
    # Equal areas: the deeper mask last, so that it shows.
    return torch.tensor(sorted(best, key=lambda i: (-areas[i], levels[i], i)), dtype=torch.int64)


def _sample_masks(masks: PackedMasks, size: tuple[int, int]) -> Tensor:
    """Masks at the pixel centres of an (h, w) picture: bool [N, h, w]. Reads single bits, so no full-size mask is made."""
    height, width = masks.size
    ys = ((torch.arange(size[0]) + 0.5) * height / size[0]).long().clamp(max=height - 1)  # [h]
    xs = ((torch.arange(size[1]) + 0.5) * width / size[1]).long().clamp(max=width - 1)  # [w]
    bits = xs[None, :] * height + ys[:, None]  # [h, w] flat bit of each picture pixel
    words = masks.words.cpu()[:, bits >> 6]  # [N, h, w]
    return ((words >> (bits & 63)) & 1).bool()


def _contours(masks: Tensor) -> Tensor:
    """Pixels of a mask with a 4-neighbour inside the picture that is not of the mask: bool [N, h, w] -> bool [N, h, w]."""
    inside = torch.nn.functional.pad(masks[:, None].to(torch.uint8), (1, 1, 1, 1), mode="constant", value=1)[:, 0]
    core = inside[:, :-2, 1:-1] & inside[:, 2:, 1:-1] & inside[:, 1:-1, :-2] & inside[:, 1:-1, 2:]
    return masks & (core == 0)


def _line_colors(colors: Tensor) -> Tensor:
    """Contour colours, uint8 [N, 3] -> float [N, 3]: the fill pushed away from mid grey so that the line stands out."""
    lines = []
    for color in colors.tolist():
        lightness, chroma, hue = _srgb_to_oklch(color)
        lines.append(_oklch_to_srgb(min(lightness + 0.22, 0.95), chroma, hue))
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
    """Tiles of one size side by side on white, a caption above each: list of (text, uint8 [3, h, w]) -> uint8 [3, ., .]."""
    height, width = tiles[0][1].shape[1:]
    canvas = Image.new("RGB", (len(tiles) * (width + gap) - gap, height + caption_height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    for column, (caption, tile) in enumerate(tiles):
        left = column * (width + gap)
        canvas.paste(Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy()), (left, caption_height))
        pen.text((left + 2, caption_height // 2), _fit_text(caption, font, width - 4), "#222222", font, anchor="lm")
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


# Colour space: Oklab (B. Ottosson, 2020), in which equal steps of lightness look equal for every hue.
_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _srgb_to_oklch(color: Sequence[int]) -> tuple[float, float, float]:
    """sRGB 0..255 -> lightness 0..1, chroma, hue in degrees."""
    srgb = np.asarray(color, dtype=np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lightness, a, b = _LMS_TO_LAB @ np.cbrt(_RGB_TO_LMS @ linear)
    return float(lightness), float(np.hypot(a, b)), float(np.degrees(np.arctan2(b, a)))


def _oklch_to_srgb(lightness: float, chroma: float, hue: float) -> tuple[int, int, int]:
    """The reverse; a colour outside sRGB gives up chroma, not lightness or hue, until it fits."""
    lightness = min(max(lightness, 0.0), 1.0)
    for share in np.linspace(1, 0, 21):
        angle = math.radians(hue)
        lab = np.array([lightness, share * chroma * math.cos(angle), share * chroma * math.sin(angle)])
        linear = np.linalg.solve(_RGB_TO_LMS, np.linalg.solve(_LMS_TO_LAB, lab) ** 3)
        if linear.min() >= -1e-4 and linear.max() <= 1 + 1e-4:
            break
    linear = linear.clip(0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(round(float(value) * 255)) for value in srgb)
    return red, green, blue
