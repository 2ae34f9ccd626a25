# SPDX-License-Identifier: Apache-2.0
"""Streaming JSON reader with little memory: keys of objects, elements of arrays, whole values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

CHUNK_BYTES = 1 << 19  # fits in the CPU's cache
WHITE_SPACE = b" \t\r\n"


Element = tuple[Any, int, int]
"""A JSON value, and its first byte and the one past its last in the file."""


_TOO_DEEP = "values are nested too deep"


def parse_json(text: str | bytes) -> Any:
    """`json.loads` that raises only ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error


class JsonReader:
    """Reads a UTF-8 JSON file from start to end. Raises ValueError, with the byte, for text that is not JSON.

    The window of the file is decoded as Latin-1, one character per byte, so that positions in it are bytes of the file;
    JSON's own characters are the same. A value with non-ASCII characters is decoded again as UTF-8.

    offset: position of the window in the file. window: its bytes. at: the current position in the window.
    """

    def __init__(self, path: Path, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._file = path.open("rb")
        self._chunk_bytes = chunk_bytes
        self.window, self.at, self.offset = b"", 0, 0
        self._text: str | None = None  # the decoded window, None until needed
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
        """Extend the window if it has fewer than `num_bytes` bytes left and the file has more."""
        if len(self.window) - self.at < num_bytes and not self._is_whole:
            self._fill()

    def value(self) -> Element:
        """The next value."""
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
                # A number may continue beyond the window, which may end with its "e+".
                if end + 2 < len(self._text) or self._is_whole:
                    break
            self._fill()
        start, self.at = self.at, end
        if not self._text.isascii() and not self._text[start:end].isascii():
            value = parse_json(self._text[start:end].encode("latin-1"))
        return value, self.offset + start, self.offset + end

    def elements(self) -> Iterator[Element]:
        """Every element of the next array."""
        for _ in self.places():
            yield self.value()

    def places(self) -> Iterator[None]:
        """Stops before elements of the next array; the caller reads one, or moves ``at`` past several."""
        self._expect("[")
        while self.peek() != "]":
            yield
            if self.peek() != "]":
                self._expect(",")
        self._expect("]")

    def members(self) -> Iterator[str]:
        """Every key of the next object; read its value before the next key."""
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
        """Drop the bytes before `at` and read on; twice as many if a single value does not fit."""
        rest = self.window[self.at :]
        more = self._file.read(max(self._chunk_bytes, len(rest)))
        self.offset += self.at
        self.window, self.at = rest + more, 0
        self._text = None
        self._is_whole = not more
