# SPDX-License-Identifier: Apache-2.0
"""Any image file as RGB uint8 [3, H, W]: all modes of Pillow, EXIF orientation, files and members of tar archives."""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sohes.data.bit_depth import load_rgb, to_rgb
from sohes.data.errors import DataError
from sohes.data.formats import IMAGE_EXTENSIONS, NoReader, open_image
from sohes.data.tars import TAR_EXTENSION, DamagedTar, TarCache, split_member

open_tar = TarCache(IMAGE_EXTENSIONS)
"""The index of an archive's images, made on first use and cached for this process."""

# An image with more pixels is refused as a possible decompression bomb, as Pillow does.
MAX_PIXELS = 178_956_970

_EXIF_ORIENTATION_TAG = 0x0112
# EXIF orientation -> the transpose that makes the stored pixels upright. 1 and unknown values need none.
_EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE_ORIENTATION = {6: 8, 8: 6}
"""The orientation with the inverse transpose; all others are their own inverse."""

# Raised by Pillow's decoders for damaged files: OSError, and any error in parsing headers.
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
    """An image file that cannot be read: its `path`, and the `reason` in one line."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(path, reason)  # both as args, so that the error can be pickled between processes
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.path}: {self.reason}"


def read_image(path: str | os.PathLike, apply_exif: bool = True, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read one image file as RGB, uint8 [3, H, W].

    Args:
        path: any file Pillow can decode, and HEIC if pillow-heif is installed; of an animation or a multi-page file the
            first frame is read. An image in a plain tar archive has a path like a file in a folder:
            `photos.tar/a/b.jpg`.
        apply_exif: rotate the image upright by its orientation in EXIF or XMP (all eight, in any format); False gives
            the pixels as stored. A damaged EXIF block is ignored. `docs/datasets.md` says which data sets are read in
            which way. (HEIC stores its orientation outside of EXIF, as part of the image: it is always upright.)
        max_pixels: larger images are refused before decoding. Values above `MAX_PIXELS` also need a higher
            `PIL.Image.MAX_IMAGE_PIXELS`, Pillow's own limit.

    Colours: gray is repeated over the three channels. All depths become 8 bits, rounded to the nearest:

    - 16-bit integers, gray or colour, are scaled from 0..65535, or from 0..4095 if no value except alpha is larger
      (12-bit sensors); of CMYK the high byte is taken.
    - 32-bit and signed integers follow that rule if they are in 0..65535; signed bytes are unchanged if none is
      negative; otherwise their range from minimum to maximum is scaled to 0..255.
    - Floats are scaled from 0..1 or 0..255 if all values lie inside, otherwise from their minimum to their maximum. NaN
      and infinities count as 0.
    - If a TIFF says that 0 is white, the scaled values are inverted.

    Transparency is composited on white after scaling: alpha (of full range), a transparent palette entry, or a
    transparent gray or colour, which is compared at the depth of the file.

    Raises:
        UnreadableImage: missing, empty, not an image, truncated or damaged, or too large.
    """
    path = Path(path)
    with _as_unreadable(path):
        return _decode(_open(path), path, apply_exif, max_pixels)


def read_annotated(path: str | os.PathLike) -> Tensor:
    """A photo with ground truth as uint8 [3, H, W], without EXIF rotation, as masks are annotated on stored pixels."""
    return read_image(path, apply_exif=False)


def decode_image(content: bytes, path: str | os.PathLike, apply_exif: bool, max_pixels: int = MAX_PIXELS) -> Tensor:
    """`read_image` of the bytes of a file; `path` is for errors."""
    with _as_unreadable(Path(path)):
        return _decode(io.BytesIO(content), Path(path), apply_exif, max_pixels)


def _decode(source: Path | io.BytesIO, path: Path, apply_exif: bool, max_pixels: int) -> Tensor:
    with open_image(source) as image:
        if image.width * image.height > max_pixels:
            size = f"{image.width}x{image.height} pixels"
            limit = f"the limit of {max_pixels} pixels (max_pixels)"
            raise UnreadableImage(path, f"{size} are over {limit}; a decompression bomb?")
        # Pillow applies the orientation of a TIFF while it loads it, and finds that of a PNG only then.
        applied = _orientation(image) if image.format == "TIFF" else 1
        rgb = load_rgb(image, lambda: open_image(source))
        orientation = _orientation(image)
    if orientation == applied:  # Pillow did not apply it
        applied = 1
    if applied in _EXIF_TRANSPOSE and not apply_exif:
        rgb = rgb.transpose(_EXIF_TRANSPOSE[_INVERSE_ORIENTATION.get(applied, applied)])
    elif orientation in _EXIF_TRANSPOSE and apply_exif:
        rgb = rgb.transpose(_EXIF_TRANSPOSE[orientation])
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()  # [H, W, 3] -> [3, H, W]


@contextmanager
def _as_unreadable(path: Path) -> Iterator[None]:
    """Raises every error of a file as UnreadableImage."""
    try:
        yield
    except UnreadableImage:
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(path, "no such file") from error
    except NotADirectoryError as error:
        raise UnreadableImage(path, "no such file: a folder of this path is a file") from error
    except IsADirectoryError as error:
        raise UnreadableImage(path, "is a folder, not a file") from error
    except NoReader as error:
        raise UnreadableImage(path, str(error)) from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(path, "not an image, or of a format that Pillow does not know") from error
    except _DECODE_ERRORS as error:
        raise UnreadableImage(path, str(error) or type(error).__name__) from error


def _open(path: Path) -> Path | io.BytesIO:
    """A file, or the content of an archive's member. Raises UnreadableImage, or OSError if there is no such file."""
    opened: Path | io.BytesIO
    is_archive = path.suffix.lower() == TAR_EXTENSION and os.path.isfile(path)
    member = (str(path), "") if is_archive else split_member(path)
    if member is None:
        num_bytes, opened = path.stat().st_size, path
    else:
        archive, name = member
        try:
            index = open_tar(archive)
        except DamagedTar as error:
            raise UnreadableImage(path, error.reason) from error
        if (content := index.read(name)) is None:
            missing = f"no such member in {archive}" if name else "is an archive, not an image"
            raise UnreadableImage(path, index.damage or missing)
        num_bytes, opened = len(content), io.BytesIO(content)
    if num_bytes == 0:
        raise UnreadableImage(path, "the file is empty (0 bytes)")
    return opened


def image_to_tensor(image: Image.Image) -> Tensor:
    """A Pillow image of any mode as RGB, uint8 [3, H, W]; colours as in `read_image`, but 16-bit ones as Pillow's.

    Its EXIF orientation is ignored.
    """
    return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1).contiguous()  # [H, W, 3] -> [3, H, W]


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return 1  # only the EXIF block is damaged, not the pixels
