# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels without Python around them: under the address and undefined-behaviour sanitizers, and on Arm.

tests/sanitizers/<operator>.cpp is a program that runs the kernels of csrc/<operator>/; it prints "clean" and exits 0.
tests/cuda/<operator>.cpp does so with the CUDA kernels, on the device that the header beside it makes of the CPU.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c++20", "-O1", "-g1", "-Wall", "-Wno-unknown-pragmas", "-ffp-contract=off", "-DSOHES_WITH_CUDA",
         "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread"]  # fmt: skip
ARM_FLAGS = ["-std=c++20", "-O1", "-static", "-pthread"]
DRIVERS = sorted((ROOT / "tests" / "sanitizers").glob("*.cpp"))
CUDA_DRIVERS = sorted((ROOT / "tests" / "cuda").glob("*.cpp"))


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


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """Where object files are kept, so that a kernel which two programs call is compiled once."""
    return tmp_path_factory.mktemp("objects")


def compile_one(command, source, target):
    folders = ["-I", str(ROOT / "tests" / "cuda"), "-I", str(ROOT / "csrc" / "include")]
    command = [*command, *folders, "-x", "c++", "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_driver(command, driver, suffixes, folder, *emulator):
    """Compiles a driver with the kernels it calls, and expects that it finds nothing wrong."""
    kernels = [path for path in (ROOT / "csrc" / driver.stem).iterdir() if path.suffix in suffixes]
    targets = {
        source: folder / f"{Path(command[0]).name}-{'-'.join(source.relative_to(ROOT).parts)}.o"
        for source in [driver, *kernels]
    }
    missing = [(source, target) for source, target in targets.items() if not target.exists()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda pair: compile_one(command, *pair), missing))
    program = folder / "program"
    subprocess.run([*command, *map(str, targets.values()), "-o", str(program)], check=True)
    done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout == "clean\n"


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.stem)
def test_kernels_are_clean(compiler, objects, driver):
    run_driver([compiler, *FLAGS], driver, {".cpp"}, objects)


@pytest.mark.parametrize("driver", CUDA_DRIVERS, ids=lambda driver: driver.stem)
def test_cuda_kernels_agree_on_a_device_in_cpp(compiler, objects, driver):
    run_driver([compiler, *FLAGS], driver, {".cpp", ".cu"}, objects)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.stem)
def test_kernels_agree_on_arm(objects, driver):
    """The same programs on an emulated 64-bit Arm processor, for the NEON loops."""
    tools = [shutil.which(name) for name in ("aarch64-linux-gnu-g++", "qemu-aarch64")]
    if None in tools:
        pytest.skip("needs a cross compiler and an emulator (g++-aarch64-linux-gnu, qemu-user)")
    run_driver([tools[0], *ARM_FLAGS], driver, {".cpp"}, objects, tools[1])
