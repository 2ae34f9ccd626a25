# SPDX-License-Identifier: Apache-2.0
"""Reads and writes model folders with `model.safetensors` and `config.json`; keys and shapes must match exactly."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sohes.configs.io import ConfigError, from_dict, to_dict
from sohes.configs.model import ModelConfig
from sohes.configs.run import InferConfig
from sohes.utils.errors import SohesError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
HUB_PREFIX = "hf:"
NUM_SHOWN_DIFFERENCES = 20

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class WeightsError(SohesError, RuntimeError):
    """Weights are missing, unreadable, or do not fit the model."""


def key_differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """One line per key that is missing, unexpected or of another shape."""
    lines = [f"missing     {key} {list(expected[key].shape)}" for key in sorted(expected.keys() - found.keys())]
    lines += [f"unexpected  {key} {list(found[key].shape)}" for key in sorted(found.keys() - expected.keys())]
    lines += [
        f"shape       {key} is {list(found[key].shape)}, expected {list(expected[key].shape)}"
        for key in sorted(expected.keys() & found.keys())
        if expected[key].shape != found[key].shape
    ]
    return lines


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` into `module`. Raises WeightsError with the differences, before any change, if keys do not match."""
    lines = key_differences(module.state_dict(), state)
    if lines:
        hidden = len(lines) - NUM_SHOWN_DIFFERENCES
        shown = lines[:NUM_SHOWN_DIFFERENCES] + ([f"... and {hidden} more"] if hidden > 0 else [])
        raise WeightsError(f"weights in {source} do not fit the model:\n  " + "\n  ".join(shown))
    module.load_state_dict(state, strict=True)


def save_weights(folder: Path, state: dict[str, Tensor], model_config: ModelConfig, infer_config: InferConfig) -> None:
    """Write a model's state dict and settings; each file appears complete or not at all."""
    settings = {"model": to_dict(model_config), "infer": to_dict(infer_config)}
    write_model(folder, state, settings)


def write_model(folder: Path, state: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Write a state dict and settings; each file appears complete or not at all.

    Raises WeightsError when they cannot be written, for example on a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            save_file(state, Path(partial, WEIGHTS_FILE), metadata={"format": "pt"})
            Path(partial, CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
            # safetensors may make the file readable by its owner only; use the mode that the umask gives.
            shutil.copymode(Path(partial, CONFIG_FILE), Path(partial, WEIGHTS_FILE))
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                os.replace(Path(partial, name), folder / name)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"cannot write {folder / WEIGHTS_FILE}: {error}") from error


def find_weights(path_or_hub_id: str | os.PathLike) -> Path:
    """The folder with `model.safetensors`: the path itself, `weights/` of a run, or a download from Hugging Face.

    In a run, the last phase counts: correct before instruct. `hf:owner/name` is a repository of the Hugging Face hub,
    and so is `owner/name` unless it looks like a path, see `is_path`.

    Raises:
        WeightsError: nothing found; the message lists the places, or the nearest existing folder.
    """
    if not isinstance(path_or_hub_id, str | os.PathLike) or isinstance(os.fspath(path_or_hub_id), bytes):
        raise WeightsError(f"expected a folder or hf:owner/name, got {type(path_or_hub_id).__name__}")
    name = os.fspath(path_or_hub_id)
    if isinstance(path_or_hub_id, str) and name.startswith(HUB_PREFIX):
        return _download(name.removeprefix(HUB_PREFIX), "")
    path = Path(name).expanduser()
    if path.is_dir():
        tried = [path, path / "weights", path / "weights" / "correct", path / "weights" / "instruct"]
        tried += [path / "correct", path / "instruct"]
        for folder in tried:
            if (folder / WEIGHTS_FILE).is_file():
                return folder
        places = ", ".join(str(folder) for folder in tried[:4])
        raise WeightsError(f"no {WEIGHTS_FILE} in {path} (looked in {places})")
    if path.exists():
        raise WeightsError(f"{name} is a file, expected the folder with {WEIGHTS_FILE} and {CONFIG_FILE}")
    if not isinstance(path_or_hub_id, str) or is_path(name):
        raise WeightsError(
            f"no folder {name!r}{_nearest_folder(path)}; expected one with {WEIGHTS_FILE} and {CONFIG_FILE}, or "
            f"{HUB_PREFIX}owner/name for a model on the Hugging Face hub"
        )
    return _download(name, f"there is no folder {name!r} here, so the Hugging Face hub was asked; ")


def is_path(name: str) -> bool:
    """Whether the name of a model that does not exist as a folder is meant as a path, not as a hub repository.

    True for everything except `owner/name`: names that start with `.`, `/`, `~` or `runs/`, that have no slash or
    several, or characters that the hub does not allow; also if the part before the slash is an existing file or folder.
    """
    owner = name.split("/")[0]
    return _HUB_ID.fullmatch(name) is None or owner == "runs" or os.path.lexists(owner)


def _nearest_folder(path: Path) -> str:
    """For messages: a folder of similar name to a missing path, or its nearest existing parent folder."""
    parent = path.parent
    missing = path.name
    while not parent.is_dir():
        parent, missing = parent.parent, parent.name
    try:
        names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir())
    except OSError:
        names = []
    near = difflib.get_close_matches(missing, names, n=1)
    return f"; did you mean {str(parent / near[0])!r}?" if near else f", nearest existing folder: {str(parent)!r}"


def _download(name: str, why: str) -> Path:
    """The local copy of a hub repository, from the cache or the network. `why` is the start of error messages."""
    if _HUB_ID.fullmatch(name) is None:
        raise WeightsError(f"expected {HUB_PREFIX}owner/name, got {HUB_PREFIX}{name}")
    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS_FILE, CONFIG_FILE]))
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{why}cannot get {HUB_PREFIX}{name} from the hub: {reason}") from error


def read_weights(folder: Path) -> tuple[dict[str, Tensor], ModelConfig, InferConfig]:
    """State dict and settings of a folder. Raises WeightsError for missing, damaged or foreign files."""
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name} is missing")
    try:
        model_config, infer_config = _read_settings(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except (ValueError, RecursionError, OSError) as error:  # JSON, UTF-8 and ConfigError are ValueErrors
        reason = " ".join(str(error).split())
        raise WeightsError(f"{folder / CONFIG_FILE} does not describe a model: {reason}") from error
    try:
        state = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{folder / WEIGHTS_FILE} is damaged or truncated: {error}") from error
    # The file has the trained backbone: the weights that training started from are not needed.
    return state, replace(model_config, backbone_weights=""), infer_config


def _read_settings(settings: object) -> tuple[ModelConfig, InferConfig]:
    """Settings from `save_weights`. Each model setting must be present, as defaults may belong to another model."""
    sections: dict[str, dict[str, Any]] = {}
    for section in ("model", "infer"):
        if not isinstance(settings, dict) or not isinstance(settings.get(section), dict):
            raise ConfigError(f"expected a section {section!r} with settings by name")
        sections[section] = settings[section]
    missing = [field.name for field in fields(ModelConfig) if field.name not in sections["model"]]
    if missing:
        raise ConfigError(f"model lacks {', '.join(missing)}")
    model_config = from_dict(ModelConfig, sections["model"], where="model")
    return model_config, from_dict(InferConfig, sections["infer"], where="infer")
