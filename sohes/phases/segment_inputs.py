# SPDX-License-Identifier: Apache-2.0
"""The photos to segment, each with a unique name for its files in the output folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sohes.data.errors import DataNotFoundError
from sohes.data.sources import list_images
from sohes.phases.segment_output import SUFFIXES, Photo, files_of_earlier_calls, is_own_picture
from sohes.utils.files import fitting_name
from sohes.utils.streams import say


def find_photos(given: Sequence[Path], out: Path) -> list[Photo]:
    """All photos of the given files and folders, each once, with unique names that overwrite no other file.

    A photo of a folder keeps its relative path. A name that is already used by another photo (compared without case),
    or by a file that no earlier call has written, gets the suffix -2, -3, ... Pictures written by this command are
    skipped in folders, but taken when they are given as files.

    Raises DataNotFoundError or DataError for a path without photos.
    """
    paths: dict[Path, Path] = {}  # resolved path -> path as given, in order
    places: dict[Path, Path] = {}  # resolved path -> path relative to --out
    for root in given:
        is_folder = root.is_dir()
        listed = list_images(root)
        if len(listed.skipped):
            say(f"{root}: {listed.skipped}", "stderr")
        for path in listed:
            key = path.resolve()
            if key not in paths and not (is_folder and is_own_picture(path)):
                paths[key] = path
                places[key] = path.relative_to(root) if is_folder else Path(path.name)
    if not paths:
        raise DataNotFoundError(f"no photos in {', '.join(map(str, given))}, only pictures that this command has made")
    taken = {str(key).lower() for key in paths}
    replaceable = files_of_earlier_calls(out)

    def is_free(target: Path) -> bool:
        resolved = str(target.resolve())
        is_foreign = resolved not in replaceable and target.exists() and not is_own_picture(target)
        return resolved.lower() not in taken and not is_foreign

    photos = []
    for key, path in paths.items():
        stem, number = _fit_folders(out, places[key].with_suffix("")), 1
        targets = _target_files(out, stem, "")
        while not all(map(is_free, targets)):
            number += 1
            targets = _target_files(out, stem, f"-{number}")
        taken.update(str(target.resolve()).lower() for target in targets)
        photos.append(Photo(path, targets[0].relative_to(out).as_posix().removesuffix(SUFFIXES[0])))
    return photos


def _fit_folders(out: Path, place: Path) -> Path:
    """`place`, relative to `out`, with the suffix .d on each folder whose name is that of an existing file."""
    folder = Path()
    for name in place.parts[:-1]:
        folder /= name
        if (out / folder).exists() and not (out / folder).is_dir():
            folder = folder.with_name(fitting_name(folder.name, ".d"))
    return folder / place.name


def _target_files(out: Path, stem: Path, number: str) -> list[Path]:
    """Paths of the files that a photo may have in any format, with names short enough for file systems."""
    longest = max(SUFFIXES, key=len)
    name = fitting_name(f"{stem.name}{number}", longest).removesuffix(longest)
    return [out / stem.parent / f"{name}{suffix}" for suffix in SUFFIXES]
