# SPDX-License-Identifier: Apache-2.0
"""Reads a JSON file from front to back in little memory: keys of objects, elements of arrays, whole values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

CHUNK_BYTES = 1 << 19  # it stays in the cache while it is looked through
WHITE_SPACE = b" \t\r\n"


Element = tuple[Any, int, int]
"""A JSON value and where in the file it is spelled: its first byte, and the one past its last."""


_TOO_DEEP = "values are nested too deep"


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, which raises nothing but ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error


class JsonReader:
    """Walks through a UTF-8 JSON file. Raises ValueError, with the byte, where the text is no JSON.

    The window on the file is kept as Latin-1, one character a byte, so that places in it are places in the file; the
    characters JSON is made of are the same. A value with other than ASCII characters is decoded again as UTF-8.

    offset, window, at: where in the file the window begins, its bytes, and the place in it.
    """

    def __init__(self, path: Path, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._file = path.open("rb")
        self._chunk_bytes = chunk_bytes
        self.window, self.at, self.offset = b"", 0, 0
        self._text: str | None = None  # the window, decoded when it is first needed
        self._is_whole = False  # the window reaches the end of the file
        self._scan = json.JSONDecoder().raw_decode
        self._fill()
        if self.window.startswith(b"\xef\xbb\xbf"):
            self.at = 3  # a byte order mark

    def __enter__(self) -> JsonReader:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    def peek(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            window = self.window
            while self.at < len(window):
                if (byte := window[self.at]) not in WHITE_SPACE:
                    return chr(byte)
                self.at += 1
            if self._is_whole:
                return ""
            self._fill()

    def look_ahead(self, num_bytes: int) -> None:
        """Read on unless the window holds so many bytes more, or the rest of the file."""
        if len(self.window) - self.at < num_bytes and not self._is_whole:
            self._fill()

    def value(self) -> Element:
        """The whole value that comes next."""
        self.peek()
        while True:
            if self._text is None:
                self._text = self.window.decode("latin-1")
            try:
                value, end = self._scan(self._text, self.at)
            except json.JSONDecodeError as error:
                if self._is_whole:
                    raise ValueError(f"{error.msg} at byte {self.offset + error.pos}") from error
            except RecursionError as error:
                raise ValueError(f"{_TOO_DEEP} at byte {self.offset + self.at}") from error
            else:
                # A number may go on beyond the window, of which it can show as much as "e+".
                if end + 2 < len(self._text) or self._is_whole:
                    break
            self._fill()
        start, self.at = self.at, end
        if not self._text.isascii() and not self._text[start:end].isascii():
            value = parse_json(self._text[start:end].encode("latin-1"))
        return value, self.offset + start, self.offset + end

    def elements(self) -> Iterator[Element]:
        """Every element of the array that comes next."""
        for _ in self.places():
            yield self.value()

    def places(self) -> Iterator[None]:
        """Stands before each element of the array that comes next; whoever asks reads one or, up to ``at``, several."""
        self._expect("[")
        while self.peek() != "]":
            yield
            if self.peek() != "]":
                self._expect(",")
        self._expect("]")

    def members(self) -> Iterator[str]:
        """Every key of the object that comes next; read its value before asking for another."""
        self._expect("{")
        while self.peek() != "}":
            key, start, _ = self.value()
            if not isinstance(key, str):
                raise ValueError(f"expected a name in quotes at byte {start}")
            self._expect(":")
            yield key
            if self.peek() != "}":
                self._expect(",")
        self._expect("}")

    def _expect(self, char: str) -> None:
        if (found := self.peek()) != char:
            got = repr(found) if found else "the end of the file"
            raise ValueError(f"expected {char!r}, got {got} at byte {self.offset + self.at}")
        self.at += 1

    def _fill(self) -> None:
        """Drop what is behind and read on; twice as far when a single value does not fit."""
        rest = self.window[self.at :]
        more = self._file.read(max(self._chunk_bytes, len(rest)))
        self.offset += self.at
        self.window, self.at = rest + more, 0
        self._text = None
        self._is_whole = not more
