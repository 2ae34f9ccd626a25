# SPDX-License-Identifier: Apache-2.0
"""Photos shrunk into one tar, so that a training set can be carried to where the GPU is."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sohes.data.images import UnreadableImage, read_image


def write_pack(paths: Sequence[Path], out: Path, side: int, quality: int, num_threads: int) -> list[str]:
    """Write each photo as a WebP picture, its long side at most `side` pixels; the tar appears whole or not at all.

    The same photos give the same bytes. `quality`: 0..100, WebP's.

    Returns:
        One line for every photo that cannot be read, and so is not in the tar.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    failures = []
    with ThreadPoolExecutor(num_threads) as pool, tarfile.open(temporary, "w") as tar:
        made = pool.map(lambda path: _shrunk(path, side, quality), paths)
        for number, (path, picture) in enumerate(zip(paths, made, strict=True)):
            if isinstance(picture, UnreadableImage):
                failures.append(str(picture))
                continue
            member = tarfile.TarInfo(f"{number:08d}-{Path(path).stem}.webp")
            member.size = len(picture)
            tar.addfile(member, io.BytesIO(picture))
    os.replace(temporary, out)
    return failures


def shrink(image: Tensor, side: int) -> Tensor:
    """uint8 [3, H, W] -> the same photo with a long side of at most `side` pixels; small photos stay as they are."""
    height, width = image.shape[1:]
    if max(height, width) <= side:
        return image
    factor = side / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _shrunk(path: Path, side: int, quality: int) -> bytes | UnreadableImage:
    try:
        image = shrink(read_image(path), side)
    except UnreadableImage as error:
        return error
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
