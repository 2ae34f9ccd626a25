# SPDX-License-Identifier: Apache-2.0
"""Reads a JSON file from front to back in little memory: keys of objects, elements of arrays, whole values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

CHUNK_BYTES = 1 << 22


Element = tuple[Any, int, int]
"""A JSON value and where in the file it is spelled: its first byte, and the one past its last."""


class JsonReader:
    """Walks through a UTF-8 JSON file. Raises ValueError, with the byte, where the text is no JSON.

    The window on the file is kept as Latin-1, one character a byte, so that places in it are places in the file; the
    characters JSON is made of are the same. A value with other than ASCII characters is decoded again as UTF-8.
    """

    def __init__(self, path: Path, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._file = path.open("rb")
        self._chunk_bytes = chunk_bytes
        self._text, self._at, self._offset = "", 0, 0  # window, place in it, place of the window in the file
        self._is_whole = False  # the window reaches the end of the file
        self._scan = json.JSONDecoder().raw_decode
        self._fill()
        if self._text.startswith("\xef\xbb\xbf"):
            self._at = 3  # a byte order mark

    def __enter__(self) -> JsonReader:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    def peek(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        if self._at < len(self._text) and (char := self._text[self._at]) not in " \t\r\n":
            return char  # by far the most frequent case
        while True:
            while self._at < len(self._text):
                char = self._text[self._at]
                if char not in " \t\r\n":
                    return char
                self._at += 1
            if self._is_whole:
                return ""
            self._fill()

    def value(self) -> Element:
        """The whole value that comes next."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._is_whole:
                    raise ValueError(f"{error.msg} at byte {self._offset + error.pos}") from error
            else:
                # A number may go on beyond the window, of which it can show as much as "e+".
                if end + 2 < len(self._text) or self._is_whole:
                    break
            self._fill()
        start, self._at = self._at, end
        if not self._text.isascii() and not self._text[start:end].isascii():
            value = json.loads(self._text[start:end].encode("latin-1"))
        return value, self._offset + start, self._offset + end

    def elements(self) -> Iterator[Element]:
        """Every element of the array that comes next."""
        self._expect("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self._expect(",")
        self._expect("]")

    def members(self) -> Iterator[str]:
        """Every key of the object that comes next; read its value before asking for another."""
        self._expect("{")
        while self.peek() != "}":
            key = self.value()[0]
            self._expect(":")
            yield key
            if self.peek() != "}":
                self._expect(",")
        self._expect("}")

    def _expect(self, char: str) -> None:
        if (found := self.peek()) != char:
            got = repr(found) if found else "the end of the file"
            raise ValueError(f"expected {char!r}, got {got} at byte {self._offset + self._at}")
        self._at += 1

    def _fill(self) -> None:
        """Drop what is behind and read on; twice as far when a single value does not fit."""
        rest = self._text[self._at :]
        more = self._file.read(max(self._chunk_bytes, len(rest)))
        self._offset += self._at
        self._text, self._at = rest + more.decode("latin-1"), 0
        self._is_whole = not more
