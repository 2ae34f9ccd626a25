# SPDX-License-Identifier: Apache-2.0
"""Pixels of every depth, sign and transparency, value by value, as `read_image` states."""

import tarfile

import numpy as np
import pytest
from data.pictures import BIG, LITTLE, write_png, write_tiff
from PIL import Image, UnidentifiedImageError

from sohes.data.images import UnreadableImage, image_to_tensor, read_image

NAN, INF = float("nan"), float("inf")


def colours(path):
    """The pixels of the first row, [W][3]."""
    return read_image(path)[:, 0].T.tolist()


def grays(path):
    image = read_image(path)[:, 0]
    assert (image == image[0]).all()
    return image[0].tolist()


def big(*values):
    return np.array(values, ">u2").tobytes()


class TestPng:
    def test_16_bit_gray(self, tmp_path):
        path = tmp_path / "a.png"
        assert grays(write_png(path, (1, 4), 16, 0, [big(0, 128, 129, 65535)])) == [0, 0, 1, 255]
        assert grays(write_png(path, (1, 4), 16, 0, [big(0, 8, 9, 4095)])) == [0, 0, 1, 255]
        assert grays(write_png(path, (1, 3), 16, 0, [big(0, 4095, 4096)])) == [0, 16, 16]

    def test_16_bit_gray_with_a_transparent_one(self, tmp_path):
        path = write_png(tmp_path / "a.png", (1, 4), 16, 0, [big(300, 301, 65535, 30000)], big(300))
        assert grays(path) == [255, 1, 255, 117]
        path = write_png(tmp_path / "a.png", (1, 3), 16, 0, [big(40, 4095, 0)], big(0))  # scaled as without it
        assert grays(path) == [2, 255, 255]

    def test_16_bit_colours(self, tmp_path):
        path = write_png(tmp_path / "a.png", (2, 2), 16, 2, [big(255, 129, 128, 65535, 65535 - 129, 0), big(*[7] * 6)])
        assert colours(path) == [[1, 1, 0], [255, 254, 0]]
        path = write_png(tmp_path / "a.png", (1, 2), 16, 2, [big(4095, 2048, 0, 9, 8, 0)])
        assert colours(path) == [[255, 128, 0], [1, 0, 0]]

    def test_16_bit_colours_with_a_transparent_one_that_differs_in_a_low_byte(self, tmp_path):
        rows = [big(300, 300, 300, 300, 300, 301, 65535, 0, 0)]
        path = write_png(tmp_path / "a.png", (1, 3), 16, 2, rows, big(300, 300, 300))
        assert colours(path) == [[255, 255, 255], [1, 1, 1], [255, 0, 0]]

    def test_16_bit_alpha(self, tmp_path):
        rows = [big(10000, 65535, 10000, 0, 0, 13107, 65535, 40000)]
        assert grays(write_png(tmp_path / "a.png", (1, 4), 16, 4, rows)) == [39, 255, 204, 255]
        rows = [big(10000, 20000, 30000, 65535, 1, 2, 3, 0, 0, 0, 65535, 52428)]
        expected = [[39, 78, 117], [255, 255, 255], [51, 51, 255]]
        assert colours(write_png(tmp_path / "a.png", (1, 3), 16, 6, rows)) == expected

    def test_12_bit_colours_under_alpha_of_full_range(self, tmp_path):
        rows = [big(4095, 2048, 0, 65535, 4095, 2048, 0, 0)]
        assert colours(write_png(tmp_path / "a.png", (1, 2), 16, 6, rows)) == [[255, 128, 0], [255, 255, 255]]

    @pytest.mark.parametrize("step", [0, 6])
    def test_16_bit_colours_of_a_whole_picture(self, tmp_path, step):
        values = np.random.default_rng(2).integers(0, 65536, (23, 31, 3))
        rows = [row.astype(">u2").tobytes() for row in values]
        path = write_png(tmp_path / "a.png", (23, 31), 16, 2, rows, step=step)
        assert (read_image(path).permute(1, 2, 0).numpy() == np.rint(values / 257)).all()

    def test_16_bit_colours_in_an_archive(self, tmp_path):
        """They are decoded twice, from memory."""
        write_png(tmp_path / "a.png", (1, 2), 16, 2, [big(255, 129, 128, 65535, 1, 0)])
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(tmp_path / "a.png", "in/a.png")
        assert colours(tmp_path / "a.tar/in/a.png") == [[1, 1, 0], [255, 0, 0]]

    @pytest.mark.parametrize(("depth", "step"), [(2, 85), (4, 17)])
    def test_few_bits_with_a_transparent_gray(self, tmp_path, depth, step):
        row = bytes([0b00_01_10_11] if depth == 2 else [0x01, 0x23])
        plain = write_png(tmp_path / "a.png", (1, 4), depth, 0, [row])
        assert grays(plain) == [0, step, 2 * step, 3 * step]
        path = write_png(tmp_path / "b.png", (1, 4), depth, 0, [row], big(2))
        assert grays(path) == [0, step, 255, 3 * step]

    def test_8_bits_look_at_the_low_byte_of_a_transparent_colour(self, tmp_path):
        path = write_png(tmp_path / "a.png", (1, 2), 8, 2, [bytes([1, 2, 3, 4, 5, 6])], big(0x1204, 5, 6))
        assert colours(path) == [[1, 2, 3], [255, 255, 255]]
        path = write_png(tmp_path / "a.png", (1, 2), 8, 0, [bytes([7, 8])], big(0xFF07))
        assert grays(path) == [255, 8]


class TestTiff:
    @pytest.mark.parametrize("order", [LITTLE, BIG])
    @pytest.mark.parametrize(
        ("kind", "sample_format", "values", "expected"),
        [
            ("u2", 1, [0, 129, 65535], [0, 1, 255]),
            ("u2", 1, [0, 2048, 4095], [0, 128, 255]),
            ("i2", 2, [0, 2048, 4095], [0, 128, 255]),
            ("i2", 2, [0, 8192, 32767], [0, 32, 127]),
            ("i2", 2, [-1000, 0, 1000], [0, 128, 255]),
            ("i2", 2, [-32768, -32768, 32767], [0, 0, 255]),
            ("i4", 2, [0, 2048, 4095], [0, 128, 255]),
            ("i4", 2, [0, 65536, 65536 * 2], [0, 128, 255]),
            ("i4", 2, [-(2**31), 0, 2**31 - 1], [0, 128, 255]),
            ("i1", 2, [0, 100, 127], [0, 100, 127]),
            ("i1", 2, [-128, 0, 127], [0, 128, 255]),
            ("f4", 3, [0.0, 0.25, 1.0], [0, 64, 255]),
            ("f4", 3, [0.0, 1.4, 255.0], [0, 1, 255]),
            ("f4", 3, [-1.0, 0.0, 3.0], [0, 64, 255]),
            ("f4", 3, [1000.0, 2000.0, 3000.0], [0, 128, 255]),
            ("f4", 3, [NAN, 1000.0, 2000.0], [0, 128, 255]),
            ("f4", 3, [-INF, INF, 1.0], [0, 0, 255]),
            ("f4", 3, [-2.0, NAN, 2.0], [0, 128, 255]),
            ("f4", 3, [NAN, NAN, INF], [0, 0, 0]),
            ("f4", 3, [-3e38, 0.0, 3e38], [0, 128, 255]),
        ],
    )
    def test_gray(self, tmp_path, order, kind, sample_format, values, expected):
        content = np.array(values, order + kind)
        path = write_tiff(
            tmp_path / "a.tif",
            content.tobytes(),
            (1, len(values)),
            [8 * content.itemsize],
            sample_format=sample_format,
            order=order,
        )
        assert grays(path) == expected

    def test_unsigned_32_bits(self, tmp_path):
        content = np.array([0, 2**31, 2**32 - 1], "<u4").tobytes()
        assert grays(write_tiff(tmp_path / "a.tif", content, (1, 3), [32])) == [0, 128, 255]

    @pytest.mark.parametrize(
        ("kind", "sample_format", "values", "expected"),
        [
            ("u1", 1, [0, 1, 255], [255, 254, 0]),
            ("u2", 1, [0, 257, 65535], [255, 254, 0]),
            ("u2", 1, [0, 2048, 4095], [255, 127, 0]),
            ("f4", 3, [0.0, 0.25, 1.0], [255, 191, 0]),
        ],
    )
    def test_zero_is_white(self, tmp_path, kind, sample_format, values, expected):
        content = np.array(values, "<" + kind)
        path = write_tiff(
            tmp_path / "a.tif",
            content.tobytes(),
            (1, len(values)),
            [8 * content.itemsize],
            sample_format=sample_format,
            photometric=0,
        )
        assert grays(path) == expected

    def test_zero_is_white_in_one_bit_and_compressed(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", b"\xa0", (1, 3), [1], photometric=0)
        assert grays(path) == [0, 255, 0]
        tifffile = pytest.importorskip("tifffile")
        options = {"photometric": "miniswhite", "compression": "zlib"}
        tifffile.imwrite(tmp_path / "b.tif", np.array([[0, 257, 65535]], np.uint16), **options)
        assert grays(tmp_path / "b.tif") == [255, 254, 0]

    @pytest.mark.parametrize("order", [LITTLE, BIG])
    @pytest.mark.parametrize("separate", [False, True])
    def test_16_bit_colours(self, tmp_path, order, separate):
        values = np.random.default_rng(3).integers(0, 65536, (5, 7, 3))
        content = values.astype(order + "u2")
        if separate:
            content = content.transpose(2, 0, 1)
        path = write_tiff(
            tmp_path / "a.tif", content.tobytes(), (5, 7), [16] * 3, photometric=2, order=order, separate=separate
        )
        assert (read_image(path).permute(1, 2, 0).numpy() == np.rint(values / 257)).all()

    @pytest.mark.parametrize("order", [LITTLE, BIG])
    @pytest.mark.parametrize(
        ("extra", "expected"),
        [
            (0, [[39, 78, 117], [0, 0, 0], [51, 0, 0]]),  # a fourth sample without meaning
            (1, [[39, 78, 117], [255, 255, 255], [255, 204, 204]]),  # colours are multiplied by alpha
            (2, [[39, 78, 117], [255, 255, 255], [214, 204, 204]]),
        ],
    )
    def test_16_bit_alpha(self, tmp_path, order, extra, expected):
        values = [10000, 20000, 30000, 65535, 0, 0, 0, 0, 13107, 0, 0, 13107]
        content = np.array(values, order + "u2").tobytes()
        path = write_tiff(tmp_path / "a.tif", content, (1, 3), [16] * 4, photometric=2, extra=(extra,), order=order)
        assert colours(path) == expected

    def test_gray_multiplied_by_alpha(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", bytes([51, 51, 0, 0, 9, 255]), (1, 3), [8, 8], extra=(1,))
        try:
            Image.open(path).close()
        except UnidentifiedImageError:
            pytest.skip("this Pillow does not read it")
        assert grays(path) == [255, 255, 9]

    @pytest.mark.parametrize("options", [{"compression": "zlib", "predictor": True}, {"tile": (16, 16)}])
    def test_16_bit_colours_as_others_write_them(self, tmp_path, options):
        tifffile = pytest.importorskip("tifffile")
        values = np.random.default_rng(4).integers(0, 65536, (37, 41, 3)).astype(np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", **options)
        assert (read_image(tmp_path / "a.tif").permute(1, 2, 0).numpy() == np.rint(values / 257)).all()

    def test_an_unknown_layout_is_an_error(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", bytes(8), (1, 1), [64], sample_format=2)
        with pytest.raises(UnreadableImage, match="not an image, or of a format that Pillow does not know"):
            read_image(path)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("u2", [0, 129, 65535], [0, 1, 255]),
        ("i4", [-4, 0, 4], [0, 128, 255]),
        ("f4", [NAN, 0.5, 1.0], [0, 128, 255]),
    ],
)
def test_in_memory(kind, values, expected):
    image = Image.fromarray(np.array([values], kind))
    assert image_to_tensor(image)[0, 0].tolist() == expected


def test_portable_graymaps(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + big(0, 129, 65535))
    assert grays(tmp_path / "a.pgm") == [0, 1, 255]
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 65535\n" + big(0, 32896, 65535))
    assert colours(tmp_path / "a.ppm") == [[0, 128, 255]]
