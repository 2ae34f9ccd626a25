# SPDX-License-Identifier: Apache-2.0
"""Which compiled module is used, and that a checkout neither shadows the installed one nor takes a stale one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sohes.ops import _binary

ROOT = Path(__file__).resolve().parents[1]
IN_CHECKOUT = (ROOT / "csrc" / "bindings.cpp").is_file()

SHOW_BINARY = """
import json, sohes
from sohes.ops import _binary
found = _binary.find_binary()
print(json.dumps({"package": sohes.__file__, "path": str(found.path), "reason": found.reason}))
"""


def run_python(code, cwd, **env):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SOHES_BINARY")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**clean, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed_folder():
    """Where site-packages holds the package, or None when it is only a checkout."""
    folders = [f for f in _binary._installed_packages() if f.parent != ROOT]
    return folders[0] if folders else None


def installed_variant():
    folder = installed_folder()
    return None if folder is None else json.loads((folder / "_build.json").read_text())["variant"]


@pytest.mark.skipif(installed_variant() in (None, "none"), reason="no compiled module is installed")
@pytest.mark.skipif(not IN_CHECKOUT, reason="not run from a checkout")
def test_checkout_uses_installed_binary():
    shown = json.loads(run_python(SHOW_BINARY, ROOT))
    assert Path(shown["package"]).parent == ROOT / "sohes"
    assert shown["reason"] == ""
    assert Path(shown["path"]).parent == installed_folder()


@pytest.mark.skipif(installed_variant() in (None, "none"), reason="no compiled module is installed")
def test_outside_checkout_uses_installed_binary(tmp_path):
    shown = json.loads(run_python(SHOW_BINARY, tmp_path))
    assert Path(shown["package"]).parent == installed_folder()
    assert Path(shown["path"]).parent == installed_folder()


@pytest.mark.skipif(installed_variant() in (None, "none"), reason="no compiled module is installed")
@pytest.mark.skipif(not IN_CHECKOUT, reason="not run from a checkout")
def test_checkout_refuses_binary_of_other_sources(tmp_path):
    for folder in ("sohes", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    header = tmp_path / "csrc" / "include" / "sohes" / "tensor_view.h"
    header.write_text(header.read_text() + "// changed\n")
    shown = json.loads(run_python(SHOW_BINARY, tmp_path))
    assert Path(shown["package"]).parent == tmp_path / "sohes"
    assert shown["path"] == "None"
    assert "was compiled from other sources" in shown["reason"]
    assert shown["reason"].endswith("run `pip install .` again")


@pytest.mark.skipif(installed_variant() != "none", reason="the package was installed with kernels")
def test_without_kernels_the_reason_is_told(tmp_path):
    shown = json.loads(run_python(SHOW_BINARY, tmp_path))
    assert shown["reason"] == "no compiled module: installed with SOHES_BUILD=none"


def test_forced_binary_that_is_missing_is_told(tmp_path):
    shown = json.loads(run_python(SHOW_BINARY, ROOT, SOHES_BINARY=str(tmp_path / "none.so")))
    assert shown["reason"] == f"no file {tmp_path / 'none.so'}"


def test_source_digest_depends_on_names_and_contents(tmp_path):
    (tmp_path / "a.cpp").write_text("int x;")
    first = _binary.source_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("not a source")
    assert _binary.source_digest(tmp_path) == first
    (tmp_path / "a.cpp").rename(tmp_path / "b.cpp")
    renamed = _binary.source_digest(tmp_path)
    (tmp_path / "b.cpp").write_text("int y;")
    assert len({first, renamed, _binary.source_digest(tmp_path)}) == 3


# Facts about a process that importing a library has no business to change.
IMPORT_EVERYTHING = """
import importlib, locale, logging, os, pathlib, pkgutil, random, signal, socket, sys, threading, warnings
import sohes
assert "torch" not in sys.modules, "import sohes must not import torch"
# What dependencies do is theirs: they come first.
import numpy, PIL.Image, pycocotools.mask, rich.live, scipy.optimize, timm, torch, torch.distributed
import torch.utils.data, torchvision
def children():
    tasks = pathlib.Path("/proc/self/task")
    return [(task / "children").read_text() for task in tasks.iterdir()] if tasks.is_dir() else []
def facts():
    return {
        "log handlers": (list(logging.root.handlers), logging.root.level, logging.getLogger("sohes").handlers),
        "threads": threading.active_count(),
        "processes": "".join(children()),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "hooks": (sys.excepthook, sys.displayhook, threading.excepthook),
        "environment": dict(os.environ),
        "path": (list(sys.path), os.getcwd(), os.umask(os.umask(0o22)) and None),
        "warnings": list(warnings.filters),
        "random state": (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
                  torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
                  torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(),
                  torch.cuda.is_initialized(), torch.distributed.is_initialized()),
        "pillow": (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES),
        "numpy": numpy.geterr(),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "locale": locale.setlocale(locale.LC_ALL),
        "socket": socket.getdefaulttimeout(),
        "files": sorted(map(str, pathlib.Path(os.environ["HOME"]).rglob("*"))),
    }
import PIL.ImageFile
before = facts()
names = [m.name for m in pkgutil.walk_packages(sohes.__path__, "sohes.") if "triton" not in m.name]
assert len(names) > 60
for name in names:
    importlib.import_module(name)
after = facts()
changed = [key for key in before if before[key] != after[key]]
assert not changed, {key: (before[key], after[key]) for key in changed}
"""


def test_importing_everything_is_quiet_and_changes_nothing(tmp_path):
    """No handler, thread, process, file, seed, hook or setting of torch; nothing printed."""
    folder = ROOT if IN_CHECKOUT else tmp_path
    assert run_python(IMPORT_EVERYTHING, folder, TMPDIR=str(tmp_path), HOME=str(tmp_path)) == ""


@pytest.mark.skipif(not IN_CHECKOUT, reason="needs the sources")
@pytest.mark.parametrize("value", ["gpu", "CPU", ""])
def test_build_refuses_unknown_variant(value, tmp_path):
    pytest.importorskip("setuptools")
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "SOHES_BUILD": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"SOHES_BUILD={value!r} is not one of auto, cuda, cpu, none" in done.stderr


@pytest.mark.skipif(not IN_CHECKOUT, reason="needs the sources")
def test_build_without_toolchain(tmp_path):
    """Asking for kernels without CMake fails and says so; `auto` installs without them and records why."""
    pytest.importorskip("setuptools")
    env = {**os.environ, "PATH": str(tmp_path), "CUDACXX": "", "CUDA_HOME": ""}

    def build(mode, out):
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(out)]
        return subprocess.run(
            command, cwd=ROOT, env={**env, "SOHES_BUILD": mode}, capture_output=True, text=True, check=False
        )

    asked = build("cpu", tmp_path / "asked")
    assert asked.returncode != 0
    assert "SOHES_BUILD=cpu was asked for, but: cmake is not on PATH" in asked.stderr
    auto = build("auto", tmp_path / "auto")
    assert auto.returncode == 0, auto.stderr
    facts = json.loads((tmp_path / "auto" / "sohes" / "_build.json").read_text())
    assert facts["variant"] == "none"
    assert facts["skipped"]["cpu"] == "cmake is not on PATH"
    assert not list((tmp_path / "auto").rglob("_C*"))
