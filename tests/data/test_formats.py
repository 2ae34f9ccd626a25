# SPDX-License-Identifier: Apache-2.0
"""Which files are images, and how the others are reported."""

import builtins
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

import sohes.data.formats
from sohes.data.errors import DataError
from sohes.data.formats import IMAGE_EXTENSIONS, is_hidden
from sohes.data.images import UnreadableImage, read_image
from sohes.data.skipped import SkippedFiles
from sohes.data.sources import list_images

# Formats of Pillow that need another program or system, or of which it only knows the name.
NOT_READ_ALONE = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
HEIC = b"\0\0\0\x18ftypheic" + bytes(40)


def picture(size=(32, 32)):
    pixels = np.full((*size, 3), 40, np.uint8)
    pixels[8:20, 8:20] = (200, 50, 50)
    return Image.fromarray(pixels)


def test_all_that_pillow_reads_counts():
    Image.init()
    extensions = Image.registered_extensions().items()
    readable = {name for name, kind in extensions if kind in Image.OPEN and kind not in NOT_READ_ALONE}
    assert readable <= set(IMAGE_EXTENSIONS)


@pytest.mark.parametrize(
    "extension",
    [
        ".apng",
        ".avif",
        ".bmp",
        ".dds",
        ".gif",
        ".ico",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".mpo",
        ".pcx",
        ".ppm",
        ".rgb",
        ".tga",
    ],
)
def test_a_folder_reads_what_pillow_writes(tmp_path, extension):
    Image.init()
    kind = Image.registered_extensions().get(extension)
    if kind is None:
        pytest.skip(f"this Pillow knows no {extension}")
    picture().save(tmp_path / f"a{extension.upper()}", kind)
    listed = list_images(tmp_path)
    assert len(listed) == 1
    image = listed.read(0)
    assert image.shape[0] == 3
    assert len(listed.skipped) == 0


@pytest.mark.parametrize(("extension", "options"), [("gif", {}), ("apng", {}), ("webp", {"lossless": True})])
def test_of_many_frames_the_first(tmp_path, extension, options):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("#ff0000", "#00ff00")]
    kind = {"apng": "PNG"}.get(extension, extension.upper())
    frames[0].save(tmp_path / f"a.{extension}", kind, save_all=True, append_images=frames[1:], **options)
    assert list_images(tmp_path).read(0)[:, 3, 3].tolist() == [255, 0, 0]


def test_skipped_files_are_counted_by_extension_with_the_first_name(tmp_path):
    picture().save(tmp_path / "a.jfif", "JPEG")
    for name in ("notes.txt", "b/raw.DNG", "b/raw2.dng", "b/IMG_0001", "b/.hidden", "c.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "a.jfif", "in/a.jpe")
        tar.add(tmp_path / "notes.txt", "in/more.txt")
    listed = pickle.loads(pickle.dumps(list_images(tmp_path)))
    assert [listed.names[i] for i in range(len(listed))] == ["a.jfif", "t.tar/in/a.jpe"]
    assert str(listed.skipped) == (
        "6 files skipped: 2 .dng (b/raw.DNG first), 2 .txt (notes.txt first), 1 .xml (c.xml), "
        "1 without extension (b/IMG_0001)"
    )
    assert len(list_images(tmp_path / "a.jfif").skipped) == 0


def test_a_folder_of_nothing_else_says_what_is_there(tmp_path):
    (tmp_path / "a.cr2").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no images in .*; 1 file skipped: 1 \.cr2 \(a\.cr2\)$"):
        list_images(tmp_path)


def test_the_text_of_skipped_files_is_one_short_line():
    skipped = SkippedFiles()
    for number in range(1000):
        skipped.add(b"x/a.%d" % number)
    skipped.add(b"gr\xfcn\n.heic")
    text = str(skipped)
    assert text.startswith("1001 files skipped: ")
    assert "\n" not in text
    assert len(text) < 400
    assert len(pickle.dumps(skipped)) < 4000
    one = SkippedFiles()
    one.add(b"gr\xfcn\n.heic")
    assert str(one) == "1 file skipped: 1 .heic (gr\\xfcn\\n.heic; pip install pillow-heif)"


def test_heic_without_its_library_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sohes.data.formats, "_HAS_HEIF", False)
    for name in ("a.heic", "mailed.jpg"):
        (tmp_path / name).write_bytes(HEIC)
        with pytest.raises(UnreadableImage, match="HEIC cannot be read here: pip install pillow-heif"):
            read_image(tmp_path / name)


@pytest.mark.skipif(".heic" in IMAGE_EXTENSIONS, reason="pillow-heif is installed")
def test_heic_in_a_folder_is_skipped_and_alone_an_error(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(HEIC)
    listed = list_images(tmp_path)
    assert len(listed) == 1
    assert str(listed.skipped) == "1 file skipped: 1 .heic (b.HEIC; pip install pillow-heif)"
    with pytest.raises(DataError, match=r"b\.HEIC cannot be read here: pip install pillow-heif"):
        list_images(tmp_path / "b.HEIC")


def test_heic_with_its_library(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6  # pillow-heif writes it as a rotation of the image itself
    heif = pillow_heif.from_pillow(picture((32, 48)))
    heif.save(tmp_path / "a.HEIC", quality=-1, exif=exif.tobytes())
    openers = dict(Image.OPEN)
    image = list_images(tmp_path).read(0)
    assert image.shape in ((3, 32, 48), (3, 48, 32))
    assert (image == read_image(tmp_path / "a.HEIC", apply_exif=False)).all()
    assert openers == Image.OPEN


def test_heic_without_its_library_is_imported_late(tmp_path, monkeypatch):
    """Reading other images does not import it."""
    picture().save(tmp_path / "a.png")
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        assert name != "pillow_heif"
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert read_image(tmp_path / "a.png").shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"a.jpg", False),
        (b"a/b.c/d.jpg", False),
        (b"a/._b.jpg", True),
        (b".git/b.jpg", True),
        (b"a/@eaDir/b.jpg", True),
        (b"a/@eaDirs/b.jpg", False),
        (b"$RECYCLE.BIN", True),
        (b"gr\xfcn/.x", True),
    ],
)
def test_hidden(path, expected):
    assert is_hidden(path) is expected
