# SPDX-License-Identifier: Apache-2.0
"""Find photos wherever they are: folders, single files, lists, COCO image lists, tar archives; several at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from sohes.data.errors import DataError, DataNotFoundError
from sohes.data.formats import IMAGE_EXTENSIONS, NEEDED_FOR, is_hidden
from sohes.data.images import UnreadableImage, open_tar, read_image
from sohes.data.left_out import LeftOut
from sohes.data.names import Names
from sohes.data.tars import TAR_EXTENSION, DamagedTar, split_member
from sohes.utils.json_stream import JsonReader

_WANTED = "such as .jpg .png .tif .webp: all that Pillow reads"

# A name relative to the folder of its source, and what is wrong with it or None.
_Found = tuple[bytes, str | None]


class ImageList(Sequence[Path]):
    """The images of some sources, in a fixed order. A million take about 40 MB and their names.

    root: the folder that names are relative to. problems: reasons, by name, of what is known to be of no use: archives
    that are damaged, folders that cannot be looked into. They are in the list, as one entry each, to be accounted for.
    left_out: files of folders and archives that are in no way images.
    """

    def __init__(self, root: Path, names: Names, problems: dict[str, str], left_out: LeftOut | None = None) -> None:
        self.root, self.names, self.problems, self.left_out = root, names, problems, left_out or LeftOut()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:
        """The path of image `index`; of an image in an archive, as if the archive were a folder."""
        return self.root / self.names[index]

    def read(self, index: int) -> Tensor:
        """Image `index`, uint8 [3, H, W]. Raises UnreadableImage."""
        if self.problems and (reason := self.problems.get(self.names[index])) is not None:
            raise UnreadableImage(self[index], reason)
        return read_image(self[index])


def list_images(
    sources: str | os.PathLike | Sequence[str | os.PathLike], root: str | os.PathLike | None = None
) -> ImageList:
    """The images of one source or of several, each once.

    A source is one of

    - a folder, searched recursively with linked folders, in order of paths; tar archives in it count as folders;
    - an image file, known by its extension (`IMAGE_EXTENSIONS`, any case);
    - a plain `.tar` archive, in its own order; only its images are looked at (SA-1B's JSON beside them is not);
    - a `.txt` list with one image or archive a line, relative to the list; it keeps its order, blank lines and lines
      that begin with `#` are skipped;
    - a `.json` file with COCO's `images`, whose `file_name`s are relative to `images/` beside it if there is such a
      folder, else to its own; annotations are not read.

    Hidden files (`is_hidden`) are skipped, repeated paths count once. Listed files that are missing stay in the result,
    so that their reader can report them; so do archives that are damaged, after the images before the damage. What else
    is in folders and archives is counted in `left_out`. Names need not be UTF-8, in lists neither.

    Args:
        root: folder that names shall be relative to. Default: the folder of the one source, of several the deepest one
            that holds them all.

    Raises:
        DataNotFoundError: a source does not exist or has no image, or none of the files it lists exists.
        DataError: a source is none of the above, or its only archive is damaged.
    """
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not given:
        raise DataNotFoundError("no images: expected at least one folder, image, list or archive")
    paths = [Path(source) for source in given]
    bases = [_base(path) for path in paths]
    if root is None:
        root = bases[0] if len(bases) == 1 else Path(os.path.commonpath([os.path.abspath(base) for base in bases]))
    problems: dict[str, str] = {}
    left_out = LeftOut()

    def names() -> Iterator[bytes]:
        for path, base in zip(paths, bases, strict=True):
            prefix = b"" if base == root else os.fsencode(os.path.relpath(base, root)) + b"/"
            for name, problem in _found(path, base, left_out):
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
    return ImageList(Path(root), found, problems, left_out)


def _base(source: Path) -> Path:
    """The folder that the names of a source's images are relative to."""
    if os.path.isdir(source):
        return source
    if source.suffix.lower() == ".json":
        return beside if os.path.isdir(beside := source.parent / "images") else source.parent
    return source.parent


def _found(source: Path, base: Path, left_out: LeftOut) -> Iterator[_Found]:
    suffix, exists = source.suffix.lower(), os.path.exists(source)
    if os.path.isdir(source):
        found = _walk(source, b"", set(), left_out)
        yield from _not_empty(found, f"no images in {source} (looked recursively for files {_WANTED})", left_out)
    elif suffix in IMAGE_EXTENSIONS and (exists or split_member(source)):
        yield os.fsencode(source.name), None
    elif not exists:
        raise DataNotFoundError(f"no such file or folder: {source} (expected a folder of images {_WANTED})")
    elif suffix == TAR_EXTENSION:
        found = _archive(source, os.fsencode(source.name), left_out)
        yield from _not_empty(found, f"no images in {source} ({_WANTED})", left_out)
    elif suffix == ".txt":
        yield from _listed(source, base, _lines(source), left_out)
    elif suffix == ".json":
        yield from _listed(source, base, _coco_names(source), left_out)
    elif suffix in NEEDED_FOR:
        raise DataError(f"{source} cannot be read here: {NEEDED_FOR[suffix]}")
    else:
        raise DataError(
            f"{source} is neither a folder, an image ({_WANTED}), a plain .tar archive, a .txt list of images nor a "
            ".json file with COCO's images"
        )


def _not_empty(found: Iterator[_Found], message: str, left_out: LeftOut) -> Iterator[_Found]:
    is_empty = True
    for one in found:
        is_empty = False
        yield one
    if is_empty:
        raise DataNotFoundError(f"{message}; {left_out}" if len(left_out) else message)


def _walk(folder: Path, prefix: bytes, seen: set[str], left_out: LeftOut) -> Iterator[_Found]:
    """Depth first, files and folders together by name: the order of sorted paths."""
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
        yield prefix[:-1] or b".", f"cannot look into this folder: {error.strerror}"
        return
    for name, is_folder in here:
        place = prefix + os.fsencode(name)
        if is_folder:
            yield from _walk(folder / name, place + b"/", seen, left_out)
            continue
        suffix = os.path.splitext(name)[1].lower()
        if suffix in IMAGE_EXTENSIONS:
            yield place, None
        elif suffix == TAR_EXTENSION:
            yield from _archive(folder / name, place, left_out)
        else:
            left_out.add(place)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself; whoever reads it will say so
        return False


def _archive(path: Path, place: bytes, left_out: LeftOut) -> Iterator[_Found]:
    try:
        index = open_tar(path)
    except DamagedTar as error:
        yield place, error.reason
        return
    left_out.add_all(index.left_out, place)
    for member in index.distinct:
        yield place + b"/" + index.names.encoded(member), None
    if index.damage is not None:
        yield place, index.damage


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        is_utf_16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")  # as Windows' own shell writes lists
    # Names are bytes that need not be UTF-8; what is not comes as Python's file functions want it.
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
    """Pass over a value; a long array, as annotations are, one element at a time."""
    if reader.peek() == "[":
        for _ in reader.elements():
            pass
    else:
        reader.value()


def _listed(source: Path, base: Path, entries: Iterator[str], left_out: LeftOut) -> Iterator[_Found]:
    """The files that a list names, archives with what they hold. Raises DataNotFoundError where all are missing."""
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
            yield from _archive(path, name, left_out)
        else:
            exists = exists or os.path.exists(path) or split_member(path) is not None
            yield name, None
    if first is None:
        raise DataNotFoundError(f"no images in {source} (expected one image path a line)")
    if not exists:
        raise DataNotFoundError(f"none of the files listed in {source} exists; the first is {first}")
