# SPDX-License-Identifier: Apache-2.0
"""Every kind of source gives the same images, in a fixed order, under names that read them back."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.data.errors import DataError
from sohes.data.images import UnreadableImage, read_image
from sohes.data.names import Names
from sohes.data.sources import list_images

WANTED = "such as .jpg .png .tif .webp: all that Pillow reads"


def png(value=0, size=(4, 3)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "png")
    return buffer.getvalue()


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value))
    return path


def write_tar(path, members, form=tarfile.GNU_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def names(images):
    return [images.names[i] for i in range(len(images))]


def values(images):
    return [int(images.read(i)[0, 0, 0]) for i in range(len(images))]


class TestFolder:
    def test_nested_unicode_spaces_and_any_case_sorted(self, tmp_path):
        expected = [
            "b/deep er/ünï 写真.JPG",
            "a.png",
            "b/c.TiFf",
            "b/d.webp",
            "z.bmp",
            "b/e.jpeg",
            "b.png",
            "b-c/x.png",
        ]
        for name in expected:
            save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / "b/._c.jpg").write_bytes(b"resource fork")
        listed = list_images(str(tmp_path))
        assert list(listed) == sorted(tmp_path / name for name in expected)
        assert names(listed) == [path.relative_to(tmp_path).as_posix() for path in listed]
        assert all(listed.read(i).shape == (3, 3, 4) for i in range(len(listed)))

    def test_names_that_are_no_utf_8_survive(self, tmp_path):
        (tmp_path / os.fsdecode(b"gr\xfcn.png")).write_bytes(png(7))
        listed = pickle.loads(pickle.dumps(list_images(tmp_path)))
        assert values(listed) == [7]
        assert json.loads(json.dumps(names(listed))) == ["gr\udcfcn.png"]

    def test_linked_folders_are_followed_and_loops_end(self, tmp_path):
        save(tmp_path / "far/a.png")
        root = tmp_path / "root"
        root.mkdir()
        (root / "link").symlink_to(tmp_path / "far")
        (root / "loop").symlink_to(root)
        assert list(list_images(root)) == [root / "link/a.png"]

    def test_links_to_themselves_cost_nothing_else(self, tmp_path):
        """A loop of links is neither folder nor file; the photos beside it can be read."""
        save(tmp_path / "in/a.png", 1)
        save(tmp_path / "in/deep/b.png", 2)
        (tmp_path / "in/self").symlink_to("self")
        (tmp_path / "in/deep/ping").symlink_to("pong")
        (tmp_path / "in/deep/pong").symlink_to("ping")
        (tmp_path / "in/deep/up").symlink_to("..")
        listed = list_images(tmp_path / "in")
        assert names(listed) == ["a.png", "deep/b.png"]
        assert str(listed.skipped) == "3 files skipped: 3 without extension (deep/ping first)"
        (tmp_path / "in/round.png").symlink_to("round.png")
        listed = list_images(tmp_path / "in")
        assert names(listed) == ["a.png", "deep/b.png", "round.png"]
        with pytest.raises(UnreadableImage, match="Too many levels of symbolic links"):
            listed.read(2)

    def test_what_systems_keep_for_themselves_is_no_photo(self, tmp_path):
        save(tmp_path / "a.png", 1)
        for name in (
            ".a.png",
            "._a.png",
            ".thumbs/a.png",
            "@eaDir/a.png/THUMB_M.jpg",
            "__MACOSX/a.png",
            "x@eaDir/b.png",
        ):
            save(tmp_path / name, 2)
        listed = list_images(tmp_path)
        assert names(listed) == ["a.png", "x@eaDir/b.png"]
        assert len(listed.skipped) == 0
        members = [("a.png", png(1)), ("b/._a.png", b"fork"), ("__MACOSX/a.png", b"fork"), ("./@eaDir/x/T.jpg", png(2))]
        assert names(list_images(write_tar(tmp_path / "t.tar", members))) == ["t.tar/a.png"]

    def test_pipes_are_not_waited_for(self, tmp_path):
        save(tmp_path / "a.png", 1)
        os.mkfifo(tmp_path / "b.png")
        with pytest.raises(UnreadableImage, match="empty"):
            list_images(tmp_path).read(1)

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
    def test_a_folder_without_permission_is_reported(self, tmp_path):
        save(tmp_path / "a.png")
        (tmp_path / "closed").mkdir(mode=0)
        listed = list_images(tmp_path)
        assert names(listed) == ["a.png", "closed"]
        with pytest.raises(UnreadableImage, match="cannot read this folder: Permission denied"):
            listed.read(1)

    def test_one_image(self, tmp_path):
        path = save(tmp_path / "a.PNG")
        assert list(list_images(path)) == [path]

    def test_errors_name_the_path_and_what_was_looked_for(self, tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            list_images(tmp_path)
        assert str(error.value) == f"no images in {tmp_path} (searched recursively for files {WANTED})"
        with pytest.raises(FileNotFoundError) as error:
            list_images(tmp_path / "nowhere")
        assert str(error.value) == (
            f"no such file or folder: {tmp_path}/nowhere (expected a folder of images {WANTED})"
        )
        (tmp_path / "a.csv").write_text("a")
        with pytest.raises(
            ValueError, match=r"a\.csv is neither a folder, an image .*, a plain \.tar archive, a \.txt"
        ):
            list_images(tmp_path / "a.csv")
        with pytest.raises(FileNotFoundError, match="expected at least one folder"):
            list_images([])


class TestLists:
    def test_text_keeps_its_order_and_its_missing_entries(self, tmp_path):
        save(tmp_path / "in/b c.png", 1)
        save(tmp_path / "in/a.png", 2)
        listing = tmp_path / "in/list.txt"
        far = save(tmp_path / "far.png", 3)
        listing.write_text(f"\ufeff# photos\nb c.png\n\na.png\nb c.png\n./a.png\ngone.jpg\n{far}\n", encoding="utf-8")
        listed = list_images(listing)
        assert names(listed) == ["b c.png", "a.png", "gone.jpg", "../far.png"]
        assert [int(listed.read(i)[0, 0, 0]) for i in (0, 1, 3)] == [1, 2, 3]
        with pytest.raises(UnreadableImage, match="no such file"):
            listed.read(2)

    def test_text_of_archives_and_members(self, tmp_path):
        write_tar(tmp_path / "x.tar", [("a.png", png(1)), ("b.png", png(2))])
        write_tar(tmp_path / "y.tar", [("c.png", png(3)), ("d.png", png(4))])
        (tmp_path / "list.txt").write_text("y.tar/d.png\nx.tar\n")
        listed = list_images(tmp_path / "list.txt")
        assert names(listed) == ["y.tar/d.png", "x.tar/a.png", "x.tar/b.png"]
        assert values(listed) == [4, 1, 2]

    def test_errors_of_text(self, tmp_path):
        listing = tmp_path / "list.txt"
        listing.write_text("\n# nothing\n")
        with pytest.raises(FileNotFoundError, match="expected one image path a line"):
            list_images(listing)
        listing.write_text("x/1.jpg\nx/2.jpg\n")
        with pytest.raises(FileNotFoundError, match=r"none of the files listed in .* exists; the first is .*x/1.jpg"):
            list_images(listing)
        listing.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match="not a text list of images"):
            list_images(listing)

    def test_names_that_are_no_utf_8(self, tmp_path):
        (tmp_path / os.fsdecode(b"gr\xfcn.png")).write_bytes(png(7))
        (tmp_path / "list.txt").write_bytes(b"gr\xfcn.png\r\n")
        assert values(list_images(tmp_path / "list.txt")) == [7]
        (tmp_path / "list.json").write_text(json.dumps({"images": [{"file_name": os.fsdecode(b"gr\xfcn.png")}]}))
        assert values(list_images(tmp_path / "list.json")) == [7]

    def test_lists_in_utf_16(self, tmp_path):
        save(tmp_path / "ä.png", 4)
        (tmp_path / "list.txt").write_text("ä.png\n", encoding="utf-16")
        assert values(list_images(tmp_path / "list.txt")) == [4]

    def test_names_that_no_file_can_have(self, tmp_path):
        save(tmp_path / "a.png", 4)
        (tmp_path / "list.json").write_text(
            json.dumps({"images": [{"file_name": "a.png"}, {"file_name": "\ud83d.png"}]})
        )
        with pytest.raises(DataError, match=r"list.json: '\\ud83d.png' cannot be the name of a file"):
            list_images(tmp_path / "list.json")
        (tmp_path / "list.txt").write_text("a.png\n" + "b" * 300 + ".png\n")
        listed = list_images(tmp_path / "list.txt")
        with pytest.raises(UnreadableImage, match="File name too long"):
            listed.read(1)
        (tmp_path / "list.txt").write_bytes(b"a.png\n\0\n")
        with pytest.raises(DataError, match=r"list\.txt is not a text list of images: there is a zero byte in it"):
            list_images(tmp_path / "list.txt")

    @pytest.mark.parametrize("beside", [True, False])
    def test_coco_images_but_not_its_annotations(self, tmp_path, beside):
        folder = tmp_path / "images" if beside else tmp_path
        save(folder / "train/ä.png", 1)
        save(folder / "b.png", 2)
        images = [{"id": 9, "file_name": "train/ä.png", "width": 4, "height": 3}, {"file_name": "b.png"}]
        content = {"info": {"a": [1]}, "annotations": [{"id": 1}] * 3, "images": images, "licenses": "cut"}
        (tmp_path / "list.json").write_text(json.dumps(content)[:-3])  # what follows the images is not read
        listed = list_images(tmp_path / "list.json")
        assert names(listed) == ["train/ä.png", "b.png"]
        assert values(listed) == [1, 2]
        assert listed.root == folder

    @pytest.mark.parametrize("content", ["[]", "{}", '{"images": 3}', '{"images": [{"id": 1}]}', '{"images": [7]}'])
    def test_json_that_is_no_coco(self, tmp_path, content):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(DataError, match=r'a\.json: expected COCO JSON, an object with a list "images" of objects'):
            list_images(tmp_path / "a.json")

    def test_not_json(self, tmp_path):
        (tmp_path / "a.json").write_text('{"images": [{]')
        with pytest.raises(DataError, match=r"a\.json is not JSON: .* at byte 13"):
            list_images(tmp_path / "a.json")


class TestArchives:
    def test_sa_1b_as_it_ships(self, tmp_path):
        """Jpg and JSON side by side; the JSON is no image and is not read."""
        members = [("./", b"")]
        for i in range(4):
            members += [(f"./sa_{i}.jpg", png(i)), (f"./sa_{i}.json", b"not even json")]
        path = write_tar(tmp_path / "sa_000000.tar", members)
        listed = list_images(path)
        assert names(listed) == [f"sa_000000.tar/sa_{i}.jpg" for i in range(4)]
        assert values(listed) == [0, 1, 2, 3]
        assert torch.equal(read_image(path / "sa_2.jpg"), listed.read(2))

    def test_folders_of_archives_and_files(self, tmp_path):
        write_tar(tmp_path / "b/x.TAR", [("deep er/ü.png", png(2)), (".hidden.png", png(9)), ("c/.d/e.png", png(9))])
        save(tmp_path / "b/y.png", 3)
        save(tmp_path / "a.png", 1)
        save(tmp_path / "c.tar/really a folder.png", 4)
        write_tar(tmp_path / "texts.tar", [("a.txt", b"text")])
        listed = list_images(tmp_path)
        assert names(listed) == ["a.png", "b/x.TAR/deep er/ü.png", "b/y.png", "c.tar/really a folder.png"]
        assert values(listed) == [1, 2, 3, 4]

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_long_names_of_every_format(self, tmp_path, form):
        long = "/".join(["folder of some length"] * 9) + "/x.png"
        wide = "ünïcode 写真/" + "y" * 60 + ".png"
        path = write_tar(tmp_path / "a.tar", [("first.png", png(1)), (long, png(2)), (wide, png(3))], form)
        listed = list_images(path)
        assert names(listed) == ["a.tar/first.png", f"a.tar/{long}", f"a.tar/{wide}"]
        assert values(listed) == [1, 2, 3]

    def test_equal_names_links_and_folders(self, tmp_path):
        """Of equal names the last counts, as when unpacking; links and folders are no images."""
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, kind, value in [("a.png", tarfile.REGTYPE, 1), ("b.png", tarfile.REGTYPE, 2),
                                      ("c.png", tarfile.SYMTYPE, 0), ("d.png", tarfile.DIRTYPE, 0),
                                      ("a.png", tarfile.REGTYPE, 3)]:  # fmt: skip
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, "b.png" if kind == tarfile.SYMTYPE else ""
                content = png(value) if kind == tarfile.REGTYPE else b""
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        listed = list_images(tmp_path / "a.tar")
        assert names(listed) == ["a.tar/b.png", "a.tar/a.png"]
        assert values(listed) == [2, 3]

    def test_binary_sizes(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [("a.png", png(1)), ("b.png", png(2))])
        content = bytearray(path.read_bytes())
        content[124:136] = b"\x80" + len(png(1)).to_bytes(11, "big")
        content[148:156] = b"%06o\0 " % (sum(content[:148]) + sum(content[156:512]) + 256)
        path.write_bytes(content)
        assert values(list_images(path)) == [1, 2]

    def test_wherever_a_tar_is_cut_what_is_whole_is_read(self, tmp_path):
        """Unless the cut is between two members it is reported as an entry; other archives are not affected."""
        whole = write_tar(tmp_path / "whole.tar", [(f"{i}.png", png(i)) for i in range(3)])
        content, length = whole.read_bytes(), len(png(1))
        (tmp_path / "set").mkdir()
        cut = tmp_path / "set/a.tar"
        write_tar(tmp_path / "set/b.tar", [("x.png", png(5))])
        for size in [1, 100, *range(512, 3 * 1024 + 1, 32)]:  # headers and contents of under 512 bytes
            cut.write_bytes(content[:size])
            listed = list_images(tmp_path / "set")
            num_whole = sum(1024 * i + 512 + length <= size for i in range(3))
            is_between = num_whole > 0 and 512 + length <= (size - 1) % 1024 + 1
            expected = [f"a.tar/{i}.png" for i in range(num_whole)] + ["a.tar"] * (not is_between) + ["b.tar/x.png"]
            assert names(listed) == expected, size
            assert [int(listed.read(i)[0, 0, 0]) for i in range(num_whole)] == list(range(num_whole))
            assert int(listed.read(len(listed) - 1)[0, 0, 0]) == 5
            if not is_between:
                with pytest.raises(UnreadableImage, match=rf"set/a\.tar: cut short: .* {size} bytes$"):
                    listed.read(num_whole)
                with pytest.raises(UnreadableImage, match="cut short"):
                    read_image(listed[num_whole])

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    @pytest.mark.parametrize("num_zeros", [0, 1, 511, 512, 700])
    def test_a_tar_need_not_be_closed(self, tmp_path, form, num_zeros):
        """As if its writer was, or was not, killed while it wrote the end mark."""
        path = write_tar(tmp_path / "a.tar", [("f" * 80 + "/" + "n" * 60 + ".png", png(1)), ("ü.png", png(2))], form)
        end = len(path.read_bytes().rstrip(b"\0"))
        path.write_bytes(path.read_bytes()[: -(-end // 512) * 512] + bytes(num_zeros))
        assert values(list_images(path)) == [1, 2]
        path.write_bytes(path.read_bytes()[:end])  # the last block is not filled up either
        assert values(list_images(path)) == [1, 2]

    def test_what_comes_before_damage_is_read(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(4)])
        content = bytearray(path.read_bytes())
        content[2048 + 20 : 2048 + 400] = b"x" * 380
        path.write_bytes(content)
        listed = list_images(tmp_path)
        assert names(listed) == ["a.tar/0.png", "a.tar/1.png", "a.tar"]
        assert values(list_images(path / "1.png")) == [1]
        with pytest.raises(UnreadableImage, match=r"a\.tar: damaged: no valid header at byte 2048"):
            listed.read(2)

    def test_names_that_are_no_utf_8(self, tmp_path):
        raw = b"gr\xfcn.png"
        for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            path = tmp_path / f"{form}.tar"
            with tarfile.open(path, "w", format=form, encoding="latin-1") as tar:
                member = tarfile.TarInfo(raw.decode("latin-1"))
                member.size = len(png(3))
                tar.addfile(member, io.BytesIO(png(3)))
            listed = list_images(path)
            expected = "grün.png" if form == tarfile.PAX_FORMAT else os.fsdecode(raw)  # pax headers are in UTF-8
            assert names(listed) == [f"{form}.tar/{expected}"]
            assert values(listed) == [3]

    def test_sums_of_signed_bytes(self, tmp_path):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            member = tarfile.TarInfo("äöü.png")
            member.size = len(png(6))
            tar.addfile(member, io.BytesIO(png(6)))
        content = bytearray(path.read_bytes())
        signed = [byte - 256 if byte > 127 else byte for byte in content[:148] + content[156:512]]
        content[148:156] = b"%06o\0 " % (sum(signed) + 256)
        path.write_bytes(content)
        assert values(list_images(path)) == [6]

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "the file is empty (0 bytes)"),
            (
                b"\x1f\x8b" + bytes(2000),
                "compressed with gzip, which has no random access: decompress it to a plain",
            ),
            (b"not a tar " * 100, "not a tar archive"),
        ],
    )
    def test_what_is_no_archive(self, tmp_path, content, reason):
        path = tmp_path / "a.tar"
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            list_images(path)
        assert f"{path}: {reason}" in str(error.value)
        with pytest.raises(UnreadableImage) as error:
            read_image(path)
        assert reason in error.value.reason

    def test_damaged_headers_never_raise_anything_else(self, tmp_path):
        rng = np.random.default_rng(3)
        good = write_tar(tmp_path / "good.tar", [("n" * 120 + ".png", png(1)), ("b.png", png(2))], tarfile.PAX_FORMAT)
        content, path, noticed = good.read_bytes(), tmp_path / "a.tar", 0
        for _ in range(200):
            damaged = bytearray(content)
            for position in rng.integers(0, 3000, 3):
                damaged[position] = rng.integers(0, 256)
            path.write_bytes(damaged)
            try:
                listed = list_images(path)
            except DataError:
                noticed += 1
                continue
            for i in range(len(listed)):
                try:
                    listed.read(i)
                except UnreadableImage:
                    noticed += 1
        assert noticed > 100

    def test_a_changed_archive_is_read_anew(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [("a.png", png(1))])
        assert values(list_images(path)) == [1]
        write_tar(path, [("b.png", png(2)), ("c.png", png(3)), *[(f"{i}.txt", b"x") for i in range(40)]])
        assert values(list_images(path)) == [2, 3]

    def test_members_that_are_missing_empty_or_no_image(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [("a.png", b""), ("b.png", b"text"), ("c.png", png(1))])
        reasons = []
        for name in ("a.png", "b.png", "d.png", "c.png/e.png"):
            with pytest.raises(UnreadableImage) as error:
                read_image(path / name)
            reasons.append(error.value.reason)
        assert reasons[0] == "the file is empty (0 bytes)"
        assert reasons[1] == "not an image, or of a format that Pillow does not know"
        assert reasons[2] == reasons[3] == f"no such member in {path}"
        with pytest.raises(UnreadableImage, match="is an archive, not an image"):
            read_image(path)

    def test_an_archive_without_images(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [("a.json", b"{}")])
        with pytest.raises(FileNotFoundError, match=r"no images in .*a\.tar"):
            list_images(path)


def test_several_sources_at_once_share_a_root(tmp_path):
    save(tmp_path / "sets/one/a.png", 1)
    save(tmp_path / "sets/two/b.png", 2)
    write_tar(tmp_path / "sets/three.tar", [("c.png", png(3))])
    (tmp_path / "list.txt").write_text("sets/one/a.png\nsets/two/b.png\n")
    sources = [tmp_path / "sets/two", tmp_path / "sets/three.tar", tmp_path / "sets/one"]
    listed = list_images(sources)
    assert names(listed) == ["two/b.png", "three.tar/c.png", "one/a.png"]
    assert values(listed) == [2, 3, 1]
    assert listed.root == tmp_path / "sets"
    again = list_images([*sources, tmp_path / "list.txt"])
    assert names(again) == ["sets/two/b.png", "sets/three.tar/c.png", "sets/one/a.png"]  # each once
    assert values(again) == [2, 3, 1]
    (tmp_path / "elsewhere").mkdir()
    other = list_images(sources, root=tmp_path / "elsewhere")
    assert names(other)[0] == "../sets/two/b.png"
    assert values(other) == [2, 3, 1]


def test_relative_sources(tmp_path, monkeypatch):
    save(tmp_path / "one/a.png", 1)
    save(tmp_path / "two/b.png", 2)
    monkeypatch.chdir(tmp_path)
    assert names(list_images("one")) == ["a.png"]
    both = list_images(["one", Path("two")])
    assert names(both) == ["one/a.png", "two/b.png"]
    assert values(both) == [1, 2]


def test_an_index_is_small(tmp_path):
    """The index of an archive has two numbers per member, and the names. (Python objects would take 400 bytes each.)"""
    path = write_tar(tmp_path / "a.tar", [(f"sa_{i:07d}.{kind}", b"") for i in range(3000) for kind in ("jpg", "json")])
    listed = list_images(path)
    assert len(listed) == 3000
    assert len(pickle.dumps(listed)) < 3000 * 40


@pytest.mark.parametrize("keep_last", [True, False])
def test_names(keep_last):
    words = [b"b", b"", b"a", b"b", b"\xff", b"a", b"c"]
    found = Names(words)
    assert [found[i] for i in range(7)] == [os.fsdecode(word) for word in words]
    assert found.distinct(keep_last).tolist() == ([1, 3, 4, 5, 6] if keep_last else [0, 1, 2, 4, 6])
    assert [found.find(name) for name in ("b", "", "a", "c", "d", "\udcff")] == [3, 1, 5, 6, None, 4]
    with pytest.raises(IndexError):
        found[7]
    assert len(Names()) == 0
    assert Names().find("x") is None
