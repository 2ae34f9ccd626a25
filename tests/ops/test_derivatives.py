# SPDX-License-Identifier: Apache-2.0
"""Missing derivatives raise an error instead of returning zeros: second order, forward mode, integer results."""

import pytest
import torch
from ms_deform_attn_cases import SMALL_CASES, make_inputs, make_raw_inputs
from torch.autograd import forward_ad

from sohes.ops import mask_pack_logits, merge_borders, merge_regions, merge_regions_graph, merge_rounds
from sohes.ops import ms_deform_attn as deform
from sohes.ops import ms_deform_attn_fused as fused
from sohes.ops._library import OPERATORS

SECOND = r"^ms_deform_attn(_fused)?_backward: the gradient of ms_deform_attn(_fused)? cannot be differentiated again"
FORWARD_MODE = r"^\w+: there is no forward-mode derivative \(jvp\)$"


def plain(backend="auto"):
    """A function of (value, locations, weights), and its arguments in float64."""
    value, shapes, *points, _ = make_inputs(SMALL_CASES["odd"], torch.float64, seed=5)
    return (lambda v, p, w: deform(v, shapes, p, w, backend)), [value, *points]


def raw(backend="auto"):
    value, shapes, reference_points, *points, _ = make_raw_inputs(SMALL_CASES["odd"], torch.float64, seed=6)
    return (lambda v, o, w: fused(v, shapes, reference_points, o, w, backend)), [value, *points]


CALLS = [pytest.param(call, id=call.__name__) for call in (plain, raw)]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("outer", [0, 1, 2])
@pytest.mark.parametrize("inner", [0, 1, 2])
def test_double_backward(call, backend, inner, outer):
    function, inputs = call(backend)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    (grad,) = torch.autograd.grad(function(*inputs).pow(2).sum(), inputs[inner], create_graph=True)
    with pytest.raises(NotImplementedError, match=SECOND):
        torch.autograd.grad(grad.sum(), inputs[outer], allow_unused=True)


@pytest.mark.parametrize("call", CALLS)
def test_a_graph_that_is_not_needed_costs_nothing(call):
    """Gradients with create_graph equal those without, and other parts of the graph can be differentiated again."""
    function, inputs = call()
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    with_graph = torch.autograd.grad((scale * function(*inputs)).sum(), [*inputs, scale], create_graph=True)
    without = torch.autograd.grad((scale * function(*inputs)).sum(), [*inputs, scale])
    for got, expected in zip(with_graph, without, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_forward_mode(call, which):
    function, inputs = call()
    tangent = torch.ones_like(inputs[which])

    def of_one(tensor):
        return function(*inputs[:which], tensor, *inputs[which + 1 :])

    with pytest.raises(NotImplementedError, match=FORWARD_MODE):
        torch.func.jvp(of_one, (inputs[which],), (tangent,))
    for needs_grad in (False, True):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=FORWARD_MODE):
            of_one(forward_ad.make_dual(inputs[which].clone().requires_grad_(needs_grad), tangent))


def test_forward_mode_of_the_registered_operator():
    value, shapes, locations, weights, _ = make_inputs(SMALL_CASES["tiny"])
    flat = [side for shape in shapes for side in shape]
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=FORWARD_MODE):
        torch.ops.sohes.ms_deform_attn(forward_ad.make_dual(value, value), flat, locations, weights)


def test_reference_points_have_no_gradient():
    value, shapes, reference_points, offsets, logits, _ = make_raw_inputs(SMALL_CASES["odd"])
    reference_points.requires_grad_()
    with pytest.raises(ValueError, match=r"^ms_deform_attn_fused: has no gradient for reference_points, expected them"):
        fused(value, shapes, reference_points, offsets, logits)
    with torch.no_grad():
        fused(value, shapes, reference_points, offsets, logits)


BORDERS = (torch.tensor([2, 1, 4]), torch.tensor([[0, 1], [1, 2]]), torch.tensor([[2.0, 1.0], [1.0, 0.5]]))
TREES = {
    "merge_regions": lambda x: merge_regions(x)[0].similarity,
    "merge_rounds": lambda x: merge_rounds([x])[0].similarity,
    "merge_regions_graph": lambda x: merge_regions_graph(x.flatten(0, 1), torch.tensor([[0, 1], [1, 2]])).similarity,
    "merge_borders": lambda x: merge_borders(x[0, :3], *BORDERS)[1],
}


@pytest.mark.parametrize("name", TREES)
def test_trees_have_no_gradient(name):
    """Features may require a gradient; results do not, and torch raises the error."""
    features = torch.randn(3, 4, 5, requires_grad=True)
    result = TREES[name](features)
    assert not result.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        result.sum().backward()
    with pytest.raises(NotImplementedError, match=FORWARD_MODE):
        torch.func.jvp(TREES[name], (features.detach(),), (torch.ones(3, 4, 5),))


def test_borders_that_require_a_gradient():
    sizes, edges, borders = BORDERS
    tree, shared = merge_borders(torch.randn(3, 5), sizes, edges, borders.clone().requires_grad_())
    assert tree.num_merges(-1e9) == 2
    assert not shared.requires_grad


def test_logits_that_require_a_gradient():
    logits = torch.randn(2, 4, 4, requires_grad=True)
    assert not any(result.requires_grad for result in mask_pack_logits(logits, (8, 8), 0.0))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=FORWARD_MODE):
        mask_pack_logits(forward_ad.make_dual(logits, logits), (8, 8), 0.0)


def test_registered_operators_without_a_backward_refuse_one():
    """Operators below the public functions, which detach; torch alone would warn and return zeros."""
    features = torch.randn(6, 3, requires_grad=True)
    for name in ("merge_regions", "merge_rounds"):
        _, similarity, _ = OPERATORS[name](features, None, None, [2, 3], 0.0, "reference")
        with pytest.raises(NotImplementedError, match=f"^{name}: its results have no gradient$"):
            similarity.sum().backward()
