# SPDX-License-Identifier: Apache-2.0
"""ADE20K in both releases and BSDS500, as tiny copies in their official layouts."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from sohes.baselines.run import true_masks
from sohes.evaluation.datasets.base import LayoutError
from sohes.evaluation.datasets.label_maps import STUFF_CLASSES, Ade20k, Ade20kFull, Bsds500, Bsds500Val

HEIGHT, WIDTH = 6, 8


def save_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def dense(sample):
    """Masks bool [N, H, W] in the order of the annotations, of all annotators."""
    return np.concatenate([masks.to_dense().numpy() for masks in true_masks(sample)])


def area(left, right):
    """bool [H, W]: columns from left to right."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, left:right] = True
    return mask


@pytest.fixture
def ade(tmp_path):
    """Sky (stuff, 3), a wall (stuff, 1), two people (thing, class 4 of 100) of which one covers wall pixels, and a bed
    region (thing, 8) without an instance."""
    root = tmp_path / "ADEChallengeData2016"
    classes = np.zeros((HEIGHT, WIDTH))
    classes[:, :3], classes[:, 3:5], classes[:, 5:7], classes[0, 7] = 1, 13, 3, 8
    instance = np.zeros((HEIGHT, WIDTH, 3))
    instance[:, 2:4] = (4, 1, 0)
    instance[:, 4:5] = (4, 2, 0)
    name = "ADE_val_00000007"
    save_png(root / "annotations/validation" / f"{name}.png", classes)
    save_png(root / "annotations_instance/validation" / f"{name}.png", instance)
    save_png(root / "images/validation" / f"{name}.jpg", np.zeros((HEIGHT, WIDTH, 3)))
    return tmp_path


def test_ade20k_counts_instances_and_stuff(ade):
    dataset = Ade20k(ade)
    (key,) = dataset.keys()
    sample = dataset.read(key)
    assert sample.image == {"id": 7, "file_name": "ADE_val_00000007.jpg", "height": HEIGHT, "width": WIDTH}
    # Instances are above stuff, so the wall ends at 2; a thing class without an instance does not count.
    expected = [area(2, 4), area(4, 5), area(0, 2), area(5, 7)]
    np.testing.assert_array_equal(dense(sample), expected)
    assert dataset.read_image(sample.image["file_name"]).shape == (3, HEIGHT, WIDTH)


def test_ade20k_has_fifty_stuff_classes():
    assert len(set(STUFF_CLASSES)) == 50
    assert {1, 3, 4, 6, 7} <= set(STUFF_CLASSES)  # wall, sky, floor, ceiling, road
    assert not {8, 13, 20, 21} & set(STUFF_CLASSES)  # bed, person, chair, car


def test_ade20k_names_what_is_missing(ade, tmp_path):
    (ade / "ADEChallengeData2016/annotations_instance").rename(tmp_path / "gone")
    with pytest.raises(LayoutError, match=r"annotations_instance/validation is missing \(expected ROOT/images/valid"):
        Ade20k(ade)


@pytest.fixture
def ade_full(tmp_path):
    """Two cars, a door in the first, a handle in the door, and a wheel partly outside the car."""
    folder = tmp_path / "images/ADE/validation/urban/street"
    seg, parts_1, parts_2 = (np.zeros((HEIGHT, WIDTH, 3)) for _ in range(3))
    car = (10, 145, 0)  # class 1 * 256 + 145
    seg[:, :4] = (*car[:2], 50)
    seg[:, 4:6] = (*car[:2], 90)
    parts_1[1:5, 1:3] = (0, 77, 1)
    parts_1[2, 5:8] = (0, 78, 2)
    parts_2[2, 2] = (30, 5, 1)
    name = "ADE_val_00000012"
    for suffix, pixels in (("_seg.png", seg), ("_parts_1.png", parts_1), ("_parts_2.png", parts_2)):
        save_png(folder / f"{name}{suffix}", pixels)
    save_png(folder / f"{name}.jpg", np.zeros((HEIGHT, WIDTH, 3)))
    return tmp_path


def test_ade20k_full_has_parts_with_parents(ade_full):
    dataset = Ade20kFull(ade_full)
    sample = dataset.read(dataset.keys()[0])
    assert sample.image["file_name"] == "urban/street/ADE_val_00000012.jpg"
    assert sample.image["id"] == 12
    masks = dense(sample)
    np.testing.assert_array_equal(masks[0], area(0, 4))
    np.testing.assert_array_equal(masks[1], area(4, 6))
    assert [int(mask.sum()) for mask in masks[2:]] == [8, 3, 1]
    assert [one["level"] for one in sample.annotations] == [0, 0, 1, 1, 2]
    # The wheel has one pixel on the second car and two on nothing.
    assert [one["parent"] for one in sample.annotations] == [None, None, 0, None, 2]
    assert len(dataset.inputs()) == 3


@pytest.fixture(params=["", "BSR/BSDS500"])
def bsds(request, tmp_path):
    """Two annotators: halves, and thirds of which two labels lie apart but are one segment."""
    root = tmp_path / request.param
    halves = np.where(area(0, 4), 1, 2).astype(np.uint16)
    thirds = np.where(area(2, 6), 1, 2).astype(np.uint16)
    cells = np.empty((1, 2), object)
    for index, labels in enumerate((halves, thirds)):
        cells[0, index] = {"Segmentation": labels, "Boundaries": labels > 1}
    for split in ("test", "val"):
        (root / "data/groundTruth" / split).mkdir(parents=True)
        savemat(root / "data/groundTruth" / split / "100007.mat", {"groundTruth": cells})
        save_png(root / "data/images" / split / "100007.jpg", np.zeros((HEIGHT, WIDTH, 3)))
    return tmp_path


@pytest.mark.parametrize("kind", [Bsds500, Bsds500Val])
def test_bsds_keeps_annotators_apart(bsds, kind):
    dataset = kind(bsds)
    sample = dataset.read(dataset.keys()[0])
    assert sample.image == {"id": 100007, "file_name": "100007.jpg", "height": HEIGHT, "width": WIDTH}
    assert [one["annotator"] for one in sample.annotations] == [0, 0, 1, 1]
    np.testing.assert_array_equal(dense(sample), [area(0, 4), area(4, 8), area(2, 6), ~area(2, 6)])


def test_bsds_refuses_another_mat(bsds):
    dataset = Bsds500(bsds)
    savemat(dataset.truth_files[0], {"other": 1})
    with pytest.raises(LayoutError, match=r"100007.mat: expected a cell array groundTruth"):
        dataset.read(dataset.keys()[0])


APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(200)


def test_hidden_files_beside_the_truth_are_not_read(ade, bsds, ade_full):
    """A folder copied by macOS has a ._X beside every X."""
    folders = {
        Ade20k: ade / "ADEChallengeData2016/annotations_instance/validation",
        Ade20kFull: ade_full / "images/ADE/validation/urban/street",
        Bsds500: Bsds500(bsds).truth_folder,
    }
    roots = {Ade20k: ade, Ade20kFull: ade_full, Bsds500: bsds}
    for kind, folder in folders.items():
        before = kind(roots[kind]).keys()
        for file in list(folder.iterdir()):
            (folder / f"._{file.name}").write_bytes(APPLE_DOUBLE)
            (folder / ".AppleDouble").mkdir(exist_ok=True)
            (folder / ".AppleDouble" / file.name).write_bytes(APPLE_DOUBLE)
        dataset = kind(roots[kind])
        assert dataset.keys() == before
        assert dataset.read(before[0]) is not None


def test_bsds_of_a_newer_matlab_says_how_to_convert(bsds):
    dataset = Bsds500(bsds)
    header = b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(116) + bytes(8) + b"\x00\x02IM"
    dataset.truth_files[0].write_bytes(header + bytes(384) + b"\x89HDF\r\n\x1a\n" + bytes(64))
    with pytest.raises(LayoutError) as error:
        dataset.read(dataset.keys()[0])
    expected = "v7 or older: load it in MATLAB, and save('100007.mat', 'groundTruth', '-v7')"
    assert str(error.value) == f"{dataset.truth_files[0]}: saved in MATLAB's format v7.3, expected {expected}"


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_damaged_mat_is_named(bsds, is_compressed):
    dataset = Bsds500(bsds)
    file = dataset.truth_files[0]
    cells = np.empty((1, 1), object)
    cells[0, 0] = {"Segmentation": np.random.default_rng(0).integers(1, 99, (HEIGHT, WIDTH)).astype(np.uint16)}
    savemat(file, {"groundTruth": cells}, do_compression=is_compressed)
    content = file.read_bytes()
    for damaged in (b"", content[:60], content[:140], content[:300], b"text" * 100, APPLE_DOUBLE):
        file.write_bytes(damaged)
        with pytest.raises(LayoutError, match=r"100007\.mat: expected a "):
            dataset.read(dataset.keys()[0])


def test_annotators_agree_on_the_size(bsds):
    dataset = Bsds500(bsds)
    cells = np.empty((1, 2), object)
    for index, shape in enumerate([(6, 8), (6, 7)]):
        cells[0, index] = {"Segmentation": np.ones(shape, np.uint16)}
    savemat(dataset.truth_files[0], {"groundTruth": cells})
    with pytest.raises(LayoutError, match="expected segmentations of one height and width"):
        dataset.read(dataset.keys()[0])


def test_damaged_png_is_named(ade):
    file = ade / "ADEChallengeData2016/annotations/validation/ADE_val_00000007.png"
    file.write_bytes(file.read_bytes()[:40])
    dataset = Ade20k(ade)
    with pytest.raises(LayoutError, match=r"ADE_val_00000007.png: cannot be read as a picture"):
        dataset.read(dataset.keys()[0])
