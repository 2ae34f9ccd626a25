# SPDX-License-Identifier: Apache-2.0
"""Atomic writing of files: under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import glob
import os
import socket
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_LONGEST = 255
"""Most bytes of a file name."""
_LONGEST_STEM = 160  # longer names are replaced by a checksum in temporary names
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_file(path: str | os.PathLike, mode: str = "w", encoding: str | None = "utf-8") -> Iterator[IO]:
    """Open a file for writing; it appears, or replaces an older one, when the block ends without an error.

    Readers never see a partial file, even if this process is killed. The temporary name has the host and the process
    id, so that writers on several machines do not collide. Missing folders are created. Links are followed; devices and
    pipes (`/dev/null`) are written directly.

    Args:
        mode: "w" for text in `encoding`, "wb" for bytes.

    Raises:
        OSError: of the system, with `path` as its file name. IsADirectoryError: before anything is written.
    """
    given, path = path, Path(path)
    encoding = None if "b" in mode else encoding
    temporary = None
    try:
        if (kind := _kind(path)) is not None and not stat.S_ISREG(kind):
            if stat.S_ISDIR(kind):
                raise IsADirectoryError(errno.EISDIR, "a folder, expected a file", str(path))
            with open(path, mode, encoding=encoding) as file:
                yield file
            return
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{_stem(path.name)}.{socket.gethostname()[:40]}.{os.getpid()}.tmp")
        with open(temporary, mode, encoding=encoding) as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        # A full disk has no file name in its error, and the temporary name means nothing to the user.
        if (error.errno in _FULL and error.filename is None) or error.filename == str(temporary):
            raise OSError(error.errno, error.strerror, os.fspath(given)) from error
        raise
    finally:
        if temporary is not None:
            with suppress(OSError):  # renamed, or never created
                temporary.unlink()


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8; what UTF-8 cannot encode becomes escapes."""
    with whole_file(path, "wb") as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def write_whole_once(path: Path, content: str) -> bool:
    """Write a text file atomically unless it exists. Returns whether it was written, by one of several writers."""
    if path.exists():
        return False
    mine = path.with_name(f"{_stem(path.name)}.{socket.gethostname()[:40]}.{os.getpid()}.once")
    write_whole(mine, content)
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        os.replace(mine, path)  # a file system without hard links
    finally:
        mine.unlink(missing_ok=True)
    return True


def remove_left_over(path: Path) -> None:
    """Remove temporary files of killed writers of `path`. Not for a file that another process may be writing."""
    for temporary in path.parent.glob(f"{glob.escape(_stem(path.name))}.*.tmp"):
        temporary.unlink(missing_ok=True)


def fitting_name(stem: str, suffix: str) -> str:
    """`stem` + `suffix`; if that is longer than file systems allow, the stem is cut and gets a checksum."""
    encoded, room = os.fsencode(stem), _LONGEST - len(os.fsencode(suffix))
    if len(encoded) <= room:
        return stem + suffix
    mark = f"~{zlib.crc32(encoded):08x}"
    cut = encoded[: room - len(mark)]
    while cut and (encoded[len(cut)] & 0xC0) == 0x80:  # not within a character
        cut = cut[:-1]
    return f"{os.fsdecode(cut)}{mark}{suffix}"


def _kind(path: Path) -> int | None:
    """The mode of the file at `path`, links followed; None if there is none. Raises OSError."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _stem(name: str) -> str:
    encoded = os.fsencode(name)
    return f".{name}" if len(encoded) <= _LONGEST_STEM else f".{zlib.crc32(encoded):08x}"
