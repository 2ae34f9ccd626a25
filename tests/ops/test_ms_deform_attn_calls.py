# SPDX-License-Identifier: Apache-2.0
"""Calls of ms_deform_attn: error messages, autocast, choice of backend."""

import re

import pytest
import torch
from ms_deform_attn_cases import Case, make_inputs

from sohes.ops._library import BackendUnavailable
from sohes.ops.ms_deform_attn import BACKWARD, FORWARD, ms_deform_attn

HALF = (torch.float16, torch.bfloat16)

# 9. Errors, word by word.


def replaced(**changes):
    value, shapes, locations, weights, _ = make_inputs(Case(2, ((2, 3), (1, 1)), 4, 2, 8, 3))
    arguments = {
        "value": value,
        "spatial_shapes": shapes,
        "sampling_locations": locations,
        "attention_weights": weights,
    }
    return {**arguments, **{k: change(arguments[k]) for k, change in changes.items()}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": lambda t: t[0]}, "expected value [B, S, K, D], got [7, 2, 8]"),
        (
            {"sampling_locations": lambda t: t[..., 0]},
            "expected sampling_locations [B, Q, K, L, P, 2], got [2, 4, 2, 2, 3]",
        ),
        (
            {"sampling_locations": lambda t: t[:, :, :1]},
            "sampling_locations [2, 4, 1, 2, 3, 2] do not fit value [2, 7, 2, 8] with 2 levels: "
            "expected [2, Q, 2, 2, P, 2]",
        ),
        (
            {"spatial_shapes": lambda s: s[:1]},
            "sampling_locations [2, 4, 2, 2, 3, 2] do not fit value [2, 7, 2, 8] with 1 levels: "
            "expected [2, Q, 2, 1, P, 2]",
        ),
        ({"attention_weights": lambda t: t[:, :3]}, "expected attention_weights [2, 4, 2, 2, 3], got [2, 3, 2, 2, 3]"),
        (
            {"value": lambda t: t[..., :0]},
            "expected at least one head, channel, level and point, got K=2, D=0, L=2, P=3",
        ),
        ({"spatial_shapes": lambda s: [(2, 3), (0, 1)]}, "expected levels of at least 1x1, got [(2, 3), (0, 1)]"),
        (
            {"spatial_shapes": lambda s: [(3, 3), (1, 1)]},
            "spatial_shapes [(3, 3), (1, 1)] hold 10 positions, but value has 7",
        ),
        ({"value": lambda t: t.int()}, "expected value of a floating dtype, got torch.int32"),
        (
            {"sampling_locations": lambda t: t.double()},
            "expected sampling_locations and attention_weights both torch.float32 with a value of torch.float32, "
            "got torch.float64 and torch.float32",
        ),
        (
            {"value": lambda t: t.half(), "attention_weights": lambda t: t.half()},
            "expected sampling_locations and attention_weights both torch.float16 or torch.float32 "
            "with a value of torch.float16, got torch.float32 and torch.float16",
        ),
        ({"value": lambda t: t.to("meta")}, "expected one device, got meta, cpu and cpu"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape('ms_deform_attn: ' + message)}$"):
        ms_deform_attn(**replaced(**changes))


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_keeps_points_in_float32(dtype):
    arguments = replaced()
    leaves = [arguments[k].requires_grad_() for k in ("value", "sampling_locations", "attention_weights")]
    with torch.autocast("cpu", dtype):
        output = ms_deform_attn(**arguments)
    assert output.dtype == dtype
    grads = torch.autograd.grad(output.float().square().sum(), leaves)
    assert [g.dtype for g in grads] == [torch.float32] * 3
    plain = ms_deform_attn(**{**arguments, "value": arguments["value"].to(dtype)})
    assert torch.equal(output, plain)
    with torch.autocast("cpu", dtype):
        double = ms_deform_attn(
            **replaced(
                value=torch.Tensor.double, sampling_locations=torch.Tensor.double, attention_weights=torch.Tensor.double
            )
        )
    assert double.dtype == torch.float64


def test_backend_requests():
    arguments = replaced()
    with pytest.raises(ValueError, match=r"unknown backend 'fast', expected one of: auto, .*reference"):
        ms_deform_attn(**arguments, backend="fast")
    for name, reason in FORWARD.explain(torch.device("cpu"), torch.float32).items():
        if reason is None:
            assert ms_deform_attn(**arguments, backend=name).shape == (2, 4, 16)
        else:
            with pytest.raises(BackendUnavailable, match=re.escape(reason)):
                ms_deform_attn(**arguments, backend=name)
    assert [b.name for b in FORWARD.backends] == [b.name for b in BACKWARD.backends]
