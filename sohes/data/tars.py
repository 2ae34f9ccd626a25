# SPDX-License-Identifier: Apache-2.0
"""Images inside plain tar archives, read in any order without unpacking.

The path of a member is that of a file in a folder with the archive's name: `photos/sa_000020.tar/sa_226692.jpg`. The
headers of an archive are read once per process; the index in memory takes about 60 bytes per image.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

from sohes.data.errors import DataError
from sohes.data.formats import is_hidden
from sohes.data.names import Names
from sohes.data.skipped import SkippedFiles

TAR_EXTENSION = ".tar"

_BLOCK = 512
_END = bytes(_BLOCK)
# Type bytes of member headers.
_FILES = b"0\0" + b"7"
_WITHOUT_DATA = b"123456"  # links, devices, folders; their size field has no meaning
_PAX, _PAX_FOR_ALL, _LONG_NAME, _SPARSE = b"x", b"g", b"L", b"S"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class DamagedTar(DataError):
    """An archive that cannot be read to its end, and the `reason` in one line."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(path, reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read archive {self.path}: {self.reason}"


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Where the images of one archive lie.

    names: N member names in the order of the archive. starts, sizes: int64 [N], first byte and number of bytes of their
    content. damage: why the rest of the archive cannot be read, or None. skipped: its other files.
    """

    path: Path
    names: Names
    starts: np.ndarray
    sizes: np.ndarray
    damage: str | None
    skipped: SkippedFiles

    def read(self, name: str) -> bytes | None:
        """The content of a member, None if there is none of this name. Threads may read at the same time."""
        place = self.names.find(name)
        if place is None:
            return None
        with open(self.path, "rb", buffering=0) as file:
            return _read_at(file, int(self.starts[place]), int(self.sizes[place]))

    @cached_property
    def distinct(self) -> np.ndarray:
        """Indices of the members, int64: of equal names only the last, as when unpacking."""
        return self.names.distinct(keep_last=True)


def index_tar(path: str | os.PathLike, extensions: tuple[str, ...]) -> TarIndex:
    """The index of an archive's files with these extensions (given in lower case, matched in any case).

    A leading `./` is removed from names; hidden members and links are ignored. ustar, GNU and pax headers are
    supported. An end mark is not required. A damaged archive is indexed up to the damage.

    Raises:
        DamagedTar: no such file, not a tar, compressed, or damaged before its first complete file.
    """
    wanted = tuple(extension.encode() for extension in extensions)
    names, places, skipped, damage = [], array("q"), SkippedFiles(), None
    try:
        for name, start, size in _walk(Path(path)):
            name = name.lstrip(b"/")
            while name.startswith(b"./"):
                name = name[2:].lstrip(b"/")
            if is_hidden(name):
                continue
            if name.lower().endswith(wanted):
                names.append(name)
                places.extend((start, size))
            else:
                skipped.add(name)
    except DamagedTar as error:
        if not names and not len(skipped):
            raise
        damage = error.reason
    table = np.frombuffer(places, dtype=np.int64).reshape(-1, 2)
    return TarIndex(Path(path), Names(names), table[:, 0].copy(), table[:, 1].copy(), damage, skipped)


class TarCache:
    """The indexes of archives, each made on first use and again after the file has changed. Threads may share it."""

    def __init__(self, extensions: tuple[str, ...]) -> None:
        self._extensions = extensions
        self._indexes: dict[str, tuple[tuple[int, int], TarIndex]] = {}
        self._lock = threading.Lock()

    def __call__(self, path: str | os.PathLike) -> TarIndex:
        """The index of an archive. Raises DamagedTar."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise DamagedTar(path, error.strerror or str(error)) from error
        version, key = (status.st_mtime_ns, status.st_size), os.fspath(path)
        with self._lock:
            cached = self._indexes.get(key)
            if cached is None or cached[0] != version:
                cached = self._indexes[key] = (version, index_tar(path, self._extensions))
        return cached[1]


def split_member(path: str | os.PathLike) -> tuple[str, str] | None:
    """`("a/b.tar", "c/d.jpg")` for `a/b.tar/c/d.jpg` if `a/b.tar` is a file; None for any other path."""
    text = os.fspath(path)
    lower, at = text.lower(), 0
    while (at := lower.find(TAR_EXTENSION + "/", at)) >= 0:
        at += len(TAR_EXTENSION)
        if os.path.isfile(text[:at]):
            return text[:at], text[at + 1 :]
    return None


def _walk(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and size in bytes of every file of an archive. Raises DamagedTar."""
    try:
        with open(path, "rb", buffering=0) as file:  # only headers are read, so reading ahead would not help
            yield from _walk_open(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise DamagedTar(path, error.strerror or str(error)) from error


def _walk_open(path: Path, file: RawIOBase, file_size: int) -> Iterator[tuple[bytes, int, int]]:
    if file_size == 0:
        raise DamagedTar(path, "the file is empty (0 bytes)")
    at = 0
    long_name: bytes | None = None
    pax: dict[str, Any] = {}
    while True:
        header = _read_at(file, at, _BLOCK)
        if header == _END or (at > 0 and not header.strip(b"\0")):
            return  # the end, with or without an end mark
        if len(header) < _BLOCK:
            raise DamagedTar(path, f"cut short: no end mark within its {file_size} bytes")
        if not _is_checksum_right(header):
            raise DamagedTar(path, _why_no_header(header, at))
        try:
            kind = header[156:157]
            size = 0 if kind in _WITHOUT_DATA else pax.get("size", _number(header[124:136]))
            start = at + _BLOCK
            at = start + (size + _BLOCK - 1) // _BLOCK * _BLOCK
            if start + size > file_size:
                raise DamagedTar(path, f"cut short: a member goes on past its {file_size} bytes")
            if kind == _LONG_NAME:
                long_name = _read_at(file, start, size).rstrip(b"\0")
            elif kind == _PAX:
                pax = _parse_pax(_read_at(file, start, size))
            elif kind == _SPARSE:
                raise DamagedTar(path, "contains sparse files, which are not supported: unpack it")
            elif kind != _PAX_FOR_ALL:
                if kind in _FILES:
                    yield pax.get("path") or long_name or _name(header), start, size
                long_name, pax = None, {}
        except _NoNumber as error:
            raise DamagedTar(path, f"damaged: no valid header at byte {start - _BLOCK}") from error


class _NoNumber(Exception):
    """A header field holds no number, where one is expected."""


def _is_checksum_right(header: bytes) -> bool:
    """Whether the checksum of a header is right: the sum of its bytes, with those of the checksum as spaces."""
    try:
        stored = int(header[148:156].strip(b"\0 "), 8)
    except ValueError:
        return False
    others = header[:148] + header[156:]
    total = sum(others) + 8 * 32
    return stored in (total, total - 256 * sum(byte > 127 for byte in others))  # old programs summed signed bytes


def _why_no_header(header: bytes, at: int) -> str:
    if at > 0:
        return f"damaged: no valid header at byte {at}"
    kind = _COMPRESSED.get(header[:2])
    if kind is not None:
        return f"compressed with {kind}, which has no random access: decompress it to a plain tar"
    return "not a tar archive"


def _number(field: bytes) -> int:
    """A number in octal digits, or in binary if the top bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    return _digits(field.strip(b"\0 ") or b"0", 8)


def _digits(text: bytes, base: int) -> int:
    if not text.isdigit():
        raise _NoNumber
    try:
        return int(text, base)
    except ValueError as error:  # an 8 in an octal number
        raise _NoNumber from error


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _parse_pax(content: bytes) -> dict[str, Any]:
    """`path` (bytes) and `size` (int), if given, of records `<length> <key>=<value>\\n`."""
    found: dict[str, Any] = {}
    at = 0
    while at < len(content):
        digits = content[at : at + 20].split(b" ", 1)[0]
        length = max(_digits(digits, 10), 1)
        key, _, value = content[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if key == b"path":
            found["path"] = value
        elif key == b"size":
            found["size"] = _digits(value, 10)
        at += length
    return found


def _read_at(file: RawIOBase, start: int, size: int) -> bytes:
    """`size` bytes from `start` on; fewer only at the end of the file."""
    file.seek(start)
    content = file.read(size)
    while len(content) < size and (more := file.read(size - len(content))):  # one call reads at most 2 GiB
        content += more
    return content
