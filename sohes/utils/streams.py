# SPDX-License-Identifier: Apache-2.0
"""Printing to standard streams that may be closed, absent, or a pipe without a reader."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2}


def say(text: str, stream: Literal["stdout", "stderr"] = "stdout") -> None:
    """Print a line and flush it. Characters that the stream cannot encode (names that are not UTF-8) become escapes.

    Nothing is printed if there is no such stream, as in a windowed program, or if a pipe's reader has ended: the
    program continues and writes its files.

    Raises OSError, with the stream as its file name, if the stream cannot be written, for example on a full disk.
    """
    # Read at each call: rich replaces the stream while a bar is shown.
    file = getattr(sys, stream)
    if file is None or file.closed:
        return
    encoding = getattr(file, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)
    except BrokenPipeError:
        _redirect_to_null(file)
    except OSError as error:
        _redirect_to_null(file)
        raise OSError(error.errno, error.strerror, stream) from error


@contextmanager
def standing_streams() -> Iterator[None]:
    """Open closed standard streams as /dev/null for the time of a `with`, and ignore broken pipes at its end.

    The descriptor of a closed stream would be given to the next file, and library warnings written into that file.
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
                    _redirect_to_null(file)


def _redirect_to_null(file: TextIO) -> None:
    """Redirect a stream to /dev/null, so that flushing its buffer does not fail again at the program's end."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, file.fileno())
    finally:
        os.close(null)
