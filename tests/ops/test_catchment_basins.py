# SPDX-License-Identifier: Apache-2.0
"""catchment_basins: labels by hand, the kernel against the reference, properties, opcheck, compile, error messages."""

import re

import pytest
import torch
from scipy import ndimage
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad

from sohes.ops import catchment_basins
from sohes.ops._binary import find_binary
from sohes.ops._library import OPERATORS

needs_binary = pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason)
BACKENDS = ["reference", pytest.param("cpp", marks=needs_binary)]
SIZES = [(0, 5), (5, 0), (1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (31, 46)]


def heights(size, seed=0):
    """Noise, smooth waves, many ties, a plateau, one slope, and the largest finite numbers."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(size, generator=generator)
    waves = noise.cumsum(1).sin() + noise.cumsum(0).cos()
    slope = torch.arange(noise.numel()).view(size).float()
    largest = torch.full(size, torch.finfo(torch.float32).max)
    ties = torch.randint(0, 3, size, generator=generator).float()
    signed = torch.where(ties > 0, 0.0, -0.0)  # equal, whatever their sign
    return [noise, -noise, waves, ties, signed, torch.zeros(size), slope, -slope, largest, -largest]


@needs_binary
@pytest.mark.parametrize("size", SIZES)
def test_forward(size):
    for height in heights(size):
        got, expected = catchment_basins(height, "cpp"), catchment_basins(height, "reference")
        assert (got.dtype, got.shape) == (torch.int64, size)
        assert torch.equal(got, expected)
        assert torch.equal(catchment_basins(height), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_by_hand(backend):
    height = torch.tensor([[3.0, 2.0, 5.0, 1.0], [4.0, 1.0, 6.0, 0.0]])
    # 5 flows right to 1 and down to 0, 6 right to 0; the minimum 1 comes before the minimum 0.
    assert catchment_basins(height, backend).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    ridge = torch.tensor([[0.0, 2.0, 0.0]])
    assert catchment_basins(ridge, backend).tolist() == [[0, 0, 1]]  # of equal neighbours the first
    assert catchment_basins(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), backend).tolist() == [[0, 0, 0, 0]]
    assert catchment_basins(torch.tensor([[0.0], [2.0], [0.0]]), backend).tolist() == [[0], [0], [1]]
    assert catchment_basins(torch.zeros(3, 4), backend).tolist() == [[0] * 4] * 3  # a plateau is one basin
    snake = torch.tensor([[9.0, 8.0, 7.0], [4.0, 5.0, 6.0], [3.0, 2.0, 1.0]])
    assert catchment_basins(snake, backend).unique().tolist() == [0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_basin_is_connected_and_holds_one_minimum(backend):
    height = heights((40, 30), seed=1)[0]
    labels = catchment_basins(height, backend)
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    lowest = ndimage.minimum_filter(height.numpy(), footprint=ndimage.generate_binary_structure(2, 1)) == height.numpy()
    minima = labels[torch.from_numpy(lowest)]
    assert minima.tolist() == list(range(len(minima)))  # numbered in raster order, one each
    for basin in labels.unique():
        assert ndimage.label((labels == basin).numpy())[1] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_increasing_map_of_heights_keeps_the_basins(backend):
    height = heights((17, 23))[2]
    labels = catchment_basins(height, backend)
    assert torch.equal(catchment_basins(2 * height + 1, backend), labels)
    wide = torch.stack([height, height], -1)[..., 0]
    assert not wide.is_contiguous()
    assert torch.equal(catchment_basins(wide, backend), labels)
    assert torch.equal(catchment_basins(wide.T.contiguous().T, backend), labels)


def test_operator_is_well_formed():
    height = heights((7, 9))[0]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.sohes.catchment_basins.default, (height, "auto"), test_utils=tests)


class Shifted(torch.nn.Module):
    def forward(self, height):
        return OPERATORS["catchment_basins"](height, "auto") + 1


def test_compile_and_export():
    counter = CompileCounter()
    compiled = torch.compile(Shifted(), fullgraph=True, dynamic=True, backend=counter)
    for size in ((12, 15), (21, 34)):
        height = heights(size)[0]
        expected = catchment_basins(height) + 1
        assert torch.equal(compiled(height), expected)
        assert torch.equal(torch.export.export(Shifted(), (height,)).module()(height), expected)
    assert counter.frame_count == 1


def test_no_gradient():
    height = heights((5, 6))[0].requires_grad_()
    assert not catchment_basins(height).requires_grad
    assert not OPERATORS["catchment_basins"](height, "reference").requires_grad  # integers
    height = height.detach()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"^catchment_basins: there is no forward"):
        catchment_basins(forward_ad.make_dual(height, height))


@needs_binary
def test_same_for_any_number_of_threads():
    height, threads = heights((60, 80))[0], torch.get_num_threads()
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(catchment_basins(height, "cpp"))
    torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("height", "message"),
    [
        (torch.zeros(4), "expected height float32 [H, W], got torch.float32 [4]"),
        (torch.zeros(4, 5).double(), "expected height float32 [H, W], got torch.float64 [4, 5]"),
        (torch.tensor([[0.0, float("nan")]]), "expected finite height"),
        (torch.tensor([[0.0, float("inf")]]), "expected finite height"),
        (torch.tensor([[0.0, -float("inf")]]), "expected finite height"),
    ],
)
def test_messages(height, message):
    with pytest.raises(ValueError, match=re.escape(f"catchment_basins: {message}")):
        catchment_basins(height)
