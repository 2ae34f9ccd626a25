# SPDX-License-Identifier: Apache-2.0
"""ms_deform_attn from offsets and logits: equal to the arithmetic in PyTorch around ms_deform_attn."""

import re

import pytest
import torch
import torch._dynamo.testing
from ms_deform_attn_cases import CASES, SMALL_CASES, Case, make_raw_inputs
from test_ms_deform_attn import BACKENDS, DTYPE_PAIRS, HALF, INTERPRETED, device_for, error
from torch.library import opcheck

from sohes.ops.ms_deform_attn import ms_deform_attn
from sohes.ops.ms_deform_attn_fused import ms_deform_attn_fused
from sohes.ops.reference.ms_deform_attn import place_points

FEW_CASES = ["71 channels", "128 channels", "many points", "large maps"]


def results(inputs, backend="auto"):
    """The output and the gradients of value, sampling_offsets and attention_logits."""
    value, shapes, reference_points, offsets, logits, grad_output = inputs
    leaves = [t.detach().requires_grad_() for t in (value, offsets, logits)]
    output = ms_deform_attn_fused(leaves[0], shapes, reference_points, *leaves[1:], backend=backend)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def exact(inputs):
    """The reference in float64 for the same numbers."""
    return results([t.double().cpu() if isinstance(t, torch.Tensor) else t for t in inputs], "reference")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}".replace("torch.", ""))
@pytest.mark.parametrize("name", SMALL_CASES if INTERPRETED else [*SMALL_CASES, *FEW_CASES])
def test_results(backend, dtypes, name):
    inputs = make_raw_inputs(CASES[name], *dtypes, device=device_for(backend, dtypes[0]))
    expected, reference = exact(inputs), results(inputs, "reference")
    for actual, plain, true in zip(results(inputs, backend), reference, expected, strict=True):
        assert actual.shape == true.shape
        assert actual.dtype == plain.dtype
        assert actual.is_contiguous()
        # As in test_ms_deform_attn.py; a few roundings more for the softmax.
        limit = {torch.float32: 2e-5, torch.float64: 1e-12}.get(actual.dtype, 2 * error(plain, true))
        if INTERPRETED and backend == "triton" and actual.dtype == torch.bfloat16:
            limit = 2**-7  # Triton's interpreter cuts bfloat16 off instead of rounding it
        assert error(actual, true) <= limit


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_autograd_through_pytorch(backend):
    inputs = make_raw_inputs(CASES["odd"], torch.float64, device=device_for(backend, torch.float64))
    value, shapes, reference_points, offsets, logits, grad_output = inputs
    leaves = [t.detach().requires_grad_() for t in (value, offsets, logits)]
    flat = [side for shape in shapes for side in shape]
    locations, weights = place_points(flat, reference_points, *leaves[1:])
    output = ms_deform_attn(leaves[0], shapes, locations, weights, "reference")
    expected = [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]
    for actual, plain in zip(results(inputs, backend), expected, strict=True):
        torch.testing.assert_close(actual, plain, rtol=1e-10, atol=1e-12)


def test_pinned_sample():
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)  # [[1, 2], [3, 4]]
    offsets = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]).view(1, 1, 1, 1, 4, 2)
    logits = torch.tensor([0.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
    reference_points = torch.tensor([[0.25, 0.25]])  # the centre of the first pixel
    output = ms_deform_attn_fused(value, [(2, 2)], reference_points, offsets, logits)
    assert output.item() == (1 + 2 + 3 + 0) / 4  # itself, one to the right, one down, far outside


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_any_size(backend):
    value, shapes, reference_points, offsets, logits, grad_output = make_raw_inputs(
        CASES["tiny"], device=device_for(backend)
    )
    logits = logits * 1e3 + torch.where(logits > 0, 1e30, -1e30)
    inputs = (value, shapes, reference_points, offsets, logits, grad_output)
    for actual, true in zip(results(inputs, backend), exact(inputs), strict=True):
        assert actual.isfinite().all()
        assert error(actual, true) <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_logit_is_not_hidden(backend, bad):
    value, shapes, reference_points, offsets, logits, _ = make_raw_inputs(CASES["tiny"], device=device_for(backend))
    logits[0, 1, 1, 2, 0] = bad
    output = ms_deform_attn_fused(value, shapes, reference_points, offsets.zero_(), logits, backend)
    is_bad = output.isnan().view(2, 2, 8)  # [Q, K, D]
    assert is_bad[1, 1].all()
    assert is_bad.sum() == 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_offsets_of_any_size(backend):
    value, shapes, reference_points, offsets, logits, grad_output = make_raw_inputs(
        CASES["tiny"], device=device_for(backend)
    )
    far = torch.tensor([1e30, -1e30, float("inf"), float("nan"), 1e6])
    offsets = far.repeat(100)[: offsets.numel()].view(offsets.shape).to(offsets.device)
    for result in results((value, shapes, reference_points, offsets, logits, grad_output), backend):
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    inputs = make_raw_inputs(CASES["odd"], device=device_for(backend))
    value, shapes, reference_points, offsets, logits, grad_output = inputs
    strided = (
        value.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        shapes,
        torch.stack((reference_points, reference_points), -1)[..., 0],
        torch.stack((offsets, offsets), -1)[..., 0],
        logits.transpose(1, 4).contiguous().transpose(1, 4),
        grad_output.transpose(0, 1).contiguous().transpose(0, 1),
    )
    assert not any(t.is_contiguous() for t in strided if isinstance(t, torch.Tensor))
    for actual, expected in zip(results(strided, backend), results(inputs, backend), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("channels", [1, 30, 71])
def test_gradcheck(backend, channels):
    device_for(backend, torch.float64)
    shapes = [(2, 3), (1, 1)]
    value, _, _, _, logits, _ = make_raw_inputs(Case(1, tuple(shapes), 1, 2, channels, 2), torch.float64)
    # The reference point is the corner of a pixel of the first map, the centre of that of the second: with fractions
    # between 0.1 and 0.4 no point comes near a kink.
    reference_points = torch.tensor([[1 / 3, 0.5]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    cells = torch.randint(-1, 2, (1, 1, 2, 2, 2, 2), generator=generator)
    offsets = cells + 0.1 + 0.05 * torch.rand(cells.shape, generator=generator, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (value, offsets, logits)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn_fused(v, shapes, reference_points, x, w, backend),
        leaves,
        fast_mode=channels > 1,
    )


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, dtype):
    value, shapes, *points, grad_output = make_raw_inputs(CASES["tiny"], dtype, torch.float32)
    flat = [side for shape in shapes for side in shape]
    leaves = [value.requires_grad_(), points[0], points[1].requires_grad_(), points[2].requires_grad_()]
    opcheck(torch.ops.sohes.ms_deform_attn_fused.default, (leaves[0], flat, *leaves[1:], backend))
    tests = ("test_schema", "test_faketensor")  # the backward has no derivative of its own
    value, *points = [t.detach() for t in leaves]
    arguments = (grad_output, value, flat, *points, backend)
    opcheck(torch.ops.sohes.ms_deform_attn_fused_backward.default, arguments, test_utils=tests)


class Attend(torch.nn.Module):
    def forward(self, first, second, reference_points, offsets, logits):
        shapes = [(x.shape[2], x.shape[3]) for x in (first, second)]
        value = torch.cat([x.flatten(2).transpose(1, 2) for x in (first, second)], 1).unflatten(2, (2, -1))
        return ms_deform_attn_fused(value, shapes, reference_points, offsets, logits)


def map_inputs(batch, sizes, queries):
    _, _, *points, _ = make_raw_inputs(Case(batch, tuple(sizes), queries, 2, 4, 3))
    generator = torch.Generator().manual_seed(0)
    return (*(torch.randn(batch, 8, h, w, generator=generator) for h, w in sizes), *points)


def test_compile_with_gradients_and_without_recompiling():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(Attend(), fullgraph=True, dynamic=True, backend=counter)
    for sizes, queries in [([(7, 5), (4, 9)], 10), ([(8, 11), (5, 13)], 14)]:
        inputs = map_inputs(2, sizes, queries)
        leaves = [t.requires_grad_() for i, t in enumerate(inputs) if i != 2]
        expected, actual = Attend()(*inputs), compiled(*inputs)
        torch.testing.assert_close(actual, expected)
        gradients = [torch.autograd.grad(x.square().sum(), leaves) for x in (actual, expected)]
        for ours, eager in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, eager)
    assert counter.frame_count == 1


def test_export_with_free_sizes():
    dim = torch.export.Dim.AUTO
    maps, points = {0: dim, 2: dim, 3: dim}, {0: dim, 1: dim}
    program = torch.export.export(
        Attend(), map_inputs(2, [(7, 5), (4, 9)], 10), dynamic_shapes=(maps, maps, {0: dim}, points, points)
    )
    inputs = map_inputs(3, [(8, 11), (5, 13)], 14)
    torch.testing.assert_close(program.module()(*inputs), Attend()(*inputs))


def test_bitwise_repeatable():
    device_for("cpp")
    inputs = make_raw_inputs(Case(1, ((24, 24), (12, 12)), 900, 2, 32, 4))
    threads = torch.get_num_threads()
    runs = []
    for num_threads in (1, 3, 8):
        torch.set_num_threads(num_threads)
        runs.append(results(inputs, "cpp"))
    torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("dtype", HALF)
def test_autocast(dtype):
    value, shapes, reference_points, offsets, logits, _ = make_raw_inputs(CASES["tiny"])
    with torch.autocast("cpu", dtype):
        mixed = ms_deform_attn_fused(value, shapes, reference_points, offsets, logits)
        half = ms_deform_attn_fused(value, shapes, reference_points, offsets.to(dtype), logits.to(dtype))
        uneven = ms_deform_attn_fused(value, shapes, reference_points, offsets, logits.to(dtype))
        double = ms_deform_attn_fused(value.double(), shapes, reference_points, offsets.double(), logits.double())
    low = value.to(dtype)
    assert torch.equal(mixed, ms_deform_attn_fused(low, shapes, reference_points, offsets, logits))
    assert torch.equal(half, ms_deform_attn_fused(low, shapes, reference_points, offsets.to(dtype), logits.to(dtype)))
    assert torch.equal(uneven, ms_deform_attn_fused(low, shapes, reference_points, offsets, logits.to(dtype).float()))
    assert mixed.dtype == half.dtype == uneven.dtype == dtype
    assert double.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": lambda t: t[..., 0]}, "expected sampling_offsets [B, Q, K, L, P, 2], got [1, 2, 2, 3, 1]"),
        ({"logits": lambda t: t[:, :1]}, "expected attention_logits [1, 2, 2, 3, 1], got [1, 1, 2, 3, 1]"),
        ({"reference": lambda t: t[:1]}, "expected reference_points [2, 2] on cpu, got [1, 2] on cpu"),
        (
            {"logits": lambda t: t.double()},
            "expected sampling_offsets and attention_logits both torch.float32 with a value of torch.float32, "
            "got torch.float32 and torch.float64",
        ),
    ],
)
def test_errors(changes, message):
    value, shapes, reference, offsets, logits, _ = make_raw_inputs(CASES["tiny"])
    arguments = {"reference": reference, "offsets": offsets, "logits": logits}
    arguments |= {name: change(arguments[name]) for name, change in changes.items()}
    with pytest.raises(ValueError, match=f"^{re.escape('ms_deform_attn_fused: ' + message)}$"):
        ms_deform_attn_fused(value, shapes, *arguments.values())
