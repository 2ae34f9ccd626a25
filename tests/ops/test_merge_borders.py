# SPDX-License-Identifier: Apache-2.0
"""merge_borders: a case computed by hand, the kernel against the reference, opcheck, compile, error messages."""

import pytest
import torch

from sohes.ops import merge_borders
from sohes.ops._library import OPERATORS, BackendUnavailable

BACKENDS = ["reference", "cpp"]


def run(backend, *args, **kwargs):
    try:
        return merge_borders(*args, backend=backend, **kwargs)
    except BackendUnavailable as error:
        pytest.skip(str(error))


def grid_case(h, w, channels, seed):
    """A grid of h x w regions with random features, sizes and borders."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(h * w).view(h, w)
    edges = torch.cat(
        [
            torch.stack([index[:, :-1].flatten(), index[:, 1:].flatten()], 1),
            torch.stack([index[:-1].flatten(), index[1:].flatten()], 1),
        ]
    )
    means = torch.randn(h * w, channels, generator=generator)
    sizes = torch.randint(1, 50, (h * w,), generator=generator)
    lengths = torch.randint(1, 9, (len(edges),), generator=generator).float()
    borders = torch.stack([lengths, lengths * torch.rand(len(edges), generator=generator)], 1)
    return means, sizes, edges, borders


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chain_by_hand(backend):
    means = torch.tensor([[0.0], [1.0], [3.0]])
    sizes = torch.tensor([1, 1, 2])
    edges = torch.tensor([[0, 1], [1, 2]])
    borders = torch.tensor([[2.0, 1.0], [4.0, 0.0]])
    tree, shared = run(backend, means, sizes, edges, borders, border_weight=4.0, size_exponent=0.0)
    # |0 - 1| + 4 * 1/2 = 3 is dearer than |1 - 3| + 0 = 2; the mean of 1 and 3 by sizes 1 and 2 is 7/3.
    assert tree.merges.tolist() == [[1, 2], [0, 3]]
    torch.testing.assert_close(-tree.similarity, torch.tensor([2.0, 7 / 3 + 2]))
    assert shared.tolist() == [[4.0, 0.0], [2.0, 1.0]]
    assert tree.areas.tolist() == [1, 1, 2, 3, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_borders_that_become_one_add_up(backend):
    means, sizes = torch.tensor([[0.0], [0.0], [9.0]]), torch.ones(3, dtype=torch.int64)
    edges = torch.tensor([[0, 1], [0, 2], [1, 2]])
    borders = torch.tensor([[1.0, 0.5], [2.0, 1.0], [6.0, 3.0]])
    tree, shared = run(backend, means, sizes, edges, borders, border_weight=1.0, size_exponent=0.5)
    assert tree.merges.tolist() == [[0, 1], [2, 3]]
    assert shared.tolist() == [[1.0, 0.5], [8.0, 4.0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_costs_take_the_lower_ids(backend):
    means, sizes = torch.zeros(4, 1), torch.ones(4, dtype=torch.int64)
    edges = torch.tensor([[2, 3], [1, 2], [0, 1]])
    tree, _ = run(backend, means, sizes, edges, torch.ones(3, 2), border_weight=0.0, size_exponent=0.0)
    assert tree.merges.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(("h", "w", "channels"), [(1, 1, 3), (1, 9, 1), (7, 6, 8), (12, 13, 21)])
@pytest.mark.parametrize(("border_weight", "size_exponent"), [(0.0, 0.5), (3.0, 0.3), (1.0, 0.0)])
def test_kernel_equals_reference(h, w, channels, border_weight, size_exponent):
    case = grid_case(h, w, channels, seed=h * w + channels)
    settings = {"border_weight": border_weight, "size_exponent": size_exponent}
    expected, expected_shared = merge_borders(*case, backend="reference", **settings)
    tree, shared = run("cpp", *case, **settings)
    assert len(tree.merges) == h * w - 1
    assert torch.equal(tree.merges, expected.merges)
    torch.testing.assert_close(tree.similarity, expected.similarity)
    torch.testing.assert_close(shared, expected_shared)
    again, _ = run("cpp", *case, **settings)
    assert torch.equal(again.similarity, tree.similarity)


@pytest.mark.parametrize("seed", range(3))
def test_kernel_equals_reference_with_long_lists_of_neighbours(seed):
    """A hub beside every region of a random planar strip: its list grows and shrinks all the time."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(1, 90)
    pairs = [(0, int(i)) for i in index] + [(int(i), int(i) + 1) for i in index[:-1]]
    pairs += [(int(i), int(i) + 2) for i in index[:-2:3]]
    edges = torch.tensor(pairs)[torch.randperm(len(pairs), generator=generator)]
    flipped = torch.rand(len(edges), generator=generator) < 0.5
    edges[flipped] = edges[flipped].flip(1)
    lengths = torch.randint(1, 9, (len(edges),), generator=generator).float()
    borders = torch.stack([lengths, lengths * torch.rand(len(edges), generator=generator)], 1)
    case = torch.randn(90, 6, generator=generator), torch.randint(1, 50, (90,), generator=generator), edges, borders
    expected, expected_shared = merge_borders(*case, backend="reference")
    tree, shared = run("cpp", *case)
    assert torch.equal(tree.merges, expected.merges)
    torch.testing.assert_close(tree.similarity, expected.similarity)
    torch.testing.assert_close(shared, expected_shared)


def test_many_equal_costs_take_the_lower_ids_in_both():
    means, sizes, edges, borders = grid_case(9, 11, 4, seed=5)
    case = means.round(), torch.ones_like(sizes), edges, borders.round().clamp(min=1)
    expected, _ = merge_borders(*case, size_exponent=0.0, backend="reference")
    tree, _ = run("cpp", *case, size_exponent=0.0)
    assert torch.equal(tree.merges, expected.merges)


def test_costs_that_are_no_numbers_come_last():
    means, sizes, edges, borders = grid_case(5, 6, 3, seed=2)
    means[7] = torch.nan
    tree, _ = run("cpp", means, sizes, edges, borders)
    assert len(tree.merges) == 29
    assert tree.similarity.isnan().tolist() == [False] * 28 + [True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_stay_apart(backend):
    means, sizes = torch.zeros(4, 2), torch.ones(4, dtype=torch.int64)
    tree, shared = run(backend, means, sizes, torch.tensor([[0, 1], [2, 3]]), torch.ones(2, 2))
    assert tree.merges.tolist() == [[0, 1], [2, 3]]
    assert shared.shape == (2, 2)
    lonely, _ = run(backend, means, sizes, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2))
    assert len(lonely.merges) == 0


def test_operator_is_well_formed():
    means, sizes, edges, borders = grid_case(3, 4, 5, seed=0)
    torch.library.opcheck(
        torch.ops.sohes.merge_borders.default, (means, sizes, edges.int(), borders, 1.0, 0.5), {"backend": "auto"}
    )
    operator = OPERATORS["merge_borders"]
    args = (means, sizes, edges.int(), borders, 1.0, 0.5)
    compiled = torch.compile(lambda *tensors: operator(*tensors, 1.0, 0.5), fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(*args[:4]), operator(*args), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": torch.zeros(4)}, r"expected means float32 \[N, C\] on the CPU, none empty, got torch.float32 \[4\]"),
        ({"sizes": torch.zeros(4, dtype=torch.int64)}, r"expected sizes int64 \[4\] of at least 1"),
        ({"edges": torch.tensor([[0, 4]])}, r"expected edges between different regions in \[0, 4\)"),
        ({"edges": torch.tensor([[1, 1]])}, r"expected edges between different regions in \[0, 4\)"),
        ({"edges": torch.zeros(3, dtype=torch.int64)}, r"expected edges int64 \[E, 2\], got torch.int64 \[3\]"),
        ({"borders": torch.zeros(1, 2)}, r"expected borders float32 \[1, 2\], lengths > 0"),
        ({"border_weight": -1.0}, r"expected border_weight and size_exponent >= 0, got -1.0 and 0.3"),
    ],
)
def test_messages(change, message):
    case = {
        "means": torch.zeros(4, 2),
        "sizes": torch.ones(4, dtype=torch.int64),
        "edges": torch.tensor([[0, 1]]),
        "borders": torch.ones(1, 2),
    }
    with pytest.raises(ValueError, match=message):
        merge_borders(**(case | change))
