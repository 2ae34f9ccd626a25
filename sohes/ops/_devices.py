# SPDX-License-Identifier: Apache-2.0
"""Whether a CUDA device can run what was compiled: its compute capability and the driver's version against the build.

nvcc leaves two things for an architecture: machine code (`sm_80`), which runs on devices of the same major version and
the same or a higher minor one, and PTX (`compute_80`), which the driver translates for any later device, provided that
the driver is not older than the compiler.
"""

from __future__ import annotations

import ctypes
import functools
import re

import torch

Version = tuple[int, int]

TRITON_LEAST = (7, 0)
TRITON_LEAST_BFLOAT16 = (8, 0)


def capability_of(device: torch.device) -> Version | None:
    """Compute capability of a CUDA device, the current one where `device` has no index; None where torch sees none."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


@functools.cache
def driver_version() -> Version | None:
    """The newest CUDA that the installed NVIDIA driver knows, or None without a driver."""
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
    """The reason why a device cannot run compiled kernels, or None.

    Args:
        architectures: of the build, as CMake writes them: "80 90", "90a-real", "86-virtual", "100f". Words, such as
            "native", say nothing and pass.
        compiler: version of nvcc, "13.0.88".
        capability: of the device, None where there is none.
        driver: version of CUDA that the driver knows, None where that is unknown.
    """
    if capability is None:
        return "torch sees no CUDA device"
    compiled_with = _version(compiler)
    if driver is not None and driver[0] < compiled_with[0]:
        return (
            f"the kernels were compiled with CUDA {_text(compiled_with)}, but the driver is of CUDA {_text(driver)}: "
            "it needs a newer driver, or kernels compiled with an older CUDA"
        )
    wanted = architectures.split()
    if any(_runs(one, capability) for one in wanted):
        return None
    names = ", ".join(f"sm_{one.removesuffix('-real').removesuffix('-virtual')}" for one in wanted)
    device = f"sm_{capability[0]}{capability[1]}"
    if any(_translates(one, capability) for one in wanted):
        if driver is None or driver >= compiled_with:
            return None
        return (
            f"the kernels were compiled for {names}, and to translate them for this device ({device}) needs a driver "
            f"of CUDA {_text(compiled_with)} or newer, this one is of {_text(driver)}"
        )
    return (
        f"the kernels were compiled for {names}, this device is {device}; "
        f"install with SOHES_CUDA_ARCH={capability[0]}{capability[1]}"
    )


def why_not_triton_on(capability: Version | None, dtype: torch.dtype) -> str | None:
    """The reason why Triton's kernels cannot run for this dtype on an NVIDIA device, or None."""
    if capability is None:
        return "torch sees no CUDA device"
    if capability < TRITON_LEAST:
        return f"Triton needs compute capability {_text(TRITON_LEAST)}, this device has {_text(capability)}"
    if dtype == torch.bfloat16 and capability < TRITON_LEAST_BFLOAT16:
        needed = _text(TRITON_LEAST_BFLOAT16)
        return f"Triton needs compute capability {needed} for bfloat16, this device has {_text(capability)}"
    return None


def _split(architecture: str) -> tuple[Version, str, str] | None:
    """Of "90a-real" (9, 0), "a" and "real"; None for a word."""
    found = re.fullmatch(r"(\d+)(\d)([af]?)(?:-(real|virtual))?", architecture)
    return found and ((int(found[1]), int(found[2])), found[3], found[4] or "")


def _runs(architecture: str, capability: Version) -> bool:
    """Is there machine code for the device? Of a word, such as "native", that is taken for granted."""
    parts = _split(architecture)
    if parts is None:
        return True
    built, kind, form = parts
    if form == "virtual" or built[0] != capability[0]:
        return False
    return built == capability if kind == "a" else built <= capability


def _translates(architecture: str, capability: Version) -> bool:
    """Is there PTX for the device?"""
    parts = _split(architecture)
    return parts is not None and not parts[1] and parts[2] != "real" and parts[0] <= capability


def _version(text: str) -> Version:
    major, minor, *_ = (*text.split("."), "0")
    return int(major), int(minor)


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
