# SPDX-License-Identifier: Apache-2.0
"""Whether a CUDA device can run the compiled kernels, from its compute capability, the driver and the build.

For an architecture nvcc emits machine code (`sm_80`), which runs on devices of the same major version and the same or a
higher minor version, and PTX (`compute_80`), which the driver compiles for any later device if the driver is not older
than nvcc.
"""

from __future__ import annotations

import ctypes
import functools
import re

import torch

Version = tuple[int, int]

TRITON_MIN = (7, 0)
TRITON_MIN_BFLOAT16 = (8, 0)


def capability_of(device: torch.device) -> Version | None:
    """Compute capability of a CUDA device (the current one if `device` has no index), or None without a device."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


@functools.cache
def driver_version() -> Version | None:
    """The newest CUDA version that the installed NVIDIA driver supports, or None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


@functools.lru_cache(maxsize=64)
def why_not_on_device(
    architectures: str, compiler: str, capability: Version | None, driver: Version | None
) -> str | None:
    """Why a device cannot run the compiled kernels, or None if it can.

    Args:
        architectures: of the build, as CMake writes them: "80 90", "90a-real", "86-virtual", "100f". Words, such as
            "native", are accepted without a check.
        compiler: version of nvcc, "13.0.88".
        capability: compute capability of the device, None without a device.
        driver: CUDA version that the driver supports, None if unknown.
    """
    if capability is None:
        return "torch sees no CUDA device"
    compiled_with = _version(compiler)
    if driver is not None and driver[0] < compiled_with[0]:
        return (
            f"the kernels were compiled with CUDA {_text(compiled_with)}, but the driver supports CUDA "
            f"{_text(driver)}: install a newer driver, or compile the kernels with an older CUDA"
        )
    wanted = architectures.split()
    if any(_has_code_for(one, capability) for one in wanted):
        return None
    names = ", ".join(f"sm_{one.removesuffix('-real').removesuffix('-virtual')}" for one in wanted)
    device = f"sm_{capability[0]}{capability[1]}"
    if any(_has_ptx_for(one, capability) for one in wanted):
        if driver is None or driver >= compiled_with:
            return None
        return (
            f"the kernels were compiled for {names}; to run them on this device ({device}) needs a driver for CUDA "
            f"{_text(compiled_with)} or newer, this driver supports {_text(driver)}"
        )
    return (
        f"the kernels were compiled for {names}, this device is {device}; "
        f"install with SOHES_CUDA_ARCH={capability[0]}{capability[1]}"
    )


def why_not_triton_on(capability: Version | None, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run for this dtype on an NVIDIA device, or None if they can."""
    if capability is None:
        return "torch sees no CUDA device"
    if capability < TRITON_MIN:
        return f"Triton needs compute capability {_text(TRITON_MIN)}, this device has {_text(capability)}"
    if dtype == torch.bfloat16 and capability < TRITON_MIN_BFLOAT16:
        needed = _text(TRITON_MIN_BFLOAT16)
        return f"Triton needs compute capability {needed} for bfloat16, this device has {_text(capability)}"
    return None


def _split(architecture: str) -> tuple[Version, str, str] | None:
    """Version, suffix and form: (9, 0), "a" and "real" for "90a-real"; None for a word."""
    found = re.fullmatch(r"(\d+)(\d)([af]?)(?:-(real|virtual))?", architecture)
    return None if found is None else ((int(found[1]), int(found[2])), found[3], found[4] or "")


def _has_code_for(architecture: str, capability: Version) -> bool:
    """Whether the build has machine code for the device; assumed for a word such as "native"."""
    parts = _split(architecture)
    if parts is None:
        return True
    built, kind, form = parts
    if form == "virtual" or built[0] != capability[0]:
        return False
    return built == capability if kind == "a" else built <= capability


def _has_ptx_for(architecture: str, capability: Version) -> bool:
    """Whether the build has PTX for the device."""
    parts = _split(architecture)
    return parts is not None and not parts[1] and parts[2] != "real" and parts[0] <= capability


def _version(text: str) -> Version:
    major, minor, *_ = (*text.split("."), "0")
    return int(major), int(minor)


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
