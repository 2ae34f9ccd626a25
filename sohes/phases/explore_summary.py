# SPDX-License-Identifier: Apache-2.0
"""Counts of phase 1: images with labels, without labels and failed, masks, and seconds per stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sohes.labels.label_files import is_failed
from sohes.labels.shards import Row
from sohes.utils.errors import EXIT_FAILURES, SohesError
from sohes.utils.estimate import format_seconds


class TooManyFailures(SohesError, RuntimeError):
    """More images failed than the settings allow, or all of them. All labels are written."""

    exit_code = EXIT_FAILURES


@dataclass
class ExploreSummary:
    """Counts of all labels; while other processes are running, of those that this process has finished.

    num_resumed: images that an earlier call had finished. is_complete: all shards and the manifest are written.
    seconds: per stage, summed over threads, of this call only. elapsed: wall-clock seconds of this call.
    """

    num_images: int = 0
    num_ok: int = 0
    num_empty: int = 0
    num_failed: int = 0
    num_masks: int = 0
    num_resumed: int = 0
    first_failure: str = ""
    is_complete: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    elapsed: float = 0.0

    def count(self, rows: Iterable[Row]) -> None:
        """Add the images of these manifest rows."""
        for row in rows:
            self.num_images += 1
            self.num_ok += row["status"] == "ok"
            self.num_empty += row["status"] == "empty"
            self.num_masks += row["masks"]
            if is_failed(row):
                self.num_failed += 1
                self.first_failure = self.first_failure or f"{row['file_name']}, {row['status']}"

    def check_failures(self, max_failures: int, manifest: Path) -> None:
        """Raises TooManyFailures if more than `max_failures` images failed, or all images."""
        if self.is_complete and self.num_failed == self.num_images:
            raise TooManyFailures(
                f"none of {self.num_images} images could be used; the first: {self.first_failure}; all are in "
                f"{manifest}"
            )
        if self.num_failed > max_failures:
            raise TooManyFailures(
                f"{self.num_failed} of {self.num_images} images could not be used, more than max_failures = "
                f"{max_failures}; the first: {self.first_failure}; all are in {manifest}"
            )

    def __str__(self) -> str:
        counts = f"{self.num_ok} ok, {self.num_empty} empty, {self.num_failed} failed, {self.num_masks} masks"
        total = sum(self.seconds.values())
        shares = (f"{name} {format_seconds(s)} ({100 * s / total:.0f}%)" for name, s in self.seconds.items() if total)
        stages = ", ".join(shares)
        return f"{self.num_images} images: {counts}" + (f"; time over all threads: {stages}" if stages else "")
