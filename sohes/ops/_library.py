# SPDX-License-Identifier: Apache-2.0
"""Definition of operators: one schema, one PyTorch reference that defines the result, any number of backends.

    op = define_op("name", "(Tensor x, ..., str backend='auto') -> Tensor", reference=..., fake=...)
    op.add_backend("cpp", run=..., why_not=...)

The schema is registered with `torch.library`, so `torch.compile`, `torch.export` and `opcheck` see one opaque
operator. Every schema ends in `str backend="auto"`. An explicit backend runs or raises `BackendUnavailable` with the
reason. `auto` takes the first backend that can run; the reference is the last and can always run.

A missing derivative (backward of some operators, forward mode of all) raises NotImplementedError, because torch would
return zeros for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import forward_ad

from sohes.ops import _binary, _devices

LIBRARY = torch.library.Library("sohes", "DEF")
OPERATORS: dict[str, Operator] = {}

WhyNot = Callable[[torch.device, torch.dtype], "str | None"]


class BackendUnavailable(RuntimeError):
    """The requested backend cannot run here; the message gives the reason."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    `run` takes the operator's arguments without `backend`. `why_not` returns why it cannot run, None if it can.
    """

    name: str
    run: Callable[..., Any]
    why_not: WhyNot


@dataclass
class Operator:
    """A registered operator, called through the torch dispatcher (autograd, fake tensors, compile)."""

    name: str
    backends: list[Backend] = field(default_factory=list)  # in the order `auto` tries them; the reference is last

    def __call__(self, *args: Any) -> Any:
        if not torch.compiler.is_compiling():
            refuse_tangents(self.name, *args)
        return getattr(torch.ops.sohes, self.name).default(*args)

    def add_backend(self, name: str, run: Callable[..., Any], why_not: WhyNot) -> None:
        """Add a backend. `auto` tries backends in the order in which they were added, then the reference."""
        self.backends.insert(len(self.backends) - 1, Backend(name, run, why_not))

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Register a backward, itself made of operators, with `torch.library.register_autograd`."""
        torch.library.register_autograd(f"sohes::{self.name}", backward, setup_context=setup_context, lib=LIBRARY)

    def choose(self, backend: str, device: torch.device, dtype: torch.dtype) -> Backend:
        """The backend that runs this request.

        Raises ValueError for an unknown name, BackendUnavailable if the backend cannot run.
        """
        if backend == "auto":
            return next(b for b in self.backends if b.why_not(device, dtype) is None)
        for candidate in self.backends:
            if candidate.name == backend:
                reason = candidate.why_not(device, dtype)
                if reason is not None:
                    raise BackendUnavailable(
                        f"{self.name}: backend '{backend}' cannot run on {device} {dtype}: {reason}"
                    )
                return candidate
        names = ", ".join(["auto", *(b.name for b in self.backends)])
        raise ValueError(f"{self.name}: unknown backend '{backend}', expected one of: {names}")

    def explain(self, device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
        """Why each backend cannot run (None if it can), in the order of `auto`. For `python -m sohes.env`."""
        return {b.name: b.why_not(device, dtype) for b in self.backends}


def define_op(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    no_gradient: str | None = "its results have no gradient",
) -> Operator:
    """Register `sohes::<name>`.

    Args:
        name: of the operator.
        schema: everything after the name; ends in `str backend="auto"`.
        reference: the PyTorch implementation; takes the arguments without `backend`.
        fake: returns empty outputs of the right shape, dtype and device from the same arguments.
        no_gradient: the message of the NotImplementedError that backward raises. With None the caller must call
            `Operator.register_autograd`.
    """
    if "backend" not in schema:
        raise ValueError(f'{name}: the schema must end in `str backend="auto"`, got {schema}')
    op = Operator(name, [Backend("reference", reference, lambda device, dtype: None)])
    OPERATORS[name] = op
    LIBRARY.define(name + schema)

    def run(*args: Any, backend: str = "auto") -> Any:
        inputs, backend = _split_backend(args, backend)
        refuse_tangents(name, *inputs)
        first = _first_tensor(inputs)
        return op.choose(backend, first.device, first.dtype).run(*inputs)

    def run_fake(*args: Any, backend: str = "auto") -> Any:
        return fake(*_split_backend(args, backend)[0])

    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sohes::{name}", run_fake, lib=LIBRARY)
    if no_gradient is not None:

        def refuse(ctx: Any, *grads: Any) -> None:
            raise NotImplementedError(f"{name}: {no_gradient}")

        op.register_autograd(refuse, lambda ctx, inputs, output: None)
    return op


def refuse_tangents(name: str, *args: Any) -> None:
    """Raise NotImplementedError if an argument has a tangent of forward-mode differentiation (jvp)."""
    for arg in args:
        if isinstance(arg, torch.Tensor) and forward_ad.unpack_dual(arg).tangent is not None:
            raise NotImplementedError(f"{name}: there is no forward-mode derivative (jvp)")


def why_not_cpp(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the C++ backends cannot run, or None: they need a CPU tensor and the compiled module."""
    if device.type != "cpu":
        return f"needs a CPU tensor, got {device}"
    return _binary.find_binary().reason or None


def why_not_cuda(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the CUDA backends cannot run, or None: they need kernels that were compiled for the device of the tensor."""
    found = _binary.find_binary()
    if found.module is None:
        return found.reason
    build = found.module.build_info()
    if not build["cuda"]:
        skipped = _binary.build_facts().get("skipped", {}).get("cuda", "it was built for the CPU only")
        return f"the compiled module has no CUDA kernels: {skipped}"
    if device.type != "cuda":
        return f"needs a CUDA tensor, got {device}"
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU, but this torch was built for AMD GPUs"
    capability, driver = _devices.capability_of(device), _devices.driver_version()
    return _devices.why_not_on_device(build["cuda_architectures"], build["cuda_version"], capability, driver)


def why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton backends cannot run, or None: they need a tensor on a supported GPU, or TRITON_INTERPRET=1."""
    try:
        import triton  # noqa: F401 - only whether it is installed
    except ImportError as error:
        return f"triton is not installed: {error}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"needs a CUDA tensor (or TRITON_INTERPRET=1), got {device}"
    return None if torch.version.hip else _devices.why_not_triton_on(_devices.capability_of(device), dtype)


def _split_backend(args: tuple[Any, ...], backend: str) -> tuple[tuple[Any, ...], str]:
    # The dispatcher passes trailing arguments positionally and drops those equal to their default.
    if args and isinstance(args[-1], str):
        return args[:-1], args[-1]
    return args, backend


def _first_tensor(args: tuple[Any, ...]) -> torch.Tensor:
    return next(a for a in args if isinstance(a, torch.Tensor))
