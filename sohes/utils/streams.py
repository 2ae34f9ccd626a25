# SPDX-License-Identifier: Apache-2.0
"""Lines on the standard streams, whatever became of these: closed, absent, a pipe that nobody reads any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2}


def say(text: str, stream: Literal["stdout", "stderr"] = "stdout") -> None:
    """Write a line and flush it. Characters that the stream cannot show (a name that is no UTF-8) become escapes.

    Nothing is written where there is no such stream, as in a windowed program, and from the moment on when the reader
    of a pipe has gone: the work goes on, its files count.

    Raises OSError, with the stream as its file name, when the stream cannot be written: a full disk.
    """
    # Looked up now, not at import: rich swaps the stream while a bar is shown.
    file = getattr(sys, stream)
    if file is None or file.closed:
        return
    encoding = getattr(file, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)
    except BrokenPipeError:
        _let_go(file)
    except OSError as error:
        _let_go(file)
        raise OSError(error.errno, error.strerror, stream) from error


@contextmanager
def standing_streams() -> Iterator[None]:
    """Give a command standard streams for the time of a `with`: closed ones lead nowhere, broken ones end quietly.

    A descriptor that was closed before the start would be the next file's, and warnings of libraries written into it.
    """
    absent = []
    for name, number in _NUMBERS.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            absent.append(name)
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    try:
        yield
    finally:
        for name in absent:
            getattr(sys, name).close()
            setattr(sys, name, None)
        for file in (sys.stdout, sys.stderr):
            if file is not None and not file.closed:
                try:
                    file.flush()
                except BrokenPipeError:
                    _let_go(file)


def _let_go(file: TextIO) -> None:
    """Lead a stream that cannot be written nowhere, so that its buffer does not fail again when the program ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, file.fileno())
    finally:
        os.close(nowhere)
