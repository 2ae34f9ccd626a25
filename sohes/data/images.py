# SPDX-License-Identifier: Apache-2.0
"""Read photos as the world has them: any Pillow mode, rotated, damaged, in folders or in tar archives."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sohes.data.errors import DataError
from sohes.data.tars import TAR_EXTENSION, DamagedTar, TarCache, split_member

IMAGE_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

open_tar = TarCache(IMAGE_EXTENSIONS)
"""The index of an archive's images, made on first use and kept for this process."""

# Above this many pixels a header is taken for a decompression bomb. Pillow itself refuses from here on.
MAX_PIXELS = 178_956_970

_EXIF_ORIENTATION_TAG = 0x0112
# EXIF orientation -> the transpose that brings the stored pixels upright. 1 and unknown values need none.
_EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's decoders raise on damaged bytes: besides OSError, whatever their parsing of headers runs into.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableImage(DataError):
    """An image file that cannot be used. `path` says which, `reason` why, in one line."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(path, reason)  # both as args, so that the error survives pickling between processes
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.path}: {self.reason}"


def read_image(path: str | os.PathLike, apply_exif: bool = True, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read one image file as RGB, uint8 [3, H, W].

    Args:
        path: any file Pillow can decode; of an animation or a multi-page file the first frame is taken. An image in a
            plain tar archive is named like a file in a folder: `photos.tar/a/b.jpg`.
        apply_exif: turn the picture upright by its EXIF orientation (all eight). A damaged EXIF block counts
            as none.
        max_pixels: refuse larger pictures before decoding them. Values above `MAX_PIXELS` also need
            `PIL.Image.MAX_IMAGE_PIXELS` raised, because Pillow guards itself.

    Colours: transparency (alpha, a transparent palette entry or colour) is composited on white. Gray is
    repeated over the three channels. High bit depths become 8 bits: 16-bit integers are scaled from
    0..65535, or from 0..4095 when no value is above (12-bit sensors); floats are scaled from 0..1 or 0..255
    when all values lie inside, else stretched from their minimum to their maximum, with NaN and infinities
    as 0; 32-bit integers follow the rule of 16 bits when they fit and that of floats otherwise.

    Raises:
        UnreadableImage: missing, empty, not an image, truncated or damaged, or too large.
    """
    path = Path(path)
    try:
        with Image.open(_open(path)) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height} pixels"
                limit = f"the limit of {max_pixels} pixels (max_pixels)"
                raise UnreadableImage(path, f"{size} are over {limit}; a decompression bomb?")
            image.load()
            orientation = _orientation(image) if apply_exif else 1
            rgb = _to_rgb(image)
    except UnreadableImage:
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(path, "no such file") from error
    except NotADirectoryError as error:
        raise UnreadableImage(path, "no such file: a folder of this path is a file") from error
    except IsADirectoryError as error:
        raise UnreadableImage(path, "is a folder, not a file") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(path, "not an image, or of a format that Pillow does not know") from error
    except _DECODE_ERRORS as error:
        raise UnreadableImage(path, str(error) or type(error).__name__) from error
    if orientation in _EXIF_TRANSPOSE:
        rgb = rgb.transpose(_EXIF_TRANSPOSE[orientation])
    return image_to_tensor(rgb)


def _open(path: Path) -> Path | io.BytesIO:
    """What Pillow is to open. Raises UnreadableImage, or OSError where there is no such file."""
    is_archive = path.suffix.lower() == TAR_EXTENSION and path.is_file()
    member = (str(path), "") if is_archive else split_member(path)
    if member is None:
        num_bytes, opened = path.stat().st_size, path
    else:
        archive, name = member
        try:
            content = open_tar(archive).read(name)
        except DamagedTar as error:
            raise UnreadableImage(path, error.reason) from error
        if content is None:
            raise UnreadableImage(path, f"no such member in {archive}" if name else "is an archive, not an image")
        num_bytes, opened = len(content), io.BytesIO(content)
    if num_bytes == 0:
        raise UnreadableImage(path, "the file is empty (0 bytes)")
    return opened


def image_to_tensor(image: Image.Image) -> Tensor:
    """A Pillow image of any mode as RGB, uint8 [3, H, W]; colours as in `read_image`, orientation as stored."""
    return torch.from_numpy(np.array(_to_rgb(image))).permute(2, 0, 1).contiguous()  # [H, W, 3] -> [3, H, W]


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return 1  # the pixels are fine, only the block beside them is not


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode -> "RGB"; see `read_image` for the rules."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Gray of any depth [H, W] -> uint8 [H, W]."""
    if np.issubdtype(values.dtype, np.floating):
        values = np.where(np.isfinite(values), values, 0)
        low, high = float(values.min()), float(values.max())
        scale_tops = (1.0, 255.0)
    else:
        low, high = int(values.min()), int(values.max())
        scale_tops = (4095, 65535)
    for top in scale_tops:
        if low >= 0 and high <= top:
            return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)
    stretch = 255 / ((high - low) or 1)  # a constant image becomes black
    return np.rint((values.astype(np.float64) - low) * stretch).astype(np.uint8)
