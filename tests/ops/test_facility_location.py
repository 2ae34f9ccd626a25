# SPDX-License-Identifier: Apache-2.0
"""facility_location: the kernel against the reference, by hand, properties, opcheck, compile, error messages."""

import re

import pytest
import torch
from torch.autograd import forward_ad

from sohes.ops import facility_location
from sohes.ops._binary import find_binary
from sohes.ops._library import OPERATORS

needs_binary = pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason)
BACKENDS = ["reference", pytest.param("cpp", marks=needs_binary)]


def random_case(num, density=0.2, seed=0, ties=False):
    """pairs, similarity, weights, factors of `num` items."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand((num, num), generator=generator) < density
    pairs = chosen.triu(1).nonzero()
    similarity, weights, factors = (torch.rand(size, generator=generator) for size in (len(pairs), num, num))
    if ties:
        similarity, weights, factors = (values.mul(3).round().div(3) for values in (similarity, weights, factors))
    return pairs, similarity, weights, factors + 0.5


def gain(j, chosen, similarity, weights, factors):
    """The gain of item j by the definition, from a dense matrix of similarities."""
    covered = similarity[:, chosen].max(1).values if chosen else torch.zeros(len(weights), dtype=torch.float64)
    return float(factors[j] * (weights * (similarity[:, j] - covered).clamp_min(0)).sum())


@needs_binary
@pytest.mark.parametrize("num", [1, 2, 17, 120])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_forward(num, ties, density):
    case = random_case(num, density, ties=ties)
    for count in (0, 1, num // 2, num, num + 5):
        got, expected = (facility_location(*case, count, backend) for backend in ("cpp", "reference"))
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_by_hand(backend):
    """Item 0 has the largest weight; item 1 covers half of 0 and all of itself and of 2."""
    pairs = torch.tensor([[0, 1], [1, 2]])
    case = (pairs, torch.tensor([0.5, 1.0]), torch.tensor([4.0, 2.0, 1.0]), torch.ones(3))
    order, gains = facility_location(*case, 3, backend)
    assert order.tolist() == [0, 1, 2]  # 4 + 2 / 2 = 5 and 4 / 2 + 2 + 1 = 5: of equal ones the first
    assert gains.tolist() == [5, 2, 0]  # 2 / 2 + 1, and all is covered
    order, gains = facility_location(*case[:3], torch.tensor([1.0, 1.5, 1.0]), 2, backend)
    assert order.tolist() == [1, 0]
    assert gains.tolist() == [7.5, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_choose(backend):
    pairs, similarity = torch.zeros((0, 2), dtype=torch.int64), torch.zeros(0)
    for num, count in ((0, 4), (4, 0)):
        order, gains = facility_location(pairs, similarity, torch.ones(num), torch.ones(num), count, backend)
        assert (order.shape, order.dtype, gains.shape, gains.dtype) == ((0,), torch.int64, (0,), torch.float32)
    order, gains = facility_location(pairs, similarity, torch.tensor([1.0, 3.0, 3.0]), torch.ones(3), 3, backend)
    assert (order.tolist(), gains.tolist()) == ([1, 2, 0], [3, 3, 1])


@pytest.mark.parametrize("seed", range(5))
def test_each_choice_has_the_largest_gain(seed):
    pairs, similarity, weights, factors = random_case(25, 0.3, seed)
    order, gains = facility_location(pairs, similarity, weights, factors, 25)
    assert sorted(order.tolist()) == list(range(25))
    assert (gains.diff() <= 0).all()
    dense = torch.eye(25, dtype=torch.float64)
    dense[tuple(pairs.T)] = dense.T[tuple(pairs.T)] = similarity.double()
    for step in range(25):
        chosen = order[:step].tolist()
        values = [gain(j, chosen, dense, weights.double(), factors.double()) for j in range(25) if j not in chosen]
        assert float(gains[step]) == pytest.approx(max(values), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equal_gains_the_smallest_index(backend):
    pairs = torch.tensor([[0, 1], [2, 3]])  # two pairs of duplicates: one of each, then what adds nothing
    order, gains = facility_location(pairs, torch.ones(2), torch.ones(4), torch.ones(4), 4, backend)
    assert (order.tolist(), gains.tolist()) == ([0, 2, 1, 3], [2, 2, 0, 0])
    factors = torch.tensor([1.0, 2.0, 3.0, 4.0])
    order, gains = facility_location(pairs, torch.ones(2), torch.zeros(4), factors, 3, backend)
    assert (order.tolist(), gains.tolist()) == ([0, 1, 2], [0, 0, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gains_add_up_to_what_is_covered(backend):
    pairs, similarity, weights, factors = random_case(50, 0.15, seed=5)
    order, gains = facility_location(pairs, similarity, weights, factors, 50, backend)
    dense = torch.eye(50)
    dense[tuple(pairs.T)] = dense.T[tuple(pairs.T)] = similarity
    added = (gains / factors[order]).cumsum(0)
    for count in (1, 7, 50):
        covered = (weights * dense[:, order[:count]].max(1).values).sum()
        torch.testing.assert_close(added[count - 1], covered, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(added[-1], weights.sum(), rtol=1e-5, atol=1e-6)
    first, first_gains = facility_location(pairs, similarity, weights, factors, 7, backend)
    assert torch.equal(first, order[:7])
    assert torch.equal(first_gains, gains[:7])


@needs_binary
def test_weights_of_any_magnitude():
    """What differs in the last bit of a sum decides, the same in every backend, and gains never increase."""
    pairs, similarity, _, factors = random_case(40, 0.4, seed=9)
    weights = 10.0 ** torch.linspace(-30, 30, 40)
    order, gains = facility_location(pairs, similarity, weights, factors, 40, "cpp")
    expected, expected_gains = facility_location(pairs, similarity, weights, factors, 40, "reference")
    assert torch.equal(order, expected)
    assert torch.equal(gains, expected_gains)
    assert (gains.diff() <= 0).all()


def test_pairs_in_any_order():
    pairs, similarity, weights, factors = random_case(30)
    shuffled = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1))
    expected = facility_location(pairs, similarity, weights, factors, 10)
    got = facility_location(pairs[shuffled], similarity[shuffled], weights, factors, 10)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    args = (*random_case(9), 4, backend)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.sohes.facility_location.default, args, test_utils=tests)


class Chosen(torch.nn.Module):
    def forward(self, *tensors):
        order, gains = OPERATORS["facility_location"](*tensors, 5, "auto")
        return order * 2, gains * 2


def test_compile_and_export():
    compiled = torch.compile(Chosen(), fullgraph=True, backend="aot_eager")
    for num in (8, 3):  # more and fewer items than are asked for
        case = random_case(num, 0.5, seed=1)
        expected = Chosen()(*case)
        for run in (compiled, torch.export.export(Chosen(), case).module()):
            assert all(torch.equal(*both) for both in zip(run(*case), expected, strict=True))


def test_no_gradient():
    pairs, similarity, weights, factors = random_case(6, 0.5, seed=2)
    _, gains = facility_location(pairs, similarity.requires_grad_(), weights.requires_grad_(), factors, 3)
    assert not gains.requires_grad
    _, gains = OPERATORS["facility_location"](pairs, similarity, weights, factors, 3, "reference")
    with pytest.raises(NotImplementedError, match=r"^facility_location: its results have no gradient$"):
        gains.sum().backward()
    weights = weights.detach()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"^facility_location: there is no forward"):
        facility_location(pairs, similarity, forward_ad.make_dual(weights, weights), factors, 3)


PAIRS = torch.tensor([[0, 1], [0, 2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: PAIRS.int()}, "expected pairs int64 [E, 2], got torch.int32 [2, 2]"),
        ({0: PAIRS.flip(1)}, "expected pairs i < j in [0, 3)"),
        ({0: PAIRS + 1}, "expected pairs i < j in [0, 3)"),
        ({0: PAIRS[[0, 0]]}, "expected each pair once"),
        ({1: torch.ones(3)}, "expected similarity float32 [2], got torch.float32 [3]"),
        ({1: torch.tensor([0.5, 1.5])}, "expected similarity in [0, 1]"),
        ({1: torch.tensor([0.5, float("nan")])}, "expected similarity in [0, 1]"),
        ({2: torch.ones(3).double()}, "expected weights float32 [N], got torch.float64 [3]"),
        ({2: torch.ones(3, device="meta")}, "expected one device, got cpu and meta"),
        ({2: torch.tensor([1.0, -1.0, 1.0])}, "expected finite weights >= 0"),
        ({2: torch.tensor([1.0, float("inf"), 1.0])}, "expected finite weights >= 0"),
        ({3: torch.ones(2)}, "expected factors float32 [3], got torch.float32 [2]"),
        ({3: torch.zeros(3)}, "expected finite factors > 0"),
        ({3: torch.tensor([1.0, float("inf"), 1.0])}, "expected finite factors > 0"),
        ({4: -1}, "expected num >= 0, got -1"),
    ],
)
def test_messages(change, message):
    args = [PAIRS, torch.ones(2), torch.ones(3), torch.ones(3), 2]
    for index, value in change.items():
        args[index] = value
    with pytest.raises(ValueError, match=re.escape(f"facility_location: {message}")):
        facility_location(*args)
