# SPDX-License-Identifier: Apache-2.0
"""region_borders: borders by hand, the kernel against the reference, properties, opcheck, compile, error messages."""

import re

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad

from sohes.ops import catchment_basins, merge_borders, region_borders
from sohes.ops._binary import find_binary
from sohes.ops._library import OPERATORS

needs_binary = pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason)
BACKENDS = ["reference", pytest.param("cpp", marks=needs_binary)]
SIZES = [(0, 5), (5, 0), (1, 1), (1, 9), (9, 1), (2, 2), (31, 46)]


def cases(size, seed=0):
    """Label maps with strengths: basins, noise of few and of many labels (some without a pixel), rows, one region."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.rand(size, generator=generator)
    num_pixels = strength.numel()
    noise = [torch.randint(0, max(1, min(n, num_pixels)), size, generator=generator) for n in (3, 50, num_pixels)]
    by_row = torch.arange(num_pixels).view(size).flip(0) // max(size[1], 1)
    labels = [catchment_basins(strength, "reference"), *noise, by_row, torch.zeros(size, dtype=torch.int64)]
    return [(label, strength) for label in labels]


def same(got, expected):
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(got, expected, strict=True))


@needs_binary
@pytest.mark.parametrize("size", SIZES)
def test_forward(size):
    for case in cases(size):
        expected = region_borders(*case, "reference")
        assert (expected[0].dtype, expected[1].dtype) == (torch.int64, torch.float32)
        assert same(region_borders(*case, "cpp"), expected)
        assert same(region_borders(*case), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_borders_by_hand(backend):
    labels = torch.tensor([[0, 0, 1], [0, 2, 2]])
    strength = torch.tensor([[0.0, 0.5, 0.25], [1.0, 0.0, 0.0]])
    edges, borders = region_borders(labels, strength, backend)
    assert edges.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert borders.tolist() == [[1.0, 0.5], [2.0, 1.5], [1.0, 0.25]]
    edges, borders = region_borders(2 - labels, strength, backend)
    assert edges.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert borders.tolist() == [[1.0, 0.25], [2.0, 1.5], [1.0, 0.5]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(0, 0), (0, 5), (1, 1), (4, 6)])
def test_no_borders(backend, size):
    edges, borders = region_borders(torch.zeros(size, dtype=torch.int64), torch.ones(size), backend)
    assert (edges.shape, edges.dtype) == ((0, 2), torch.int64)
    assert (borders.shape, borders.dtype) == ((0, 2), torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_strengths_that_are_not_finite(backend, value, place):
    strength = torch.ones(1, 2)
    strength[0, place] = value
    _, borders = region_borders(torch.tensor([[0, 1]]), strength, backend)
    expected = torch.maximum(*strength[0])
    torch.testing.assert_close(borders, torch.stack([torch.tensor(1.0), expected])[None], equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_borders_count_all_sides_between_regions(backend):
    for labels, strength in cases((19, 26), seed=2):
        edges, borders = region_borders(labels, strength, backend)
        key = edges[:, 0] * labels.numel() + edges[:, 1]
        assert (edges[:, 0] < edges[:, 1]).all()
        assert (key.diff() > 0).all()
        across = [labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]]
        assert borders[:, 0].sum() == sum(side.sum() for side in across)
        back, turned = region_borders(labels.flip(0, 1), strength.flip(0, 1), backend)
        assert torch.equal(back, edges)
        torch.testing.assert_close(turned, borders)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs(backend):
    labels, strength = cases((20, 30))[0]
    expected = region_borders(labels, strength, "reference")
    assert same(region_borders(labels.T.contiguous().T, strength.T.contiguous().T, backend), expected)


def test_merge_borders_takes_them():
    labels, strength = cases((20, 30))[0]
    sizes = torch.bincount(labels.flatten())
    tree, _ = merge_borders(torch.rand(len(sizes), 3), sizes, *region_borders(labels, strength))
    assert len(tree.merges) == len(sizes) - 1  # the graph of a label map is connected


@pytest.mark.parametrize("backend", BACKENDS)
def test_operator_is_well_formed(backend):
    args = (*cases((7, 9))[0], backend)
    tests = ("test_schema", "test_faketensor")  # the number of edges depends on the data
    torch.library.opcheck(torch.ops.sohes.region_borders.default, args, test_utils=tests)


class Doubled(torch.nn.Module):
    def forward(self, labels, strength):
        edges, borders = OPERATORS["region_borders"](labels, strength, "auto")
        return edges * 2, borders * 2


def test_compile_and_export():
    counter = CompileCounter()
    compiled = torch.compile(Doubled(), fullgraph=True, dynamic=True, backend=counter)
    for size in ((12, 15), (21, 34)):
        case = cases(size)[0]
        expected = Doubled()(*case)
        for run in (compiled, torch.export.export(Doubled(), case).module()):
            assert same(run(*case), expected)
    assert counter.frame_count == 1


def test_no_gradient():
    labels, strength = cases((5, 6))[0]
    strength.requires_grad_()
    assert not region_borders(labels, strength)[1].requires_grad
    _, borders = OPERATORS["region_borders"](labels, strength, "reference")
    with pytest.raises(NotImplementedError, match=r"^region_borders: its results have no gradient$"):
        borders.sum().backward()
    strength = strength.detach()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"^region_borders: there is no forward"):
        region_borders(labels, forward_ad.make_dual(strength, strength))


@needs_binary
def test_same_for_any_number_of_threads():
    case, threads = cases((60, 80))[1], torch.get_num_threads()
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(region_borders(*case, "cpp"))
    torch.set_num_threads(threads)
    assert same(*results)


LABELS = torch.tensor([[0, 1, 2]])


@pytest.mark.parametrize(
    ("labels", "strength", "message"),
    [
        (LABELS.int(), torch.ones(1, 3), "expected labels int64 [H, W], got torch.int32 [1, 3]"),
        (LABELS[0], torch.ones(3), "expected labels int64 [H, W], got torch.int64 [3]"),
        (LABELS, torch.ones(3), "expected strength float32 [1, 3], got torch.float32 [3]"),
        (LABELS, torch.ones(1, 3).double(), "expected strength float32 [1, 3], got torch.float64 [1, 3]"),
        (LABELS, torch.ones(1, 3, device="meta"), "expected one device, got cpu and meta"),
        (LABELS - 1, torch.ones(1, 3), "expected labels in [0, 3)"),
        (LABELS + 1, torch.ones(1, 3), "expected labels in [0, 3)"),
    ],
)
def test_messages(labels, strength, message):
    with pytest.raises(ValueError, match=re.escape(f"region_borders: {message}")):
        region_borders(labels, strength)
