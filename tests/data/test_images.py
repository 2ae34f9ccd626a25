# SPDX-License-Identifier: Apache-2.0
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from data.pictures import write_tiff
from PIL import Image, features

from sohes.data.errors import DataNotFoundError
from sohes.data.images import UnreadableImage, image_to_tensor, read_image
from sohes.utils.errors import SohesError

NEEDS_AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")


def gradient(height=6, width=9):
    """uint8 [H, W, 3] with pixels distinct enough to detect a wrong flip."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 20, x * 20, (x + y) * 9], axis=-1).astype(np.uint8)


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def to_tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)


class TestOrientation:
    # Orientation -> stored pixels of an upright picture, by the definition of where row 0 and column 0 point.
    STORED = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a[::-1].transpose(1, 0, 2),
    }

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("a.png", {}),
            ("a.jpg", {"quality": 100, "subsampling": 0}),
            ("a.webp", {"lossless": True}),
            ("a.tif", {}),
            ("a.tif", {"compression": "tiff_lzw"}),
            pytest.param("a.avif", {"quality": 100, "subsampling": "4:4:4"}, marks=NEEDS_AVIF),
        ],
    )
    def test_all_eight_in_every_format(self, tmp_path, orientation, name, options):
        upright = gradient()
        stored = np.ascontiguousarray(self.STORED[orientation](upright))
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / name, stored, exif=exif, **options)
        for image, expected in ((read_image(path), upright), (read_image(path, apply_exif=False), stored)):
            assert image.shape == (3, *expected.shape[:2])
            # What is lossy may be off by a few levels; neighbours differ by 9 and more, and so does any wrong turn.
            assert (image.int() - to_tensor(expected).int()).abs().max() <= (0 if name[2] in "ptw" else 4)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_all_eight_of_16_bit_colours(self, tmp_path, orientation):
        """They are decoded twice, and Pillow rotates each time."""
        upright = gradient()
        stored = np.ascontiguousarray(self.STORED[orientation](upright))
        content = (stored.astype("<u2") * 257).tobytes()
        options = {"photometric": 2, "orientation": orientation}
        path = write_tiff(tmp_path / "a.tif", content, stored.shape[:2], [16] * 3, **options)
        assert torch.equal(read_image(path), to_tensor(upright))
        assert torch.equal(read_image(path, apply_exif=False), to_tensor(stored))

    def test_in_memory_a_picture_is_taken_as_it_is(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(save(tmp_path / "a.png", gradient(), exif=exif)) as image:
            assert torch.equal(image_to_tensor(image), to_tensor(gradient()))

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
    @pytest.mark.parametrize("block", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"\x00"])
    def test_damaged_exif_counts_as_none(self, tmp_path, block):
        path = save(tmp_path / "a.png", gradient(), exif=block)
        assert torch.equal(read_image(path), to_tensor(gradient()))


class TestModes:
    def test_result_is_contiguous_uint8(self, tmp_path):
        image = read_image(save(tmp_path / "a.png", gradient()))
        assert image.dtype == torch.uint8
        assert image.is_contiguous()
        assert torch.equal(image, to_tensor(gradient()))

    @pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.tif", "a.bmp"])
    def test_formats(self, tmp_path, name):
        smooth = np.kron(gradient(6, 9), np.ones((8, 8, 1), np.uint8))
        difference = read_image(save(tmp_path / name, smooth)).int() - to_tensor(smooth).int()
        assert difference.abs().float().mean() < 6

    def test_cmyk_jpeg(self, tmp_path):
        red = np.full((8, 8, 3), (200, 30, 40), np.uint8)
        image = read_image(save(tmp_path / "a.jpg", red, mode="CMYK", quality=98))
        assert (image.int() - to_tensor(red).int()).abs().max() <= 6

    def test_gray_and_one_bit(self, tmp_path):
        gray = gradient()[..., 1]
        assert torch.equal(read_image(save(tmp_path / "g.png", gray)), to_tensor(gray[..., None].repeat(3, -1)))
        bits = np.array([[True, False, True]])
        image = read_image(save(tmp_path / "b.png", bits))
        assert image.tolist() == [[[255, 0, 255]]] * 3

    def test_alpha_is_composited_on_white(self, tmp_path):
        rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
        assert read_image(save(tmp_path / "a.png", rgba)).permute(1, 2, 0).tolist() == [
            [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
        ]
        path = tmp_path / "la.png"
        Image.merge("LA", [Image.new("L", (2, 1), 7), Image.new("L", (2, 1), 0)]).save(path)
        assert read_image(path).unique().tolist() == [255]

    def test_palette_with_and_without_transparency(self, tmp_path):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "p.png")
        assert read_image(tmp_path / "p.png").permute(1, 2, 0).tolist() == [[[10, 20, 30], [40, 50, 60]]]
        image.save(tmp_path / "t.png", transparency=1)
        assert read_image(tmp_path / "t.png").permute(1, 2, 0).tolist() == [[[10, 20, 30], [255, 255, 255]]]
        image.save(tmp_path / "t.gif", transparency=0)
        assert read_image(tmp_path / "t.gif").permute(1, 2, 0).tolist() == [[[255, 255, 255], [40, 50, 60]]]

    @pytest.mark.parametrize("name", ["a.png", "a.tif"])
    def test_16_bit(self, tmp_path, name):
        full = read_image(save(tmp_path / name, np.array([[0, 257, 32896, 65535]], np.uint16)))
        assert full.tolist() == [[[0, 1, 128, 255]]] * 3
        twelve = read_image(save(tmp_path / name, np.array([[0, 2048, 4095]], np.uint16)))
        assert twelve.tolist() == [[[0, 128, 255]]] * 3

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([0.0, 0.5, 1.0], [0, 128, 255]),
            ([0.0, 99.6, 255.0], [0, 100, 255]),
            ([-10.0, 0.0, 10.0], [0, 128, 255]),
            ([float("nan"), float("inf"), 1.0], [0, 0, 255]),
            ([400.0, 400.0, 400.0], [0, 0, 0]),
        ],
    )
    def test_float_tiff(self, tmp_path, values, expected):
        image = read_image(save(tmp_path / "f.tif", np.array([values], np.float32)))
        assert image.tolist() == [[expected]] * 3

    def test_32_bit_integers(self, tmp_path):
        image = read_image(save(tmp_path / "i.tif", np.array([[-5, 100_000]], np.int32)))
        assert image.tolist() == [[[0, 255]]] * 3

    @pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif"])
    def test_first_frame_of_many(self, tmp_path, name):
        frames = [Image.new("RGB", (4, 3), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
        frames[0].save(
            tmp_path / name,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if "webp" in name else {}),
        )
        assert read_image(tmp_path / name)[:, 0, 0].tolist() == [255, 0, 0]

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2000), (2000, 3)])
    @pytest.mark.parametrize("extension", ["png", "jpg"])
    def test_extreme_sizes(self, tmp_path, height, width, extension):
        array = np.full((height, width, 3), 77, np.uint8)
        assert read_image(save(tmp_path / f"a.{extension}", array)).shape == (3, height, width)


class TestUnreadable:
    def reason(self, path, **options):
        with pytest.raises(UnreadableImage) as error:
            read_image(path, **options)
        assert error.value.path == path
        assert str(error.value) == f"cannot read image {path}: {error.value.reason}"
        return error.value.reason

    def test_missing_empty_folder_and_text(self, tmp_path):
        assert self.reason(tmp_path / "a.jpg") == "no such file"
        (tmp_path / "b.jpg").write_bytes(b"")
        assert self.reason(tmp_path / "b.jpg") == "the file is empty (0 bytes)"
        (tmp_path / "c.jpg").write_text("not a picture at all, though named so")
        assert self.reason(tmp_path / "c.jpg") == "not an image, or of a format that Pillow does not know"
        (tmp_path / "d.jpg").mkdir()
        assert self.reason(tmp_path / "d.jpg") == "is a folder, not a file"

    @pytest.mark.parametrize("extension", ["jpg", "png", "tif", "bmp", "webp"])
    def test_truncated(self, tmp_path, extension):
        path = save(tmp_path / f"a.{extension}", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "\n" not in self.reason(path)

    def test_truncated_jpeg_says_so(self, tmp_path):
        path = save(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        path.write_bytes(path.read_bytes()[:900])
        assert "truncated" in self.reason(path)

    def test_too_many_pixels(self, tmp_path):
        path = save(tmp_path / "a.png", gradient(20, 30))
        assert read_image(path, max_pixels=600).shape == (3, 20, 30)
        assert self.reason(path, max_pixels=599) == (
            "30x20 pixels are over the limit of 599 pixels (max_pixels); a decompression bomb?"
        )

    def test_bomb_by_default(self, tmp_path):
        header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        path = tmp_path / "bomb.png"
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
        )
        assert "10000000000 pixels" in self.reason(path)

    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    @pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp", "gif", "bmp"])
    def test_damaged_bytes_never_raise_anything_else(self, tmp_path, extension):
        rng = np.random.default_rng(5)
        good = save(tmp_path / f"good.{extension}", gradient(16, 16)).read_bytes()
        path = tmp_path / f"bad.{extension}"
        outcomes = {"read": 0, "unreadable": 0}
        for _ in range(60):
            damaged = bytearray(good)
            for position in rng.integers(0, len(good), 6):
                damaged[position] = rng.integers(0, 256)
            path.write_bytes(damaged)
            try:
                outcomes["read"] += read_image(path).shape[0] == 3
            except UnreadableImage:
                outcomes["unreadable"] += 1
        assert sum(outcomes.values()) == 60
        assert outcomes["unreadable"] > 0

    def test_survives_pickling(self, tmp_path):
        error = pickle.loads(pickle.dumps(UnreadableImage(tmp_path / "a.jpg", "why")))
        assert (error.path, error.reason) == (tmp_path / "a.jpg", "why")


def test_errors_are_of_the_kinds_that_commands_report_in_one_line():
    assert issubclass(UnreadableImage, SohesError)
    assert issubclass(UnreadableImage, ValueError)
    assert issubclass(DataNotFoundError, SohesError)
    assert issubclass(DataNotFoundError, FileNotFoundError)
