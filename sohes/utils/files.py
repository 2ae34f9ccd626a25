# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all: written under a temporary name beside their place, then renamed."""

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
"""Bytes of a file's name that file systems allow."""
# Longer names than this are shortened in temporary names, to leave room.
_LONGEST_STEM = 160
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_file(path: str | os.PathLike, mode: str = "w", encoding: str | None = "utf-8") -> Iterator[IO]:
    """Open a file to be written; it takes its place, or that of an older one, when the block ends without an error.

    Readers never see half a file, whenever this process is killed. The temporary name holds the host and the process,
    so that writers on several machines do not meet. Missing folders are made. A link is followed, and what is no file
    (`/dev/null`, a pipe) is written to as it is.

    Args:
        mode: "w" for text in `encoding`, "wb" for bytes.

    Raises:
        OSError: as the system says, with `path` as its file name. IsADirectoryError: before anything is written.
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
        # A full disk comes without a name, and the temporary one tells nobody anything.
        if (error.errno in _FULL and error.filename is None) or error.filename == str(temporary):
            raise OSError(error.errno, error.strerror, os.fspath(given)) from error
        raise
    finally:
        if temporary is not None:
            with suppress(
                OSError
            ):  # gone, or never made: a folder that nothing can be written to lets nothing be removed
                temporary.unlink()


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file whole or not at all, text as UTF-8: of names that are none, the bytes in question as escapes."""
    with whole_file(path, "wb") as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def write_whole_once(path: Path, content: str) -> bool:
    """Write a text file whole unless there is one already. Returns whether it was written: of several at once, one."""
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
    """Remove what a kill while writing `path` left beside its place. Not for a file that another process may write."""
    for temporary in path.parent.glob(f"{glob.escape(_stem(path.name))}.*.tmp"):
        temporary.unlink(missing_ok=True)


def fitting_name(stem: str, suffix: str) -> str:
    """`stem` + `suffix`, or where that is longer than file systems allow, the stem cut and told apart by a checksum."""
    encoded, room = os.fsencode(stem), _LONGEST - len(os.fsencode(suffix))
    if len(encoded) <= room:
        return stem + suffix
    mark = f"~{zlib.crc32(encoded):08x}"
    cut = encoded[: room - len(mark)]
    while cut and (encoded[len(cut)] & 0xC0) == 0x80:  # not within a character
        cut = cut[:-1]
    return f"{os.fsdecode(cut)}{mark}{suffix}"


def _kind(path: Path) -> int | None:
    """The mode of what is at `path`, links followed; None where there is nothing. Raises OSError."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _stem(name: str) -> str:
    encoded = os.fsencode(name)
    return f".{name}" if len(encoded) <= _LONGEST_STEM else f".{zlib.crc32(encoded):08x}"
