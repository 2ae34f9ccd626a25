# SPDX-License-Identifier: Apache-2.0
"""mask_from_nodes: the kernel against the reference, cases by hand, opcheck, compile and export, error messages."""

import pytest
import torch
from mask_cases import SIZES

from sohes.ops import mask_from_nodes, mask_stats, mask_unpack, merge_regions
from sohes.ops._binary import find_binary
from sohes.ops._library import OPERATORS
from sohes.ops.mask_regions import mask_fill_holes

needs_binary = pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason)
BACKENDS = ["reference", pytest.param("cpp", marks=needs_binary)]


def random_case(seed, height, width, num_leaves=9, num_trees=3, num_nodes=14):
    """Blocks and noise as leaves, some of them without pixels; nodes of any length, also empty and all."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, num_leaves - 1, (height, width), generator=generator)
    blocks = torch.arange(height)[:, None] // 5 * 3 + torch.arange(width) // 7
    leaves = torch.where(noise == 0, noise, blocks % (num_leaves - 1))
    orders = torch.stack([torch.randperm(num_leaves, generator=generator) for _ in range(num_trees)])
    bounds = torch.randint(0, num_leaves + 1, (num_nodes, 2), generator=generator).sort(1).values
    bounds[0], bounds[1] = torch.tensor([2, 2]), torch.tensor([0, num_leaves])
    trees = torch.randint(0, num_trees, (num_nodes, 1), generator=generator)
    return leaves, orders, torch.cat([trees, bounds], 1)


@needs_binary
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fill_holes", [False, True])
def test_forward(size, fill_holes):
    case = random_case(sum(size), *size)
    expected = mask_from_nodes(*case, fill_holes, "reference")
    for got, wanted in zip(mask_from_nodes(*case, fill_holes, "cpp"), expected, strict=True):
        assert torch.equal(got, wanted)


@needs_binary
def test_tensors_of_any_strides():
    leaves, orders, nodes = random_case(0, 20, 31)
    strided = leaves.T.contiguous().T, orders.T.contiguous().T, torch.stack([nodes, nodes], 2)[..., 0]
    for got, wanted in zip(mask_from_nodes(*strided), mask_from_nodes(leaves, orders, nodes), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pinned(backend):
    leaves = torch.tensor([[0, 0, 0, 3], [0, 1, 0, 3], [0, 0, 0, 2]])
    orders = torch.tensor([[0, 2, 1, 3], [3, 2, 0, 1]])
    nodes = torch.tensor([[0, 0, 1], [0, 1, 3], [1, 0, 2], [1, 4, 4]])
    words, areas, boxes = mask_from_nodes(leaves, orders, nodes, False, backend)
    picture = mask_unpack(words, (3, 4)).int().tolist()
    assert picture[0] == [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]]
    assert picture[1] == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert picture[2] == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert areas.tolist() == [8, 2, 3, 0]
    assert boxes.tolist() == [[0, 0, 3, 3], [1, 1, 4, 3], [3, 0, 4, 3], [0, 0, 0, 0]]
    words, areas, boxes = mask_from_nodes(leaves, orders, nodes[:1], True, backend)
    assert mask_unpack(words, (3, 4)).int().tolist() == [[[1, 1, 1, 0]] * 3]
    assert (areas.tolist(), boxes.tolist()) == ([9], [[0, 0, 3, 3]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_properties(backend):
    leaves, orders, nodes = random_case(7, 33, 40)
    words, areas, boxes = mask_from_nodes(leaves, orders, nodes, False, backend)
    for mask, (tree, start, stop) in zip(mask_unpack(words, (33, 40)), nodes.tolist(), strict=True):
        assert torch.equal(mask, torch.isin(leaves, orders[tree, start:stop]))
    for got, wanted in zip((areas, boxes), mask_stats(words, (33, 40)), strict=True):
        assert torch.equal(got, wanted)
    filled, areas, boxes = mask_from_nodes(leaves, orders, nodes, True, backend)
    assert torch.equal(filled, mask_fill_holes(words, (33, 40)))
    assert not torch.equal(filled, words)
    for got, wanted in zip((areas, boxes), mask_stats(filled, (33, 40)), strict=True):
        assert torch.equal(got, wanted)


@needs_binary
@pytest.mark.parametrize("fill_holes", [False, True])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_nodes_of_a_tree_inside_each_other(fill_holes, num_threads):
    """All nodes of a tree, some of them twice, in any order: the kernel makes large nodes of small ones."""
    (tree,) = merge_regions(torch.randn(7, 9, 4, generator=torch.Generator().manual_seed(0)))
    starts, counts, order = (array.long() for array in tree.intervals)
    nodes = torch.stack([torch.zeros_like(starts), starts, starts + counts], 1)
    nodes = torch.cat([nodes, nodes[::5]])[torch.randperm(126 - 1 + 25, generator=torch.Generator().manual_seed(1))]
    leaves = torch.arange(63).view(7, 9).repeat_interleave(3, 0).repeat_interleave(4, 1)
    leaves[torch.rand(leaves.shape, generator=torch.Generator().manual_seed(2)) < 0.2] = 5
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    result = mask_from_nodes(leaves, order[None], nodes, fill_holes, "cpp")
    torch.set_num_threads(threads)
    for got, wanted in zip(result, mask_from_nodes(leaves, order[None], nodes, fill_holes, "reference"), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_draw(backend):
    leaves, orders, nodes = random_case(0, 6, 5)
    words, areas, boxes = mask_from_nodes(leaves, orders, nodes[:0], True, backend)
    assert (words.shape, areas.shape, boxes.shape) == ((0, 1), (0,), (0, 4))
    empty = torch.zeros(0, 5, dtype=torch.int64)
    assert mask_from_nodes(empty, orders, nodes, True, backend)[1].tolist() == [0] * len(nodes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fill_holes", [False, True])
def test_opcheck(fill_holes, backend):
    args = (*random_case(1, 9, 8), fill_holes, backend)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.sohes.mask_from_nodes.default, args, test_utils=tests)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_and_export(backend):
    """One graph for every size; torch.export keeps the operator."""
    operator = OPERATORS["mask_from_nodes"]

    class Draw(torch.nn.Module):
        def forward(self, leaves, orders, nodes):
            return operator(leaves, orders, nodes, True, backend)

    compiled = torch.compile(Draw(), fullgraph=True, backend="aot_eager", dynamic=True)
    for case in (random_case(2, 12, 13), random_case(3, 21, 9, num_nodes=5)):
        for got, wanted in zip(compiled(*case), operator(*case, True, backend), strict=True):
            assert torch.equal(got, wanted)
    case = random_case(4, 8, 9)
    exported = torch.export.export(Draw(), case).module()
    for got, wanted in zip(exported(*case), operator(*case, True, backend), strict=True):
        assert torch.equal(got, wanted)


@needs_binary
def test_same_for_any_number_of_threads():
    case = random_case(5, 65, 70, num_nodes=40)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(mask_from_nodes(*case, True, "cpp"))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(got, wanted) for got, wanted in zip(other, results[0], strict=True))


LEAVES, ORDERS, NODES = torch.tensor([[0, 1], [2, 0]]), torch.tensor([[2, 0, 1]]), torch.tensor([[0, 1, 3]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leaves": LEAVES.int()}, r"expected leaves int64 \[H, W\], got torch.int32 \[2, 2\]"),
        ({"orders": ORDERS[0]}, r"expected orders int64 \[T, L\], got torch.int64 \[3\]"),
        ({"nodes": NODES[:, :2]}, r"expected nodes int64 \[N, 3\], got torch.int64 \[1, 2\]"),
        ({"nodes": NODES.to("meta")}, r"expected nodes on cpu, got meta"),
        ({"leaves": LEAVES - 1}, r"expected leaves in \[0, 3\)"),
        ({"leaves": LEAVES + 1}, r"expected leaves in \[0, 3\)"),
        ({"orders": ORDERS + 1}, r"expected orders in \[0, 3\)"),
        ({"orders": ORDERS // 2}, r"expected every row of orders to be a permutation of 3 leaves"),
        ({"nodes": torch.tensor([[1, 0, 1]])}, r"expected trees of nodes in \[0, 1\)"),
        ({"nodes": torch.tensor([[0, 2, 1]])}, r"expected 0 <= start <= stop <= 3 of nodes"),
        ({"nodes": torch.tensor([[0, 2, 4]])}, r"expected 0 <= start <= stop <= 3 of nodes"),
    ],
)
def test_messages(change, message):
    case = {"leaves": LEAVES, "orders": ORDERS, "nodes": NODES}
    with pytest.raises(ValueError, match=f"^mask_from_nodes: {message}$"):
        mask_from_nodes(**(case | change))
