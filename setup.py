# SPDX-License-Identifier: Apache-2.0
"""Builds `sohes._C` with CMake. Needs no torch, so pip's build isolation is enough.

`SOHES_BUILD` decides what is built:

- `auto` (default): CUDA kernels if an nvcc works, CPU kernels if a C++ compiler works, else none;
  what was skipped and why is recorded in `sohes/_build.json` and shown by `python -m sohes.env`.
- `cuda`, `cpu`: exactly that, or the installation fails.
- `none`: Python only; the PyTorch references and Triton run.

The toolchain decides, not a visible GPU. `SOHES_CUDA_ARCH` (default `80;90`) sets the GPU architectures.
"""

import atexit
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cuda", "cpu", "none")


def load_source_digest() -> Callable[[Path], str]:
    """The function `source_digest` of sohes/ops/_binary.py, loaded by path: importing the package would need torch."""
    spec = importlib.util.spec_from_file_location("_binary", ROOT / "sohes" / "ops" / "_binary.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["_binary"] = module
    spec.loader.exec_module(module)
    return module.source_digest


def find_nvcc() -> str | None:
    """Path of the CUDA compiler: $CUDACXX, $CUDA_HOME/bin/nvcc, or the one on PATH. None if there is none."""
    for candidate in (
        os.environ.get("CUDACXX"),
        os.path.join(os.environ.get("CUDA_HOME", ""), "bin", "nvcc"),
    ):
        if candidate and shutil.which(candidate):
            return shutil.which(candidate)
    return shutil.which("nvcc")


class CMakeBuild(build_ext):
    """Builds `sohes._C` with CMake: the first variant of `SOHES_BUILD` that the toolchain supports, CUDA before CPU."""

    def build_extension(self, ext: Extension) -> None:
        mode = os.environ.get("SOHES_BUILD", "auto")
        if mode not in MODES:
            raise SystemExit(f"SOHES_BUILD={mode!r} is not one of {', '.join(MODES)}")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        facts = {"requested": mode, "variant": "none", "skipped": {}}
        if mode == "none":
            facts["reason"] = "installed with SOHES_BUILD=none"
        else:
            for variant in ("cuda", "cpu") if mode == "auto" else (mode,):
                reason = self.try_variant(variant, target)
                if reason is None:
                    facts["variant"] = variant
                    break
                if mode != "auto":
                    raise SystemExit(f"SOHES_BUILD={mode} was asked for, but: {reason}")
                facts["skipped"][variant] = reason
                print(f"sohes: {variant} kernels are not built: {reason}", file=sys.stderr)
            if facts["variant"] == "none":
                facts["reason"] = "; ".join(f"{k}: {v}" for k, v in facts["skipped"].items())
        if facts["variant"] == "none":
            target.unlink(missing_ok=True)
        (target.parent / "_build.json").write_text(json.dumps(facts, indent=1) + "\n")

    def try_variant(self, variant: str, target: Path) -> str | None:
        """Configure and compile. Returns None, or why the toolchain cannot build it; exits on a compile error."""
        nvcc = find_nvcc()
        if variant == "cuda" and nvcc is None:
            return "no nvcc found ($CUDACXX, $CUDA_HOME, PATH)"
        build = Path(self.build_temp).resolve() / variant
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSOHES_CUDA={'ON' if variant == 'cuda' else 'OFF'}",
            f"-DSOHES_SOURCE_DIGEST={load_source_digest()(ROOT / 'csrc')}",
        ]  # fmt: skip
        if variant == "cuda":
            configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}"]
            configure += [f"-DCMAKE_CUDA_ARCHITECTURES={os.environ.get('SOHES_CUDA_ARCH', '80;90')}"]
        try:
            done = subprocess.run(configure, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "cmake is not on PATH"
        if done.returncode != 0:
            (build / "configure.log").write_text(done.stdout + done.stderr)
            errors = [line for line in done.stderr.splitlines() if line.strip()]
            return "CMake found no working toolchain: " + " | ".join(errors[:6])
        compiled = subprocess.run(["cmake", "--build", str(build), "--parallel"], check=False)
        if compiled.returncode != 0:
            raise SystemExit(
                f"sohes: compiling the {variant} kernels failed (see above). To install without them: "
                f"SOHES_BUILD={'cpu' if variant == 'cuda' else 'none'} pip install ."
            )
        shutil.copy2(next(build.glob("_C.*")), target)
        return None

    def get_outputs(self) -> list[str]:
        outputs = [path for path in super().get_outputs() if os.path.exists(path)]
        folders = {os.path.dirname(path) for path in super().get_outputs()}
        return outputs + [os.path.join(f, "_build.json") for f in folders]


# A new build folder each time: files of an earlier build (a binary, a deleted module, the path of a removed build tool)
# would otherwise end up in the package.
BUILD_BASE = tempfile.mkdtemp(prefix="sohes-build-")
atexit.register(shutil.rmtree, BUILD_BASE, ignore_errors=True)

setup(
    options={"build": {"build_base": BUILD_BASE}},
    ext_modules=[Extension("sohes._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
