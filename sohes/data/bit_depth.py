# SPDX-License-Identifier: Apache-2.0
"""Images of any bit depth, sign and transparency as 8-bit RGB; `sohes.data.images.read_image` states the rules.

Pillow keeps only the high bytes of 16-bit colours, reads signed bytes as unsigned and unsigned 32 bits as signed, and
does not invert deep grays stored with 0 as white. This module corrects what it decodes, by the tags of the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

TOP_12_BITS, TOP_16_BITS = 4095, 65535

_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 262, 284, 339  # TIFF tags
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED, _SEPARATE = 0, 1, 2, 2  # and their values
_NATIVE = "L" if sys.byteorder == "little" else "B"
_GRAY_AND_ALPHA = "LA;16B"


def load_rgb(image: ImageFile, reopen: Callable[[], ImageFile]) -> Image.Image:
    """An image that Pillow has opened but not loaded, in mode "RGB".

    reopen: opens the same file once more.
    """
    raw_modes = [_raw_mode(tile) for tile in image.tile or ()]
    if raw_modes == [_GRAY_AND_ALPHA]:  # four bytes per pixel, decoded as if they were 8-bit RGBA
        octets = _decode(image, ["RGBA"]).astype(np.uint16)  # [H, W, 4]
        values = (octets[..., 0::2] << 8 | octets[..., 1::2])[..., [0, 0, 0, 1]]  # [H, W, 4]
        return Image.fromarray(_deep_to_8_bits(values))
    halves = [_split_16_bits(image, raw_mode) for raw_mode in raw_modes]
    if not halves or None in halves:
        png_bits = {"L;2": 2, "L;4": 4}.get(raw_modes[0], 8) if raw_modes and image.format == "PNG" else 8
        image.load()
        return to_rgb(image, png_bits)
    highs, lows = zip(*halves, strict=True)
    high = _decode(image, highs)  # [H, W, 3 or 4]
    with reopen() as again:
        values = high.astype(np.uint16) << 8 | _decode(again, lows)
    if raw_modes[0].startswith("RGBX"):
        values = values[..., :3]  # a fourth sample without meaning, which some versions of Pillow keep
    is_premultiplied = raw_modes[0].startswith("RGBa")
    return Image.fromarray(_deep_to_8_bits(values, image.info.get("transparency"), is_premultiplied))


def to_rgb(image: Image.Image, png_bits: int = 8) -> Image.Image:
    """An image of any Pillow mode in mode "RGB". png_bits: bits per sample of its PNG, at most 8."""
    key = image.info.get("transparency")
    if (
        image.mode.startswith("I")
        or image.mode == "F"
        or (image.mode == "L" and _tiff(image, _SAMPLE_FORMAT) == _SIGNED)
    ):
        values = _stored_values(image)  # [H, W]
        gray = to_8_bits(values)
        if _tiff(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
            gray = 255 - gray
        if isinstance(key, int):
            gray = np.where(values == key, np.uint8(255), gray)
        return Image.fromarray(gray).convert("RGB")
    if image.mode == "La":  # premultiplied; Pillow's conversion to RGBA would lose transparent pixels
        image = image.convert("LA")
    if image.has_transparency_data:
        if image.mode in ("L", "RGB"):  # the key is a sample as stored, in the lowest bits of 16
            image = image.copy()
            scale = 255 // (2**png_bits - 1)
            image.info["transparency"] = (
                tuple(value & 255 for value in key) if isinstance(key, tuple) else key * scale & 255
            )
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Gray of any depth [H, W] as uint8 [H, W]."""
    if np.issubdtype(values.dtype, np.floating):
        values = np.where(np.isfinite(values), values, 0)
        low, high = float(values.min()), float(values.max())
        tops: tuple[float, ...] = (1, 255)
    else:
        low, high = int(values.min()), int(values.max())
        tops = (255,) if values.dtype.itemsize == 1 else (TOP_12_BITS, TOP_16_BITS)
    for top in tops:
        if low >= 0 and high <= top:
            return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)
    scale = 255 / ((high - low) or 1)  # a constant image becomes black
    return np.rint((values.astype(np.float64) - low) * scale).astype(np.uint8)


def _deep_to_8_bits(
    values: np.ndarray, key: tuple[int, int, int] | None = None, is_premultiplied: bool = False
) -> np.ndarray:
    """uint16 [H, W, 3], or [H, W, 4] with alpha, as uint8 [H, W, 3] on white. key: the transparent colour."""
    colours = values[..., :3]
    top = TOP_12_BITS if colours.max() <= TOP_12_BITS else TOP_16_BITS
    table = np.arange(top + 1) * (255 / top)
    if values.shape[2] == 3 or values[..., 3].min() == TOP_16_BITS:
        rgb = np.rint(table).astype(np.uint8)[colours]  # [H, W, 3]
    else:
        opacity = values[..., 3:] / np.float32(TOP_16_BITS)  # [H, W, 1]
        foreground = table.astype(np.float32)[colours] * (1 if is_premultiplied else opacity)
        rgb = np.rint(foreground + 255 * (1 - opacity)).clip(0, 255).astype(np.uint8)
    if key is not None:
        rgb[(colours == np.array(key, np.uint16)).all(axis=2)] = 255
    return rgb


def _stored_values(image: Image.Image) -> np.ndarray:
    """Gray values [H, W] with the sign that the file states."""
    values = np.asarray(image)
    if values.dtype == np.uint8:
        return values.view(np.int8)
    if image.mode == "I" and _tiff(image, _SAMPLE_FORMAT) == _UNSIGNED and _tiff(image, _BITS_PER_SAMPLE) == 32:
        return values.view(np.uint32)
    return values


def _tiff(image: Image.Image, tag: int) -> int | None:
    """The first value of a TIFF tag; None if it is missing, and for other files."""
    tags = getattr(image, "tag_v2", {})
    value = tags.get(tag, _UNSIGNED if tags and tag == _SAMPLE_FORMAT else None)
    return value[0] if isinstance(value, tuple) else value


def _raw_mode(tile: tuple) -> str:
    """The layout of the bytes of one tile of a file, as Pillow's raw mode; "" if it has none."""
    first = tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
    return first if isinstance(first, str) else ""


def _split_16_bits(image: ImageFile, raw_mode: str) -> tuple[str, str] | None:
    """The raw modes that read the high and the low bytes of 16-bit colours; None for other depths."""
    kind, _, order = raw_mode.replace("RGBa", "RGBA").partition(";16")
    is_plane = kind in ("R", "G", "B", "A") and _tiff(image, _PLANES) == _SEPARATE
    if is_plane and isinstance(image, TiffImageFile) and _tiff(image, _BITS_PER_SAMPLE) == 16:
        order = "L" if image.tag_v2.prefix == b"II" else "B"  # Pillow's raw modes of separate planes name no depth
    elif kind not in ("RGB", "RGBA", "RGBX") or order not in ("L", "B", "N"):
        return None
    order = _NATIVE if order == "N" else order
    return f"{kind};16{order}", f"{kind};16{'B' if order == 'L' else 'L'}"


def _decode(image: ImageFile, raw_modes: Sequence[str]) -> np.ndarray:
    """Pixels of an image loaded with the given raw mode for each of its tiles, uint8 [H, W, C]."""
    tiles: list[Any] = []  # plain tuples before Pillow 11
    for tile, raw_mode in zip(image.tile, raw_modes, strict=True):
        arguments = (raw_mode, *tile[3][1:]) if isinstance(tile[3], tuple) else raw_mode
        tiles.append(tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments))
    image.tile = tiles
    image.load()
    return np.asarray(image)
