# SPDX-License-Identifier: Apache-2.0
"""The image formats: all that Pillow reads by itself, and HEIC if pillow-heif is installed."""

from __future__ import annotations

import io
import re
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

# Extensions, without the formats for which Pillow needs Windows or Ghostscript, or which it only recognises.
_OF_PILLOW = (
    ".apng .bmp .blp .bw .cur .dcx .dds .dib .fit .fits .flc .fli .ftc .ftu .gbr .gif .icb .icns .ico .im .j2c .j2k "
    ".jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .msp .pbm .pcd .pcx .pfm .pgm .png .pnm .ppm .psd .pxr .qoi .ras "
    ".rgb .rgba .sgi .tga .tif .tiff .vda .vst .webp .xbm .xpm"
)
_AVIF_EXTENSIONS, _HEIC_EXTENSIONS = (".avif", ".avifs"), (".heic", ".heif", ".hif")
_HAS_AVIF, _HAS_HEIF = find_spec("PIL._avif") is not None, find_spec("pillow_heif") is not None
_FOR_AVIF, _FOR_HEIC = "pip install 'pillow>=11.3'", "pip install pillow-heif"

IMAGE_EXTENSIONS = tuple(
    sorted([*_OF_PILLOW.split(), *(_AVIF_EXTENSIONS if _HAS_AVIF else ()), *(_HEIC_EXTENSIONS if _HAS_HEIF else ())])
)
"""Extensions of the images that can be read here, in lower case."""

NEEDED_FOR = {**dict.fromkeys(_AVIF_EXTENSIONS, _FOR_AVIF), **dict.fromkeys(_HEIC_EXTENSIONS, _FOR_HEIC)}
"""Extensions that not every installation can read, and the command that adds support."""

# Bytes 4 to 12 of a file.
_HEIC_BRANDS = tuple(
    b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
)
_AVIF_BRANDS = (b"ftypavif", b"ftypavis")


_HIDDEN = re.compile(rb"(^|/)(\.|(\$RECYCLE\.BIN|@eaDir|__MACOSX)(/|$))")


def is_hidden(path: bytes) -> bool:
    """Whether a relative path is a hidden or system file: `._a.jpg` of macOS, `@eaDir/a.jpg` of a NAS."""
    return _HIDDEN.search(path) is not None


class NoReader(Exception):
    """The format of an image needs a package that is not installed; the message names it."""


def open_image(source: Path | io.BytesIO) -> ImageFile.ImageFile:
    """An image whose header is read, and whose pixels are not. Raises NoReader and the errors of Pillow.

    HEIC is opened without registering its reader in Pillow, which would change Pillow for the whole process.
    """
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        brand = _first_bytes(source)[4:12]
        if brand in _AVIF_BRANDS and not _HAS_AVIF:
            raise NoReader(f"AVIF cannot be read here: {_FOR_AVIF}") from None
        if brand not in _HEIC_BRANDS:
            raise
        if not _HAS_HEIF:
            raise NoReader(f"HEIC cannot be read here: {_FOR_HEIC}") from None
    from pillow_heif import HeifImageFile

    return HeifImageFile(source)


def _first_bytes(source: Path | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:12]
    with source.open("rb") as file:
        return file.read(12)
