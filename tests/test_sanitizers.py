# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels without Python around them: under the address and undefined-behaviour sanitizers, and on Arm.

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


def compile_one(compiler, flags, source, target):
    command = [compiler, *flags, "-I", str(ROOT / "csrc" / "include"), "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_driver(compiler, flags, driver, folder, *emulator):
    """Compiles a driver with the kernels it calls, and expects that it finds nothing wrong."""
    sources = [driver, *sorted((ROOT / "csrc" / driver.stem).glob("*.cpp"))]
    objects = [folder / f"{index}.o" for index in range(len(sources))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda pair: compile_one(compiler, flags, *pair), zip(sources, objects, strict=True)))
    program = folder / "program"
    subprocess.run([compiler, *flags, *map(str, objects), "-o", str(program)], check=True)
    done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout == "clean\n"


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.stem)
def test_kernels_are_clean(compiler, driver, tmp_path):
    run_driver(compiler, FLAGS, driver, tmp_path)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.stem)
def test_kernels_agree_on_arm(driver, tmp_path):
    """The same programs on an emulated 64-bit Arm processor, for the NEON loops."""
    tools = [shutil.which(name) for name in ("aarch64-linux-gnu-g++", "qemu-aarch64")]
    if None in tools:
        pytest.skip("needs a cross compiler and an emulator (g++-aarch64-linux-gnu, qemu-user)")
    run_driver(tools[0], ["-std=c++20", "-O1", "-static", "-pthread"], driver, tmp_path, tools[1])
