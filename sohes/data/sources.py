# SPDX-License-Identifier: Apache-2.0
"""Lists of photos from folders, single files, text lists, COCO JSON and tar archives, or several of these."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from torch import Tensor

from sohes.data.errors import DataError, DataNotFoundError
from sohes.data.formats import IMAGE_EXTENSIONS, NEEDED_FOR, is_hidden
from sohes.data.images import UnreadableImage, open_tar, read_image
from sohes.data.names import Names
from sohes.data.skipped import SkippedFiles
from sohes.data.tars import TAR_EXTENSION, DamagedTar, split_member
from sohes.utils.json_stream import JsonReader

_WANTED = "such as .jpg .png .tif .webp: all that Pillow reads"

# A name relative to the folder of its source, and its problem or None.
_Found = tuple[bytes, str | None]


class ImageList(Sequence[Path]):
    """The images of some sources, in a fixed order. A million names of 30 bytes take about 40 MB.

    root: the folder that names are relative to. problems: name -> reason, of archives that are damaged and folders that
    cannot be read; each is one entry of the list, so that it is reported. skipped: other files in folders and archives,
    which are no images.
    """

    def __init__(self, root: Path, names: Names, problems: dict[str, str], skipped: SkippedFiles | None = None) -> None:
        self.root, self.names, self.problems, self.skipped = root, names, problems, skipped or SkippedFiles()

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...

    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        """The path of image `index`; in an archive, as if the archive were a folder."""
        if isinstance(index, slice):
            return [self.root / name for name in self.names[index]]
        return self.root / self.names[index]

    def read(self, index: int) -> Tensor:
        """Image `index`, uint8 [3, H, W]. Raises UnreadableImage."""
        if self.problems and (reason := self.problems.get(self.names[index])) is not None:
            raise UnreadableImage(self[index], reason)
        return read_image(self[index])


def list_images(
    sources: str | os.PathLike | Sequence[str | os.PathLike], root: str | os.PathLike | None = None
) -> ImageList:
    """The images of one source or several, without repetition.

    A source is one of

    - a folder, searched recursively with linked folders, in order of paths; tar archives in it are like folders;
    - an image file, recognised by its extension (`IMAGE_EXTENSIONS`, any case);
    - a plain `.tar` archive, in its own order; only its images are read (not SA-1B's JSON);
    - a `.txt` list with one image or archive per line, relative to the list, in its own order; blank lines and lines
      that begin with `#` are ignored;
    - a `.json` file with COCO's `images`, whose `file_name`s are relative to `images/` beside it if there is such a
      folder, else to its own; annotations are not read.

    Hidden files (`is_hidden`) are ignored, repeated paths count once. Listed files that are missing stay in the result,
    so that reading them reports the error; so do damaged archives, after the images before the damage. Other files in
    folders and archives are counted in `skipped`. Names need not be valid UTF-8, also in lists.

    Args:
        root: folder that names are relative to. Default: the folder of a single source, or the deepest common folder of
            several.

    Raises:
        DataNotFoundError: a source does not exist or has no images, or none of its listed files exists.
        DataError: a source is none of the above, or no source has a readable image list.
    """
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not given:
        raise DataNotFoundError("no images: expected at least one folder, image, list or archive")
    paths = [Path(source) for source in given]
    bases = [_base(path) for path in paths]
    if root is None:
        root = bases[0] if len(bases) == 1 else Path(os.path.commonpath([os.path.abspath(base) for base in bases]))
    problems: dict[str, str] = {}
    skipped = SkippedFiles()

    def names() -> Iterator[bytes]:
        for path, base in zip(paths, bases, strict=True):
            prefix = b"" if base == root else os.fsencode(os.path.relpath(base, root)) + b"/"
            for name, problem in _found(path, base, skipped):
                name = prefix + name
                if name.startswith(b"../"):
                    name = os.path.relpath(os.path.join(os.fsencode(root), name), os.fsencode(root))
                if problem is not None:
                    problems[os.fsdecode(name)] = problem
                yield name

    found = Names(names())
    places = found.distinct()
    if len(places) < len(found):
        found = Names(found.encoded(place) for place in places)
    if len(found) == len(problems):
        raise DataError("; ".join(f"{Path(root) / name}: {reason}" for name, reason in problems.items()))
    return ImageList(Path(root), found, problems, skipped)


def _base(source: Path) -> Path:
    """The folder that the names of a source's images are relative to."""
    if os.path.isdir(source):
        return source
    if source.suffix.lower() == ".json":
        return beside if os.path.isdir(beside := source.parent / "images") else source.parent
    return source.parent


def _found(source: Path, base: Path, skipped: SkippedFiles) -> Iterator[_Found]:
    suffix, exists = source.suffix.lower(), os.path.exists(source)
    if os.path.isdir(source):
        found = _walk(source, b"", set(), skipped)
        yield from _not_empty(found, f"no images in {source} (searched recursively for files {_WANTED})", skipped)
    elif suffix in IMAGE_EXTENSIONS and (exists or split_member(source)):
        yield os.fsencode(source.name), None
    elif not exists:
        raise DataNotFoundError(f"no such file or folder: {source} (expected a folder of images {_WANTED})")
    elif suffix == TAR_EXTENSION:
        found = _archive(source, os.fsencode(source.name), skipped)
        yield from _not_empty(found, f"no images in {source} ({_WANTED})", skipped)
    elif suffix == ".txt":
        yield from _listed(source, base, _lines(source), skipped)
    elif suffix == ".json":
        yield from _listed(source, base, _coco_names(source), skipped)
    elif suffix in NEEDED_FOR:
        raise DataError(f"{source} cannot be read here: {NEEDED_FOR[suffix]}")
    else:
        raise DataError(
            f"{source} is neither a folder, an image ({_WANTED}), a plain .tar archive, a .txt list of images nor a "
            ".json file with COCO's images"
        )


def _not_empty(found: Iterator[_Found], message: str, skipped: SkippedFiles) -> Iterator[_Found]:
    is_empty = True
    for one in found:
        is_empty = False
        yield one
    if is_empty:
        raise DataNotFoundError(f"{message}; {skipped}" if len(skipped) else message)


def _walk(folder: Path, prefix: bytes, seen: set[str], skipped: SkippedFiles) -> Iterator[_Found]:
    """Files below a folder, depth first, files and folders sorted together by name."""
    real = os.path.realpath(folder)
    if real in seen:  # a link back to a folder above, or a second link to the same one
        return
    seen.add(real)
    try:
        with os.scandir(folder) as entries:
            here = sorted(
                (entry.name, _is_folder(entry)) for entry in entries if not is_hidden(os.fsencode(entry.name))
            )
    except OSError as error:
        yield prefix[:-1] or b".", f"cannot read this folder: {error.strerror}"
        return
    for name, is_folder in here:
        place = prefix + os.fsencode(name)
        if is_folder:
            yield from _walk(folder / name, place + b"/", seen, skipped)
            continue
        suffix = os.path.splitext(name)[1].lower()
        if suffix in IMAGE_EXTENSIONS:
            yield place, None
        elif suffix == TAR_EXTENSION:
            yield from _archive(folder / name, place, skipped)
        else:
            skipped.add(place)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it reports the error
        return False


def _archive(path: Path, place: bytes, skipped: SkippedFiles) -> Iterator[_Found]:
    try:
        index = open_tar(path)
    except DamagedTar as error:
        yield place, error.reason
        return
    skipped.add_all(index.skipped, place)
    for member in index.distinct:
        yield place + b"/" + index.names.encoded(member), None
    if index.damage is not None:
        yield place, index.damage


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        is_utf_16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")  # as written by the shell of Windows
    # Names need not be valid UTF-8: other bytes become surrogates, as in Python's file functions.
    encoding, errors = ("utf-16", "strict") if is_utf_16 else ("utf-8-sig", "surrogateescape")
    try:
        with path.open(encoding=encoding, errors=errors) as lines:
            for line in lines:
                if "\0" in line:
                    raise DataError(f"{path} is not a text list of images: there is a zero byte in it")
                if (entry := line.strip()) and not entry.startswith("#"):
                    yield entry
    except UnicodeError as error:
        raise DataError(f"{path} is not a text list of images: {error}") from error


def _coco_names(path: Path) -> Iterator[str]:
    expected = f'{path}: expected COCO JSON, an object with a list "images" of objects with a file_name'
    with JsonReader(path) as reader:
        try:
            if reader.peek() != "{":
                raise DataError(expected)
            for key in reader.members():
                if key != "images":
                    _skip(reader)
                    continue
                if reader.peek() != "[":
                    raise DataError(expected)
                for image, _, _ in reader.elements():
                    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
                        raise DataError(f"{expected}, got {str(image)[:100]}")
                    yield image["file_name"]
                return
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}") from error
    raise DataError(expected)


def _skip(reader: JsonReader) -> None:
    """Skip a value; an array, which may be long, one element at a time."""
    if reader.peek() == "[":
        for _ in reader.elements():
            pass
    else:
        reader.value()


def _listed(source: Path, base: Path, entries: Iterator[str], skipped: SkippedFiles) -> Iterator[_Found]:
    """The files of a list, with the images of its archives. Raises DataNotFoundError if all are missing."""
    first, exists = None, False
    for entry in entries:
        path = base / entry
        first = first or path
        try:
            name = os.fsencode(os.path.relpath(path, base) if os.path.isabs(entry) else os.path.normpath(entry))
        except UnicodeEncodeError as error:
            raise DataError(f"{source}: {entry!a} cannot be the name of a file") from error
        if path.suffix.lower() == TAR_EXTENSION and os.path.isfile(path):
            exists = True
            yield from _archive(path, name, skipped)
        else:
            exists = exists or os.path.exists(path) or split_member(path) is not None
            yield name, None
    if first is None:
        raise DataNotFoundError(f"no images in {source} (expected one image path a line)")
    if not exists:
        raise DataNotFoundError(f"none of the files listed in {source} exists; the first is {first}")
