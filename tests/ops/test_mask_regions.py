# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from mask_cases import SIZES, mixed
from scipy import ndimage
from skimage import measure

from sohes.ops import mask_regions
from sohes.ops._binary import find_binary
from sohes.ops.reference import mask_regions as reference
from sohes.structures.masks import PackedMasks

needs_binary = pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason)
BACKENDS = ["reference", pytest.param("cpp", marks=needs_binary)]
OPERATORS = ["mask_fill_holes", "mask_largest_component", "mask_boundary"]


def picture(text):
    rows = [[letter == "#" for letter in row] for row in text.split()]
    return PackedMasks.from_dense(torch.tensor([rows]))


def draw(words, size):
    dense = PackedMasks(words, size).to_dense()[0].tolist()
    return ["".join("#" if pixel else "." for pixel in row) for row in dense]


@needs_binary
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPERATORS)
def test_forward(name, size):
    words = PackedMasks.from_dense(mixed(0, *size)).words
    operator = getattr(mask_regions, name)
    assert torch.equal(operator(words, size, backend="cpp"), operator(words, size, backend="reference"))


@needs_binary
@pytest.mark.parametrize("size", SIZES)
def test_components(size):
    words = PackedMasks.from_dense(mixed(1, *size)).words
    for got, expected in zip(
        mask_regions.mask_components(words, size), reference.mask_components(words, *size), strict=True
    ):
        assert torch.equal(got, expected)


@needs_binary
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("new_size", [(0, 3), (1, 1), (7, 5), (64, 64), (129, 70)])
def test_resize(size, new_size):
    words = PackedMasks.from_dense(mixed(2, *size)).words
    if 0 in size and 0 not in new_size:
        with pytest.raises(ValueError, match=r"^mask_resize: cannot resize masks of \["):
            mask_regions.mask_resize(words, size, new_size)
        return
    got = mask_regions.mask_resize(words, size, new_size, backend="cpp")
    assert torch.equal(got, mask_regions.mask_resize(words, size, new_size, backend="reference"))
    if new_size == size:
        assert torch.equal(got, words)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pinned(backend):
    # The diagonal wall holds (foreground joins at corners); the hole open at a side is none.
    mask = picture("""
        .##...#
        #..#..#
        .#.#.#.
        ..#..##
        #......
    """)
    assert draw(mask_regions.mask_fill_holes(mask.words, mask.size, backend), mask.size) == [
        ".##...#", "####..#", ".###.#.", "..#..##", "#......"]  # fmt: skip
    assert draw(mask_regions.mask_largest_component(mask.words, mask.size, backend), mask.size) == [
        ".##....", "#..#...", ".#.#...", "..#....", "......."]  # fmt: skip
    solid = picture("##### ##### ##### ####.")
    assert draw(mask_regions.mask_boundary(solid.words, solid.size, backend), solid.size) == [
        "#####", "#...#", "#...#", "####."]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_largest_of_equals_is_the_first_by_columns(backend):
    mask = picture("..## ##.. ....")
    assert draw(mask_regions.mask_largest_component(mask.words, mask.size, backend), mask.size) == [
        "..##", "##..", "...."]  # fmt: skip
    apart = picture("...## ..... ##...")
    assert draw(mask_regions.mask_largest_component(apart.words, apart.size, backend), apart.size) == [
        ".....", ".....", "##..."]  # fmt: skip


def test_components_are_skimages():
    dense = mixed(3, 40, 50)
    words, owner = mask_regions.mask_components(PackedMasks.from_dense(dense).words, (40, 50))
    parts = PackedMasks(words, (40, 50)).to_dense()
    for index, mask in enumerate(dense):
        own = parts[owner == index]
        assert len(own) == measure.label(mask.numpy(), connectivity=2).max()
        assert torch.equal(own.sum(0), mask.long())  # they are disjoint and leave nothing out


def test_component_of_a_snake():
    """One long component whose parts are joined late."""
    dense = torch.zeros(1, 65, 65, dtype=torch.bool)
    dense[0, ::2] = True
    dense[0, 1::4, -1] = dense[0, 3::4, 0] = True
    masks = PackedMasks.from_dense(dense)
    assert len(masks.components()[0]) == 1
    assert torch.equal(masks.largest_component().words, masks.words)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name, backend):
    words = PackedMasks.from_dense(mixed(4, 9, 8, each=1)).words
    operator = getattr(torch.ops.sohes, name).default
    torch.library.opcheck(operator, (words, 9, 8, backend), test_utils=("test_schema", "test_faketensor"))


@needs_binary
def test_same_for_any_number_of_threads():
    words = PackedMasks.from_dense(mixed(5, 65, 70, each=4)).words
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        outputs = [getattr(mask_regions, name)(words, (65, 70), backend="cpp") for name in OPERATORS]
        results.append([*outputs, *mask_regions.mask_components(words, (65, 70))])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def column_runs(words, height, width, value):
    """Mask, start, stop and component of every run of every column, in order."""
    for index, dense in enumerate(reference.mask_unpack(words, height, width).numpy()):
        columns = dense.T if value else ~dense.T  # [W, H]
        components = ndimage.label(columns, np.ones((3, 3)) if value else None)[0]
        for x, column in enumerate(columns):
            steps = np.diff(column, prepend=False, append=False).nonzero()[0]
            for start, stop in steps.reshape(-1, 2).tolist():
                yield index, x * height + start, x * height + stop, (index, components[x, start])


def run_in_python(entry, like, *args):
    """The CUDA kernels of runs, emulated on the CPU (tests/cuda/ compares the kernels with those in C++)."""
    if entry == "mask_num_column_runs_cuda":
        *masks, num_runs = args
        for index in range(len(num_runs)):
            num_runs[index] = sum(mask == index for mask, *_ in column_runs(*masks))
    elif entry == "mask_label_runs_cuda":
        *masks, first, starts, stops, labels = args
        roots = {}
        for run, (mask, start, stop, component) in enumerate(column_runs(*masks)):
            assert first[mask] <= run < first[mask + 1]
            starts[run], stops[run], labels[run] = start, stop, roots.setdefault(component, run)
    else:
        assert entry == "mask_paint_runs_cuda"
        starts, stops, target, words = args
        for start, stop, row in zip(starts.tolist(), stops.tolist(), target.tolist(), strict=True):
            for pixel in range(start, stop) if row >= 0 else ():
                words[row, pixel // 64] |= torch.tensor(1) << (pixel % 64)


@pytest.mark.parametrize("size", [(0, 5), (1, 1), (1, 9), (9, 1), (13, 5), (9, 15)])
def test_what_is_made_of_runs_on_a_gpu(size, monkeypatch):
    """The steps around the kernels, without a GPU."""
    monkeypatch.setattr(mask_regions, "run_cuda", run_in_python)
    words = PackedMasks.from_dense(mixed(6, *size, each=2)).words
    for some in (words, words[:0]):
        for name in ("fill_holes", "largest_component", "components"):
            got = getattr(mask_regions, f"_{name}_cuda")(some, *size)
            expected = getattr(reference, f"mask_{name}")(some, *size)
            pairs = zip(got, expected, strict=True) if name == "components" else [(got, expected)]
            assert all(torch.equal(a, b) for a, b in pairs)
