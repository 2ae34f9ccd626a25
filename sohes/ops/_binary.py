# SPDX-License-Identifier: Apache-2.0
"""The compiled module `sohes._C`, or the reason why it cannot be loaded.

Python started inside a checkout imports the checkout's `sohes/`, which has no binary unless it was built in place. It
then uses the binary of the installed package, if that was compiled from the same sources (compared by digest).

Standard library only: `setup.py` loads this file by its path for `source_digest`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCE_SUFFIXES = {".h", ".cuh", ".cpp", ".cu"}


@dataclass(frozen=True)
class Binary:
    """Result of the search: a module, or the reason why there is none."""

    module: ModuleType | None
    path: Path | None
    reason: str  # empty when `module` is set


def source_digest(csrc: Path) -> str:
    """SHA-256 (16 hex digits) over the names and contents of the C++/CUDA sources below `csrc`."""
    digest = hashlib.sha256()
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in _SOURCE_SUFFIXES):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def find_binary() -> Binary:
    """`sohes._C`, loaded once: from `$SOHES_BINARY` if set, else from this package, else from the installed package."""
    forced = os.environ.get("SOHES_BINARY")
    if forced:
        return _load(Path(forced), expected_digest=None)
    # A checkout has the sources next to the package; its binary must match them.
    csrc = _PACKAGE.parent / "csrc"
    expected = source_digest(csrc) if (csrc / "bindings.cpp").is_file() else None
    filename = "_C" + sysconfig.get_config_var("EXT_SUFFIX")
    folders = [_PACKAGE] + [f for f in _installed_packages() if f != _PACKAGE]
    reasons = []
    for folder in folders:
        if not (folder / filename).is_file():
            continue
        found = _load(folder / filename, expected)
        if found.module is not None:
            return found
        reasons.append(found.reason)
    if reasons:
        return Binary(None, None, "; ".join(reasons))
    return Binary(
        None, None, f"no compiled module: {build_facts(folders).get('reason', 'the package was never built')}"
    )


def require_binary() -> ModuleType:
    """The compiled module. Raises ImportError with the reason if there is none."""
    found = find_binary()
    if found.module is None:
        raise ImportError(f"sohes: the compiled module is not available: {found.reason}")
    return found.module


def build_facts(folders: list[Path] | None = None) -> dict[str, Any]:
    """Facts that `setup.py` recorded at build time (`_build.json`); {} for a checkout that was never built."""
    for folder in folders or [_PACKAGE, *_installed_packages()]:
        path = folder / "_build.json"
        if path.is_file():
            return json.loads(path.read_text())
    return {}


def _installed_packages() -> list[Path]:
    """Folders `sohes` of the installed distributions."""
    found = []
    for distribution in importlib.metadata.distributions(name="sohes"):
        folder = Path(str(distribution.locate_file("sohes"))).resolve()
        if folder.is_dir() and folder not in found:
            found.append(folder)
    return found


def _load(path: Path, expected_digest: str | None) -> Binary:
    if not path.is_file():
        return Binary(None, None, f"no file {path}")
    spec = importlib.util.spec_from_file_location("sohes._C", path)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return Binary(None, None, f"{path} does not load: {error}")
    built_from = module.build_info()["source_digest"]
    if expected_digest is not None and built_from != expected_digest:
        reason = (
            f"{path} was compiled from other sources (digest {built_from}, this checkout has {expected_digest}); "
            "run `pip install .` again"
        )
        return Binary(None, None, reason)
    sys.modules["sohes._C"] = module
    return Binary(module, path, "")
