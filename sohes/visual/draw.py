# SPDX-License-Identifier: Apache-2.0
"""Pictures of a forest of masks: coloured fills with contours one pixel wide.

Shapes: H W image, h w picture scaled for display, N masks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks
from sohes.visual.colors import forest_colors, oklch_to_srgb, srgb_to_oklch

_FILL_ALPHA = 0.55
_DIM = 0.5  # brightness of the photo under bare contours
_CHUNK_PIXELS = 1 << 23  # masks are sampled in chunks of at most this many pixels of the picture


def overlay_forest(
    forest: Forest,
    level: int | None = None,
    fill: bool = True,
    max_masks: int = 200,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Transparent picture of a forest, to be put over its photo: uint8 [4, H, W], RGBA with straight alpha.

    Args:
        forest: the masks.
        level: draw only masks of this level, see `Forest` (0 = roots); None draws every level.
        fill: False draws the contours only.
        max_masks: draw at most this many, the best by score (then area). At least 1. Levels and colours are those of
            the whole forest.
        size: (h, w) of the picture, sampled at pixel centres; None takes the masks' own.

    Smaller masks are drawn over larger ones, and all contours over all fills. A contour is the outermost pixels of a
    mask, except along the border of the image.
    """
    drawn = _drawing_order(forest, level, max_masks)
    colors = forest_colors(forest)[drawn]
    masks = resize_masks(forest.masks[drawn], size or forest.masks.size)
    height, width = masks.size
    # Slot 0 is "nothing", slot 1 + k the k-th mask in drawing order.
    top, edge = np.zeros((height, width), np.int64), np.zeros((height, width), np.int64)
    packed = masks.words.cpu().view(torch.uint8).numpy()  # [n, bytes]
    for slot, (x0, y0, x1, y1) in enumerate(masks.boxes.tolist(), start=1):
        # One pixel more than the box: a contour pixel is compared with its neighbours.
        x0, y0, x1, y1 = max(x0 - 1, 0), max(y0 - 1, 0), min(x1 + 1, width), min(y1 + 1, height)
        mask = _unpack_box(packed[slot - 1], height, (x0, y0, x1, y1))
        top[y0:y1, x0:x1][mask] = slot
        edge[y0:y1, x0:x1][_contour(mask)] = slot
    fill_slots, edge_slots = torch.from_numpy(top), torch.from_numpy(edge)  # [H, W]

    picture = torch.zeros(height, width, 4, dtype=torch.float32, device="cpu")
    if fill:
        covered = fill_slots > 0
        picture[covered] = _with_alpha(colors.float()[fill_slots[covered] - 1], _FILL_ALPHA)
    on_edge = edge_slots > 0
    picture[on_edge] = _with_alpha(_line_colors(colors, over_fill=fill)[edge_slots[on_edge] - 1], 1.0)
    return picture.round().to(torch.uint8).permute(2, 0, 1).contiguous()


def draw_forest(
    image: Tensor, forest: Forest, level: int | None = None, max_masks: int = 200, fill: bool = True
) -> Tensor:
    """A photo with the masks of one level, or of all levels, drawn over it.

    Args:
        image: uint8 [3, H, W], of the masks' size.
        forest, level, max_masks, fill: as in :func:`overlay_forest`.

    Returns: uint8 [3, H, W]. The photo is pale (dark if only contours are drawn), so that colours are those of masks.
    Raises: ValueError if `image` is not uint8 [3, H, W] or has another size than the masks.
    """
    _check_image(image, forest)
    return _blend(image, overlay_forest(forest, level, fill, max_masks), fill)


def _blend(image: Tensor, overlay: Tensor, fill: bool) -> Tensor:
    """uint8 [3, h, w] under uint8 [4, h, w] -> uint8 [3, h, w]."""
    overlay = overlay.float()
    alpha = overlay[3:] / 255  # [1, H, W]
    photo = _pale(image) * (1.0 if fill else _DIM)
    blended = overlay[:3] * alpha + photo * (1 - alpha)  # [3, H, W]
    return blended.round().to(torch.uint8)


def draw_panel(image: Tensor, forest: Forest, tile: int = 480, max_levels: int = 3, max_masks: int = 60) -> Tensor:
    """One wide picture, photo | level 0 | level 1 | level 2 | all contours, with captions.

    Args:
        image: uint8 [3, H, W]; forest: its masks, of the same (H, W).
        tile: long side of one tile in pixels; smaller photos are scaled up to it and larger ones down.
        max_levels: how many levels get a tile of their own.
        max_masks: a tile shows at most this many of its masks, the best, and its caption says of how many. Levels are
            those of the whole forest.

    Returns: uint8 [3, h, w].
    Raises: ValueError if `image` is not uint8 [3, H, W] or has another size than the masks.
    """
    _check_image(image, forest)
    photo = resize_image(image, tile)
    size = (photo.shape[1], photo.shape[2])
    counts = torch.bincount(forest.levels.cpu(), minlength=max_levels).tolist()
    tiles = [("photo", photo)]
    for level in range(max_levels):
        overlay = overlay_forest(forest, level, True, max_masks, size)
        tiles.append((f"level {level}: {_counted(counts[level], max_masks)}", _blend(photo, overlay, fill=True)))
    overlay = overlay_forest(forest, None, False, max_masks, size)
    tiles.append((f"contours: {_counted(len(forest), max_masks)}", _blend(photo, overlay, fill=False)))
    return _row_of_tiles(tiles)


def resize_image(image: Tensor, long_side: int) -> Tensor:
    """Scale a photo for display: uint8 [3, H, W] -> uint8 [3, h, w], aspect ratio kept, no side below 1.

    max(h, w) is `long_side`, except that a photo of at most half that size is enlarged by the nearest integer factor,
    so that its pixels stay square.
    """
    height, width = image.shape[1:]
    scale = long_side / max(height, width)
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if scale >= 2:
        return image.repeat_interleave(round(scale), 1).repeat_interleave(round(scale), 2)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return torch.from_numpy(np.array(picture.resize(size, Image.Resampling.LANCZOS))).permute(2, 0, 1).contiguous()


def resize_forest(forest: Forest, size: tuple[int, int]) -> Forest:
    """The forest with masks of another size (h, w), sampled at the pixel centres. All else stays."""
    if size == forest.masks.size:
        return forest
    votes = None if forest.votes is None else forest.votes.cpu()
    return Forest(resize_masks(forest.masks, size), forest.scores.cpu(), forest.parents.cpu(), votes)


def resize_masks(masks: PackedMasks, size: tuple[int, int]) -> PackedMasks:
    """Masks of another size (h, w), sampled at the pixel centres, on the CPU.

    Reads single bits of the packed masks: no dense mask of the full size is allocated.
    """
    if size == masks.size:
        return masks
    if len(masks) == 0:
        return PackedMasks.empty(size)
    height = masks.size[0]
    ys, xs = (
        ((torch.arange(new, dtype=torch.float32, device="cpu") + 0.5) * old / new).long().clamp(max=old - 1)
        for old, new in zip(masks.size, size, strict=True)
    )  # [h], [w]
    bits = xs[:, None] * height + ys[None, :]  # [w, h] flat bit of each picture pixel, in the order of the words
    byte, position = (bits >> 3).flatten(), (bits & 7).to(torch.uint8)
    words = masks.words.cpu().view(torch.uint8)  # [N, bytes], the low byte of a word first
    parts = []
    chunk = max(1, _CHUNK_PIXELS // max(bits.numel(), 1))
    for start in range(0, len(words), chunk):
        sampled = words[start : start + chunk].index_select(1, byte).unflatten(1, bits.shape)  # [n, w, h]
        parts.append(PackedMasks.from_dense(((sampled >> position) & 1).mT))
    # `cat` would compute areas and boxes again.
    return parts[0] if len(parts) == 1 else PackedMasks.cat(parts)


def _drawing_order(forest: Forest, level: int | None, max_masks: int) -> Tensor:
    """Indices of the masks to draw, larger first: int64 [n]. Chosen by score, then area, then lower index."""
    areas, scores = forest.masks.areas.tolist(), forest.scores.tolist()
    levels = forest.levels.tolist()
    asked = [i for i in range(len(forest)) if areas[i] > 0 and (level is None or levels[i] == level)]
    best = sorted(asked, key=lambda i: (-scores[i], -areas[i], i))[:max_masks]
    # Equal areas: the deeper mask last, on top.
    drawn = sorted(best, key=lambda i: (-areas[i], levels[i], i))
    return torch.tensor(drawn, dtype=torch.int64, device="cpu")


def _unpack_box(packed: np.ndarray, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """One mask within a box x0, y0, x1, y1, half-open: uint8 [bytes] -> bool [y1 - y0, x1 - x0].

    Columns lie one after the other in a packed mask, so only the box's own columns are read.
    """
    x0, y0, x1, y1 = box
    first, last = x0 * height, x1 * height
    bits = np.unpackbits(packed[first // 8 : (last + 7) // 8], bitorder="little")
    return bits[first % 8 :][: last - first].reshape(x1 - x0, height)[:, y0:y1].T.astype(bool)


def _contour(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask with a 4-neighbour in the array but not in the mask: bool [H, W] -> bool [H, W]."""
    around = np.pad(mask, 1, constant_values=True)  # [H + 2, W + 2]
    return mask & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])


def _line_colors(colors: Tensor, over_fill: bool) -> Tensor:
    """Contour colours, uint8 [N, 3] -> float [N, 3]: lighter than the fill, or bright on a dim photo."""
    lines = []
    for color in colors.tolist():
        lightness, chroma, hue = srgb_to_oklch(color)
        lighter = min(lightness + 0.22, 0.95) if over_fill else max(lightness, 0.75)
        lines.append(oklch_to_srgb(lighter, chroma, hue))
    return torch.tensor(lines, dtype=torch.float32, device="cpu").reshape(-1, 3)


def _with_alpha(colors: Tensor, alpha: float) -> Tensor:
    """[n, 3] -> [n, 4] with one alpha, 0..1, scaled to 0..255."""
    return torch.cat([colors, colors.new_full((len(colors), 1), alpha * 255)], dim=1)


def _pale(image: Tensor) -> Tensor:
    """Photo with most of its colour taken out: uint8 [3, H, W] -> float [3, H, W], 0..255."""
    photo = image.float()
    grey = (photo * photo.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)  # [1, H, W]
    return 0.8 * grey + 0.2 * photo


def _row_of_tiles(tiles: Sequence[tuple[str, Tensor]], gap: int = 8, caption_height: int = 26) -> Tensor:
    """Tiles (caption, uint8 [3, h, w]) of one size side by side on white: uint8 [3, ., .]."""
    height, width = tiles[0][1].shape[1:]
    canvas = Image.new("RGB", (len(tiles) * (width + gap) - gap, height + caption_height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    for column, (caption, tile) in enumerate(tiles):
        left = column * (width + gap)
        canvas.paste(Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy()), (left, caption_height))
        pen.text((left + 2, caption_height // 2), _fit_text(caption, font, width - 4), "#222222", font, anchor="lm")
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()


def _fit_text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The longest beginning of a text that fits into `width` pixels."""
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text


def _counted(count: int, max_masks: int) -> str:
    if count > max_masks:
        return f"best {max_masks} of {count} masks"
    return "1 mask" if count == 1 else f"{count} masks"


def _check_image(image: Tensor, forest: Forest) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image must be uint8 [3, H, W], got {image.dtype} {list(image.shape)}")
    if tuple(image.shape[1:]) != tuple(forest.masks.size):
        raise ValueError(f"image of size {tuple(image.shape[1:])} given with masks of size {forest.masks.size}")
