# SPDX-License-Identifier: Apache-2.0
"""A count of the files that a search for photos skipped, so that no photo is lost silently."""

from __future__ import annotations

import os

from sohes.data.formats import NEEDED_FOR

_MAX_KINDS = 50  # further extensions are counted as _OTHERS
_MAX_SHOWN = 8
_OTHERS = "others"


class SkippedFiles:
    """Number of skipped files by extension, and the first file of each. Its length is their total, its text one line:
    `3 files skipped: 2 .heic (IMG_1.HEIC first; pip install pillow-heif), 1 .txt (notes.txt)`."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, bytes]] = {}

    def add(self, name: bytes, count: int = 1) -> None:
        """Add a file, or `count` files of its extension, of which it is the first."""
        suffix = os.path.splitext(name)[1].lower().decode("utf-8", "backslashreplace") or "without extension"
        if suffix not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            suffix = _OTHERS
        known, first = self._kinds.get(suffix, (0, name))
        self._kinds[suffix] = known + count, first

    def add_all(self, others: SkippedFiles, folder: bytes) -> None:
        """Add the files skipped in a folder or archive of this name."""
        for count, first in others._kinds.values():
            self.add(folder + b"/" + first, count)

    def __len__(self) -> int:
        return sum(count for count, _ in self._kinds.values())

    def __str__(self) -> str:
        def order(kind: str) -> tuple[bool, bool, int, str]:
            return kind not in NEEDED_FOR, kind == _OTHERS, -self._kinds[kind][0], kind

        kinds = sorted(self._kinds, key=order)
        parts = [self._describe(kind) for kind in kinds[:_MAX_SHOWN]]
        if rest := sum(self._kinds[kind][0] for kind in kinds[_MAX_SHOWN:]):
            parts.append(f"{rest} of other kinds")
        return f"{len(self)} {'file' if len(self) == 1 else 'files'} skipped: {', '.join(parts)}"

    def _describe(self, kind: str) -> str:
        count, first = self._kinds[kind]
        name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in first.decode("utf-8", "backslashreplace"))
        notes = [f"{name} first" if count > 1 else name, *([NEEDED_FOR[kind]] if kind in NEEDED_FOR else [])]
        return f"{count} {kind} ({'; '.join(notes)})"
