# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels under the address and undefined-behaviour sanitizers, without Python around them.

tests/sanitizers/<operator>.cpp is a program that runs the kernels of csrc/<operator>/; it prints "clean" and exits 0.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c++20", "-O1", "-g1", "-Wall", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread"]
DRIVERS = sorted((ROOT / "tests" / "sanitizers").glob("*.cpp"))


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """A C++ compiler that links with the sanitizers."""
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler found ($CXX, c++, g++, clang++)")
    probe = tmp_path_factory.mktemp("probe")
    (probe / "probe.cpp").write_text("int main() { return 0; }\n")
    command = [found, *FLAGS, str(probe / "probe.cpp"), "-o", str(probe / "probe")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{found} has no sanitizers: {done.stderr.strip().splitlines()[-1]}")
    return found


def compile_one(compiler, source, target):
    command = [compiler, *FLAGS, "-I", str(ROOT / "csrc" / "include"), "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.stem)
def test_kernels_are_clean(compiler, driver, tmp_path):
    sources = [driver, *sorted((ROOT / "csrc" / driver.stem).glob("*.cpp"))]
    objects = [tmp_path / f"{index}.o" for index in range(len(sources))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, [compiler] * len(sources), sources, objects))
    program = tmp_path / "program"
    subprocess.run([compiler, *FLAGS, *map(str, objects), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout == "clean\n"
