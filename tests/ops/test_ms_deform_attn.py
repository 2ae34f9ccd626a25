# SPDX-License-Identifier: Apache-2.0
"""Results of ms_deform_attn; messages, autocast and choice of backend are tested in test_ms_deform_attn_calls.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from ms_deform_attn_cases import CASES, SMALL_CASES, Case, make_inputs, pure_pytorch
from torch.library import opcheck

from sohes.ops._fixed_point import read_sums, units_per_one
from sohes.ops.ms_deform_attn import FORWARD, ms_deform_attn

BACKENDS = ["reference", "cpp", "cuda", "triton"]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # slow: only the small cases then
HALF = (torch.float16, torch.bfloat16)
DTYPES = [torch.float32, torch.float64, *HALF]
# (value, points)
DTYPE_PAIRS = [(d, d) for d in DTYPES] + [(d, torch.float32) for d in HALF]


def device_for(backend, dtype=torch.float32):
    """A device on which the backend runs; skips the test with the reason if there is none."""
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    reasons = [FORWARD.explain(device, dtype)[backend] for device in devices]
    for device, reason in zip(devices, reasons, strict=True):
        if reason is None:
            return device
    pytest.skip(reasons[-1])


def results(inputs, backend="auto"):
    """The output and the gradients of value, sampling_locations and attention_weights."""
    value, shapes, locations, weights, grad_output = inputs
    leaves = [t.detach().requires_grad_() for t in (value, locations, weights)]
    output = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2], backend=backend)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def exact(inputs):
    """The reference in float64 for the same numbers."""
    value, shapes, *rest = inputs
    value, locations, weights, grad_output = (t.double().cpu() for t in (value, *rest))
    return results((value, shapes, locations, weights, grad_output), "reference")


def error(actual, expected):
    """Largest deviation relative to the largest number expected."""
    if expected.numel() == 0:
        return 0.0
    return ((actual.cpu().double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


# 1. Forward and 4. backward on every backend, dtype and case.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}".replace("torch.", ""))
@pytest.mark.parametrize("name", SMALL_CASES if INTERPRETED else CASES)
def test_results(backend, dtypes, name):
    inputs = make_inputs(CASES[name], *dtypes, device=device_for(backend, dtypes[0]))
    expected = exact(inputs)
    reference = results(inputs, "reference")
    for actual, plain, true in zip(results(inputs, backend), reference, expected, strict=True):
        assert actual.shape == true.shape
        assert actual.dtype == plain.dtype
        assert actual.is_contiguous()
        # float32: sums of a few dozen products of order one. Half types: one rounding at the end, like the reference.
        limit = {torch.float32: 1e-5, torch.float64: 1e-13}.get(actual.dtype, 2 * error(plain, true))
        if INTERPRETED and backend == "triton" and actual.dtype == torch.bfloat16:
            limit = 2**-7  # Triton's interpreter cuts bfloat16 off instead of rounding it
        assert error(actual, true) <= limit


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 7, 64, 65, 154])
def test_any_batch(batch):
    inputs = make_inputs(Case(batch, ((3, 2), (1, 1)), 2, 2, 4, 2))
    for actual, true in zip(results(inputs), exact(inputs), strict=True):
        assert error(actual, true) <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_pure_form_of_models(backend):
    value, shapes, locations, weights, grad_output = inputs = make_inputs(CASES["tiny"], device=device_for(backend))
    leaves = [t.detach().requires_grad_() for t in (value, locations, weights)]
    output = pure_pytorch(leaves[0], shapes, leaves[1], leaves[2])
    expected = [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]
    for actual, plain in zip(results(inputs, backend), expected, strict=True):
        torch.testing.assert_close(actual, plain, rtol=1e-5, atol=1e-5)


def test_equals_transformers_with_copied_weights():
    modeling = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    torch.manual_seed(0)
    theirs = modeling.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(32, 4, n_levels=2, n_points=3)
    torch.nn.init.normal_(theirs.sampling_offsets.weight, std=0.3)
    shapes = [(5, 4), (3, 2)]
    hidden = torch.randn(2, 26, 32)
    reference_points = torch.rand(2, 26, 2, 2)
    expected, _ = theirs(
        hidden, encoder_hidden_states=hidden, reference_points=reference_points, spatial_shapes_list=shapes
    )
    offsets = theirs.sampling_offsets(hidden).view(2, 26, 4, 2, 3, 2)
    locations = reference_points[:, :, None, :, None] + offsets / torch.tensor([(w, h) for h, w in shapes])[:, None]
    weights = theirs.attention_weights(hidden).view(2, 26, 4, 6).softmax(-1).view(2, 26, 4, 2, 3)
    output = ms_deform_attn(theirs.value_proj(hidden).view(2, 26, 4, 8), shapes, locations, weights)
    torch.testing.assert_close(theirs.output_proj(output), expected, rtol=1e-5, atol=1e-5)


# 2. Pinned cases, worked out by hand. One map [[1, 2], [3, 4]]; its pixel centres lie at 0.25 and 0.75.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((0.25, 0.25), 1.0),
        ((0.75, 0.25), 2.0),
        ((0.25, 0.75), 3.0),
        ((0.5, 0.5), 2.5),
        ((0.5, 0.25), 1.5),
        ((0.0, 0.25), 0.5),  # on the edge: half of the pixel, half of the zeros beside it
        ((0.0, 0.0), 0.25),  # in the corner of the map
        ((1.0, 1.0), 1.0),
        ((1.0, 0.5), 1.5),
        ((-0.25, 0.25), 0.0),  # half a pixel outside
        ((1.25, 0.75), 0.0),
        ((-7.0, 0.5), 0.0),
        ((1e30, 0.5), 0.0),
        ((0.5, -1e30), 0.0),
        ((float("inf"), 0.5), 0.0),
        ((float("nan"), 0.5), 0.0),
        ((float("nan"), float("-inf")), 0.0),
    ],
)
def test_pinned_samples(backend, point, expected):
    device = device_for(backend)
    value = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device).view(1, 4, 1, 1)
    locations = torch.tensor(point, device=device).view(1, 1, 1, 1, 1, 2)
    output = ms_deform_attn(value, [(2, 2)], locations, torch.ones(1, 1, 1, 1, 1, device=device), backend)
    assert output.tolist() == [[[expected]]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pinned_gradients(backend):
    device = device_for(backend)
    value = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device).view(1, 4, 1, 1)
    locations = torch.tensor([0.375, 0.625], device=device).view(1, 1, 1, 1, 1, 2)  # a quarter right, three down
    weights = torch.full((1, 1, 1, 1, 1), 2.0, device=device)
    grad_output = torch.full((1, 1, 1), 3.0, device=device)
    output, grad_value, grad_locations, grad_weights = results(
        (value, [(2, 2)], locations, weights, grad_output), backend
    )
    assert output.item() == 2 * 2.75
    assert grad_value.flatten().tolist() == [6 * 0.1875, 6 * 0.0625, 6 * 0.5625, 6 * 0.1875]
    assert grad_locations.flatten().tolist() == [6 * 2 * 1.0, 6 * 2 * 2.0]  # 1 a pixel to the right, 2 a pixel down
    assert grad_weights.item() == 3 * 2.75


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_outside_have_no_gradient(backend):
    inputs = make_inputs(CASES["tiny"], device=device_for(backend))
    inputs[2][:] = (
        torch.tensor([float("nan"), -5.0, float("inf"), 7.0, 1e30]).repeat(1000)[: inputs[2].numel()].view_as(inputs[2])
    )
    for result in results(inputs, backend):
        assert torch.equal(result, torch.zeros_like(result))


# 3. Properties.


def test_constant_maps_average_to_the_constant():
    value, shapes, locations, weights, _ = make_inputs(CASES["71 channels"])
    inside = locations.clamp(0.5, 0.5)  # the middle is surrounded by the map, or is its only pixel
    output = ms_deform_attn(torch.full_like(value, 3.0), shapes, inside, weights)
    torch.testing.assert_close(output, torch.full_like(output, 3.0))


def test_linear_in_value_and_weights():
    value, shapes, locations, weights, _ = make_inputs(CASES["tiny"], torch.float64)
    other_value, _, _, other_weights, _ = make_inputs(CASES["tiny"], torch.float64, seed=1)

    def run(v, w):
        return ms_deform_attn(v, shapes, locations, w)

    torch.testing.assert_close(
        run(value + 2 * other_value, weights), run(value, weights) + 2 * run(other_value, weights)
    )
    torch.testing.assert_close(run(value, weights - other_weights), run(value, weights) - run(value, other_weights))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    device = device_for(backend)
    value, shapes, locations, weights, grad_output = inputs = make_inputs(CASES["odd"], device=device)
    strided = (
        value.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        shapes,
        torch.stack((locations, locations), -1)[..., 0],
        weights.transpose(1, 4).contiguous().transpose(1, 4),
        grad_output.transpose(0, 1).contiguous().transpose(0, 1),
    )
    assert not any(t.is_contiguous() for t in strided if isinstance(t, torch.Tensor))
    for actual, expected in zip(results(strided, backend), results(inputs, backend), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    expanded = (value[:1].expand(2, -1, -1, -1), shapes, locations[:1].expand_as(locations), weights, grad_output)
    copied = tuple(
        t.clone(memory_format=torch.contiguous_format) if isinstance(t, torch.Tensor) else t for t in expanded
    )
    for actual, expected in zip(results(expanded, backend), results(copied, backend), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_more_elements_than_32_bits_count():
    device_for("cpp")
    height, width = 5793, 5800
    try:
        value = torch.zeros(1, height * width, 2, 32)  # 8.6 GB of addresses; memory only for the pages that are touched
    except RuntimeError as error:
        pytest.skip(f"no room for 2**31 elements: {error}")
    assert value.numel() > 2**31
    value[0, -1, 1] = 7
    last = torch.tensor([1 - 0.5 / width, 1 - 0.5 / height]).expand(1, 1, 2, 1, 1, 2)
    output = ms_deform_attn(value, [(height, width)], last, torch.ones(1, 1, 2, 1, 1), "cpp")
    # float32 places a point in a map of this size to about a thousandth of a pixel.
    torch.testing.assert_close(output[0, 0], torch.tensor([0.0, 7.0]).repeat_interleave(32), rtol=5e-3, atol=0)


# 5. Gradients against finite differences, away from the kinks of bilinear interpolation.


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("channels", [1, 30, 71])
def test_gradcheck(backend, channels):
    device_for(backend, torch.float64)
    shapes = [(2, 3), (1, 1)]
    value, _, _, weights, _ = make_inputs(Case(1, tuple(shapes), 1, 2, channels, 2), torch.float64)
    # Fractions of a pixel between 0.1 and 0.9, from one pixel outside to one outside on the other side.
    generator = torch.Generator().manual_seed(3)
    cells = torch.randint(-1, 3, (1, 1, 2, 2, 2, 2), generator=generator)
    fractions = 0.1 + 0.8 * torch.rand(cells.shape, generator=generator, dtype=torch.float64)
    locations = (cells + fractions + 0.5) / torch.tensor([[3, 2], [1, 1]])[:, None]
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn(v, shapes, x, w, backend), leaves, fast_mode=channels > 1
    )


# 6. opcheck.


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, dtype):
    value, shapes, locations, weights, grad_output = make_inputs(CASES["tiny"], dtype, torch.float32)
    flat = [side for shape in shapes for side in shape]
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    opcheck(FORWARD_OP, (leaves[0], flat, leaves[1], leaves[2], backend))
    tests = ("test_schema", "test_faketensor")  # the backward has no derivative of its own
    detached = [t.detach() for t in leaves]
    opcheck(BACKWARD_OP, (grad_output, detached[0], flat, detached[1], detached[2], backend), test_utils=tests)


FORWARD_OP = torch.ops.sohes.ms_deform_attn.default
BACKWARD_OP = torch.ops.sohes.ms_deform_attn_backward.default


# 7. Compile and export; a second size compiles nothing new.


def attend(feature_maps, locations, weights):
    shapes = [(x.shape[2], x.shape[3]) for x in feature_maps]
    value = torch.cat([x.flatten(2).transpose(1, 2) for x in feature_maps], 1).unflatten(2, (2, -1))
    return ms_deform_attn(value, shapes, locations, weights)


class Attend(torch.nn.Module):
    def forward(self, first, second, locations, weights):
        return attend([first, second], locations, weights)


def map_inputs(batch, sizes, queries):
    case = Case(batch, tuple(sizes), queries, 2, 4, 3)
    _, _, locations, weights, _ = make_inputs(case)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(batch, 8, h, w, generator=generator) for h, w in sizes]
    return (*maps, locations, weights)


def test_compile_with_gradients_and_without_recompiling():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(Attend(), fullgraph=True, dynamic=True, backend=counter)
    # All sizes differ: equal ones would be taken for one variable.
    for sizes, queries in [([(7, 5), (4, 9)], 10), ([(8, 11), (5, 13)], 14)]:
        inputs = [t.requires_grad_() for t in map_inputs(2, sizes, queries)]
        expected = Attend()(*inputs)
        actual = compiled(*inputs)
        torch.testing.assert_close(actual, expected)
        grads = zip(
            torch.autograd.grad(actual.square().sum(), inputs),
            torch.autograd.grad(expected.square().sum(), inputs),
            strict=True,
        )
        for ours, eager in grads:
            torch.testing.assert_close(ours, eager)
    assert counter.frame_count == 1


def test_export_with_free_sizes():
    dim = torch.export.Dim.AUTO
    maps = {0: dim, 2: dim, 3: dim}
    program = torch.export.export(
        Attend(), map_inputs(2, [(7, 5), (4, 9)], 10), dynamic_shapes=(maps, maps, {0: dim, 1: dim}, {0: dim, 1: dim})
    )
    inputs = map_inputs(3, [(8, 11), (5, 13)], 14)
    torch.testing.assert_close(program.module()(*inputs), Attend()(*inputs))


# 8. Determinism for any number of threads.


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("case", [Case(1, ((24, 24), (12, 12)), 900, 2, 32, 4), Case(1, ((64, 64),), 900, 1, 65, 4)])
def test_bitwise_repeatable(backend, case):
    device_for(backend)
    # Large enough for several threads; few heads, so that forward also cuts the queries.
    inputs = make_inputs(case)
    threads = torch.get_num_threads()
    runs = []
    for num_threads in (1, 3, 3, 8):
        torch.set_num_threads(num_threads)
        runs.append(results(inputs, backend))
    torch.set_num_threads(threads)
    others = runs[1:] if backend == "cpp" else runs[1:3]  # grid_sample may sum in another order on other threads
    first = runs[0] if backend == "cpp" else runs[1]
    for run in others:
        assert all(torch.equal(a, b) for a, b in zip(run, first, strict=True))


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_repeatable_where_asked_for(backend, dtype):
    inputs = make_inputs(CASES["tiny" if INTERPRETED else "71 channels"], dtype, device=device_for(backend))
    torch.use_deterministic_algorithms(True)
    first, second = results(inputs, backend), results(inputs, backend)
    torch.use_deterministic_algorithms(False)
    for a, b, plain, true in zip(first, second, results(inputs, "reference"), exact(inputs), strict=True):
        assert torch.equal(a, b)
        assert error(a, true) <= (1e-5 if dtype == torch.float32 else 2 * error(plain, true))


def test_fixed_point_sums():
    numbers = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float() * 1e-20
    units = units_per_one(numbers.abs().amax(), len(numbers))
    counted = (numbers.double() * units).round().long()
    total = read_sums(counted.sum(), units, torch.float64)
    assert total.item() == pytest.approx(numbers.double().sum().item(), rel=1e-14)
    assert counted.abs().max() * 1000 < 2**62
    assert units_per_one(torch.tensor(0.0), 7).item() == 2.0**62
    assert units_per_one(torch.tensor(float("inf")), 7).isnan()


@pytest.mark.skipif(INTERPRETED, reason="already under the interpreter")
def test_kernel_under_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton", __file__]
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout
