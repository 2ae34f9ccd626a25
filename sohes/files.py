# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import glob
import os
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# File systems allow 255 bytes a name. Longer names than this are shortened in temporary names, to leave room.
_LONGEST_NAME = 160


@contextmanager
def whole_file(path: str | os.PathLike, mode: str = "w", encoding: str | None = "utf-8") -> Iterator[IO]:
    """Open a file to be written; it takes its place, or that of an older one, when the block ends without an error.

    Readers never see half a file, whenever this process is killed. The temporary name holds the host and the process,
    so that writers on several machines do not meet. Missing folders are made.

    Args:
        mode: "w" for text in `encoding`, "wb" for bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_stem(path.name)}.{socket.gethostname()[:40]}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else encoding) as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file whole or not at all, text as UTF-8."""
    with whole_file(path, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def remove_left_over(path: Path) -> None:
    """Remove what a kill while writing `path` left beside its place. Not for a file that another process may write."""
    for temporary in path.parent.glob(f"{glob.escape(_stem(path.name))}.*.tmp"):
        temporary.unlink(missing_ok=True)


def _stem(name: str) -> str:
    encoded = os.fsencode(name)
    return f".{name}" if len(encoded) <= _LONGEST_NAME else f".{zlib.crc32(encoded):08x}"
