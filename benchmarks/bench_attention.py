# SPDX-License-Identifier: Apache-2.0
"""Time of ViT attention over photos and crops of mixed sizes: SDPA in buckets, padded, and packed without padding.

    pytest -m gpu benchmarks/bench_attention.py

Heads and channels are those of ViT-B/8. `photos`: 16 photos of about 480 x 480 px in four aspect ratios, as in
phase 1. `crops`: 64 crops of about 256 x 256 px, nearly all of different shapes, as in its local step. `buckets` calls
PyTorch's scaled_dot_product_attention once for each shape of the patch grid; `padded` once, on all sequences padded to
the longest, with a mask; `varlen` calls PyTorch's own attention over packed sequences once (half types, torch >= 2.10);
`xformers` calls that package once, on one sequence with a block-diagonal mask. All give equal results. extra_info:
TFLOP/s (padding not counted), and the ratio to `buckets`, measured just before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HEADS, CHANNELS = 12, 64  # of ViT-B
MEDIANS: dict[tuple[str, str], float] = {}  # of this run, by case and dtype


def photo_lengths() -> list[int]:
    """Patches of 16 photos, four of each aspect ratio, at patches of 8 px."""
    grids = [(60, 60), (52, 69), (69, 52), (49, 73)]
    return [h * w for h, w in grids for _ in range(4)]


def crop_lengths() -> list[int]:
    """Patches of 64 crops whose aspect ratios spread from 1:2 to 2:1."""
    sides = torch.exp(torch.linspace(-0.35, 0.35, 64))
    return [int((32 / side).round() * (32 * side).round()) for side in sides]


CASES = {"photos": photo_lengths(), "crops": crop_lengths()}


def make_inputs(lengths: list[int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Query, key and value, [sum(lengths), heads, channels] each."""
    generator = torch.Generator().manual_seed(0)
    shape = (sum(lengths), HEADS, CHANNELS)
    return [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]


def buckets(lengths: list[int]) -> Callable[..., Tensor]:
    """One call of SDPA for each length; the positions of its sequences are computed once."""
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    groups: dict[int, list[int]] = {}
    for start, length in zip(starts, lengths, strict=False):
        groups.setdefault(length, []).append(start)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        for length, places in groups.items():
            q, k, v = (
                torch.stack([x[p : p + length] for p in places]).transpose(1, 2) for x in (query, key, value)
            )  # [b, heads, length, channels]
            for place, one in zip(places, scaled_dot_product_attention(q, k, v).transpose(1, 2), strict=True):
                output[place : place + length] = one
        return output

    return run


def padded(lengths: list[int]) -> Callable[..., Tensor]:
    """One call of SDPA, all sequences padded to the longest."""
    longest, total = max(lengths), sum(lengths)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        device = query.device
        inside = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]  # [B, longest]
        wide = []
        for x in (query, key, value):
            sequences = x.new_zeros(len(lengths), longest, HEADS, CHANNELS)
            sequences[inside] = x
            wide.append(sequences.transpose(1, 2))
        output = scaled_dot_product_attention(*wide, attn_mask=inside[:, None, None])
        return output.transpose(1, 2)[inside].reshape(total, HEADS, CHANNELS)

    return run


def varlen(lengths: list[int]) -> Callable[..., Tensor]:
    """One call of torch.nn.attention.varlen on the packed sequence."""
    from torch.nn.attention.varlen import varlen_attn

    starts = torch.tensor([0, *lengths]).cumsum(0).int().cuda()
    longest = max(lengths)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return varlen_attn(query, key, value, starts, starts, longest, longest)

    return run


def xformers(lengths: list[int]) -> Callable[..., Tensor]:
    """One call of xformers on the packed sequence."""
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    bias = BlockDiagonalMask.from_seqlens(lengths)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return memory_efficient_attention(query[None], key[None], value[None], attn_bias=bias)[0]

    return run


FORMS = {"buckets": buckets, "padded": padded, "varlen": varlen, "xformers": xformers}


def why_not(form: str, dtype: torch.dtype) -> str | None:
    """The reason why this form cannot run on a GPU here, or None."""
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    if form == "varlen" and (dtype == torch.float32 or importlib.util.find_spec("torch.nn.attention.varlen") is None):
        return f"torch {torch.__version__} has no varlen attention in {dtype}"
    if form == "xformers":
        if importlib.util.find_spec("xformers") is None:
            return "xformers is not installed"
        from xformers import _cpp_lib

        built = _cpp_lib._build_metadata
        if _cpp_lib._cpp_library_load_exception is not None:
            return f"xformers' kernels do not load: they are made for {getattr(built, 'build_env', built)}"
    return None


@pytest.mark.parametrize("case", CASES)
def test_padded_equals_buckets(case):
    """The rows below compare equal work. On the CPU, on a few short sequences."""
    lengths = [length % 23 + 1 for length in CASES[case][:7]]
    inputs = make_inputs(lengths, torch.float32, torch.device("cpu"))
    torch.testing.assert_close(padded(lengths)(*inputs), buckets(lengths)(*inputs))


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_mixed_sizes(benchmark, case, dtype, form):
    reason = why_not(form, dtype)
    if reason is not None:
        pytest.skip(reason)
    lengths = CASES[case]
    inputs = make_inputs(lengths, dtype, torch.device("cuda"))
    call = FORMS[form](lengths)
    output = call(*inputs)
    if form != "buckets":
        # Half types: sums in another order differ by a few units in the last place of values near 1.
        tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
        torch.testing.assert_close(output, buckets(lengths)(*inputs), rtol=tolerance, atol=tolerance)
    benchmark.group = f"attention of {len(lengths)} {case} {dtype}"
    benchmark.pedantic(lambda: (call(*inputs), torch.cuda.synchronize()), rounds=20, warmup_rounds=3)
    seconds = benchmark.stats.stats.median
    MEDIANS[case, f"{dtype} {form}"] = seconds
    flops = sum(4 * length**2 * HEADS * CHANNELS for length in lengths)
    benchmark.extra_info["tflops"] = round(flops / seconds / 1e12, 1)
    if (case, f"{dtype} buckets") in MEDIANS:
        benchmark.extra_info["times_faster_than_buckets"] = round(MEDIANS[case, f"{dtype} buckets"] / seconds, 2)
