# SPDX-License-Identifier: Apache-2.0
"""Many photos as one tar of small images, to copy a training set to another machine."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sohes.data.errors import DataError
from sohes.data.images import UnreadableImage
from sohes.data.sources import ImageList
from sohes.utils.files import fitting_name, whole_file
from sohes.utils.workers import worker_pool


def write_pack(photos: ImageList, out: Path, side: int, quality: int, num_threads: int) -> list[str]:
    """Write each photo as a WebP image with a long side of at most `side` pixels; the tar is written atomically.

    The same photos give the same bytes. quality: 0..100, of WebP.

    Returns:
        One line for every photo that cannot be read, and is therefore not in the tar.

    Raises:
        DataError: no photo can be read.
    """
    failures = []
    with (
        worker_pool(num_threads, 1, "pack") as pool,
        whole_file(out, "wb", None) as file,
        tarfile.open(fileobj=file, mode="w") as tar,
    ):
        encoded = pool.map(lambda index: _encode(photos, index, side, quality), range(len(photos)))
        for index, content in enumerate(encoded):
            if isinstance(content, UnreadableImage):
                failures.append(str(content))
                continue
            member = tarfile.TarInfo(fitting_name(f"{index:08d}-{photos[index].stem}", ".webp"))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if len(failures) == len(photos):  # here, before an older tar is replaced
            raise DataError(f"none of {len(photos)} photos could be read; the first: {failures[0]}")
    return failures


def shrink(image: Tensor, side: int) -> Tensor:
    """A photo uint8 [3, H, W] resized to a long side of at most `side` pixels; smaller photos are unchanged."""
    height, width = image.shape[1:]
    if max(height, width) <= side:
        return image
    factor = side / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _encode(photos: ImageList, index: int, side: int, quality: int) -> bytes | UnreadableImage:
    try:
        image = shrink(photos.read(index), side)
    except UnreadableImage as error:
        return error
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
