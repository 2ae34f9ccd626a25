# SPDX-License-Identifier: Apache-2.0
"""Kernels are selected only if they can run, and run on the device of their tensors, not on the current device.

No GPU is needed: devices, driver and compiled module are stand-ins.
"""

import importlib
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from mask_cases import mixed
from ms_deform_attn_cases import SMALL_CASES, make_inputs

from sohes.ops import _binary, _cuda, _devices, _library
from sohes.ops._library import OPERATORS, why_not_cuda, why_not_triton
from sohes.structures.masks import PackedMasks

CUDA = torch.device("cuda", 0)
T4, A100, A10, H100, B200, RTX5090 = (7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)


@pytest.mark.parametrize(
    ("architectures", "capability", "driver", "expected"),
    [
        ("80 90", A100, (13, 0), None),
        ("80 90", A10, (13, 0), None),  # a later minor version runs sm_80
        ("80 90", H100, (13, 1), None),
        ("80 90", B200, (13, 0), None),  # the driver translates compute_90
        ("80 90", H100, None, None),
        ("native", T4, (13, 0), None),
        ("90a", H100, (13, 0), None),
        ("100f", (10, 3), (13, 0), None),
        ("75-virtual", B200, (13, 0), None),
        ("80 90", T4, (13, 0), "compiled for sm_80, sm_90, this device is sm_75; install with SOHES_CUDA_ARCH=75"),
        ("90", A10, (13, 0), "compiled for sm_90, this device is sm_86"),
        ("86", A100, (13, 0), "compiled for sm_86, this device is sm_80"),
        ("80-real 90-real", B200, (13, 0), "compiled for sm_80, sm_90, this device is sm_100"),
        ("90a", RTX5090, (13, 0), "compiled for sm_90a, this device is sm_120"),
        ("100f", RTX5090, (13, 0), "compiled for sm_100f, this device is sm_120"),
        ("80 90", H100, (12, 8), "compiled with CUDA 13.0, but the driver supports CUDA 12.8"),
        ("80 90", None, (13, 0), "torch sees no CUDA device"),
    ],
)
def test_what_a_device_runs(architectures, capability, driver, expected):
    reason = _devices.why_not_on_device(architectures, "13.0.88", capability, driver)
    assert (reason is None) if expected is None else (expected in reason)


def test_ptx_needs_a_driver_as_new_as_the_compiler():
    """Machine code runs with any driver of the same major version, PTX does not."""
    assert _devices.why_not_on_device("80 90", "12.8.61", H100, (12, 2)) is None
    reason = _devices.why_not_on_device("80 90", "12.8.61", B200, (12, 2))
    assert reason.endswith("(sm_100) needs a driver for CUDA 12.8 or newer, this driver supports 12.2")


@pytest.fixture
def pretend(monkeypatch):
    """A machine with one GPU of this capability, and a module compiled for these architectures."""

    def set_up(capability, architectures="80 90"):
        build = {"cuda": True, "cuda_version": "13.0.88", "cuda_architectures": architectures}
        binary = _binary.Binary(SimpleNamespace(build_info=lambda: build), None, "")
        monkeypatch.setattr(_binary, "find_binary", lambda: binary)
        monkeypatch.setattr(_devices, "driver_version", lambda: (13, 0))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    return set_up


@pytest.mark.parametrize(
    ("capability", "dtype", "chosen"),
    [
        (H100, torch.float32, "cuda"),
        (B200, torch.bfloat16, "cuda"),
        (T4, torch.float32, "triton"),
        (T4, torch.float16, "triton"),
        (T4, torch.bfloat16, "reference"),
        ((6, 1), torch.float32, "reference"),
    ],
)
@pytest.mark.parametrize("name", ["ms_deform_attn", "ms_deform_attn_backward", "ms_deform_attn_fused", "merge_regions"])
def test_auto_takes_what_runs(pretend, name, capability, dtype, chosen):
    pytest.importorskip("triton", reason="triton is not installed")
    pretend(capability)
    assert OPERATORS[name].choose("auto", CUDA, dtype).name == chosen


def test_every_operator_says_why_not_on_an_older_gpu(pretend):
    pretend(T4)
    for op in OPERATORS.values():
        names = [backend.name for backend in op.backends]
        if "cuda" in names:
            assert "this device is sm_75" in op.explain(CUDA, torch.float32)["cuda"], op.name
            with pytest.raises(_library.BackendUnavailable, match=r"backend 'cuda' cannot run on cuda:0 .*sm_75"):
                op.choose("cuda", CUDA, torch.float32)


def test_an_amd_gpu(pretend, monkeypatch):
    """Tensors of an AMD GPU also have device type cuda."""
    pretend(None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert why_not_cuda(CUDA, torch.float32) == "needs an NVIDIA GPU, but this torch was built for AMD GPUs"
    pytest.importorskip("triton", reason="triton is not installed")
    assert why_not_triton(CUDA, torch.float32) is None


@pytest.fixture
def guarded(monkeypatch):
    """Fake kernels that record the current device of each call, and fake device guards."""
    calls, current = [], []

    @contextmanager
    def guard(of):
        current.append(of.device if isinstance(of, torch.Tensor) else of)
        yield
        current.pop()

    class Kernels:
        """Kernels of any name; functions without a launch return fixed values."""

        def merge_regions_cuda_table(self, *_args):
            return [0, 8]

        def __getattr__(self, name):
            return lambda *args: calls.append((name, current[-1] if current else None))

    class TritonKernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **kwargs: calls.append((self.name, current[-1] if current else None))

    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(torch.cuda, "device_of", guard)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    for module in (_cuda, *(_module(name) for name in ("merge_regions", "ms_deform_attn"))):
        monkeypatch.setattr(module, "require_binary", Kernels)
    return SimpleNamespace(calls=calls, triton_kernel=TritonKernel)


def _module(name):
    return importlib.import_module(f"sohes.ops.{name}")


def _calls():
    """Arguments for every operator with CUDA kernels."""
    dense = mixed(0, 12, 17)
    masks = PackedMasks.from_dense(dense)
    words, areas, boxes = masks.words, masks.areas, masks.boxes
    value, shapes, locations, weights, grad = make_inputs(SMALL_CASES["odd"])
    flat = [side for shape in shapes for side in shape]
    features = torch.randn(12, 5)
    return {
        "mask_pack": (dense,),
        "mask_unpack": (words, 12, 17),
        "mask_stats": (words, 12, 17),
        "mask_pack_logits": (torch.randn(3, 4, 5), 12, 17, 0.0),
        "mask_from_index": (torch.zeros(12, 17, dtype=torch.int64), 2),
        "mask_overlap": (words, boxes, words, boxes, 12),
        "mask_boundary": (words, 12, 17),
        "mask_resize": (words, 12, 17, 6, 8),
        "ms_deform_attn": (value, flat, locations, weights),
        "ms_deform_attn_backward": (grad, value, flat, locations, weights),
        "merge_regions": (features, None, None, [3, 4], 0.0),
        "mask_nms": (words, areas, boxes, areas.argsort(), 0.5, 12),
        "mask_parents": (words, areas, boxes, areas.argsort(), 0.5, 12),
    }


@pytest.mark.parametrize("name", _calls())
def test_kernels_are_launched_on_the_device_of_their_tensors(guarded, name):
    args = _calls()[name]
    run = next(backend.run for backend in OPERATORS[name].backends if backend.name == "cuda")
    run(*args)
    assert guarded.calls
    assert {device for _, device in guarded.calls} == {torch.device("cpu")}


@pytest.mark.parametrize("name", ["mask_overlap", "merge_regions", "ms_deform_attn", "ms_deform_attn_backward"])
def test_triton_kernels_are_launched_on_the_device_of_their_tensors(guarded, monkeypatch, name):
    pytest.importorskip("triton", reason="triton is not installed")
    kernels = _module(f"triton.{name.removesuffix('_backward')}")
    for kernel in [key for key in vars(kernels) if key.endswith("_kernel")]:
        monkeypatch.setattr(kernels, kernel, guarded.triton_kernel(kernel))
    getattr(kernels, name)(*_calls()[name])
    assert guarded.calls
    assert {device for _, device in guarded.calls} == {torch.device("cpu")}
