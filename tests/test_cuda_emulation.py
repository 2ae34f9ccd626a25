# SPDX-License-Identifier: Apache-2.0
"""What CUDA kernels compute, without a GPU: tests/emulation/<operator>.cpp runs those of csrc/<operator>/ on the CPU.

The kernels' own sources are compiled by a C++ compiler, after the changes below, which are to syntax only.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "tests" / "emulation"
DRIVERS = sorted(HERE.glob("*.cpp"))
DYNAMIC_SHARED = "namespace sohes { namespace { double shared[8192]; } }\n"


def as_cpp(source: str) -> str:
    """A launch becomes a call; the array of dynamic shared memory, named `shared`, gets a place; blocks are smaller."""
    source = re.sub(r"(\w+)<<<(.*?)>>>\((.*?)\);", r"emulation::launch(\1, \2, \3);", source, flags=re.DOTALL)
    source = source.replace("kThreads = 512", "kThreads = 128")
    return source.replace("extern __shared__", "extern") + DYNAMIC_SHARED * ("extern __shared__" in source)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.stem)
def test_kernels_equal_the_cpp_ones(driver, tmp_path):
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler found ($CXX, c++, g++, clang++)")
    probe = tmp_path / "probe.cpp"
    probe.write_text("#include <ucontext.h>\nint main() { return 0; }\n")
    if subprocess.run([compiler, str(probe), "-o", str(tmp_path / "probe")], capture_output=True).returncode:
        pytest.skip(f"{compiler} finds no <ucontext.h>")
    folder = ROOT / "csrc" / driver.stem
    kernels = []
    for path in sorted(folder.glob("*.cu")):
        kernels.append(tmp_path / f"{path.stem}.cpp")
        kernels[-1].write_text(as_cpp(path.read_text()))
    includes = [f"-I{path}" for path in (HERE, folder, ROOT / "csrc" / "include")]
    sources = [driver, *kernels, *sorted(folder.glob("*.cpp"))]
    program = tmp_path / "program"
    flags = ["-std=c++20", "-O1", "-w", "-pthread", "-DSOHES_WITH_CUDA"]
    done = subprocess.run(
        [compiler, *flags, *includes, *map(str, sources), "-o", str(program)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout == "equal\n"
