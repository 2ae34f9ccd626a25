# SPDX-License-Identifier: Apache-2.0
"""Models on disk: a folder with `model.safetensors` and `config.json`, read strictly."""

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

from sohes.configs import run as configuration
from sohes.configs.run import ConfigError, InferConfig, ModelConfig
from sohes.utils.errors import SohesError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
HUB_PREFIX = "hf:"
NUM_SHOWN_DIFFERENCES = 20

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class WeightsError(SohesError, RuntimeError):
    """Weights are missing, unreadable, or do not fit the model."""


def key_differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """One line per key that is missing, not expected, or of another shape."""
    lines = [f"missing     {key} {list(expected[key].shape)}" for key in sorted(expected.keys() - found.keys())]
    lines += [f"unexpected  {key} {list(found[key].shape)}" for key in sorted(found.keys() - expected.keys())]
    lines += [
        f"shape       {key} is {list(found[key].shape)}, expected {list(expected[key].shape)}"
        for key in sorted(expected.keys() & found.keys())
        if expected[key].shape != found[key].shape
    ]
    return lines


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy `state` into `module`, or raise WeightsError with the difference of keys and change nothing."""
    lines = key_differences(module.state_dict(), state)
    if lines:
        hidden = len(lines) - NUM_SHOWN_DIFFERENCES
        shown = lines[:NUM_SHOWN_DIFFERENCES] + ([f"... and {hidden} more"] if hidden > 0 else [])
        raise WeightsError(f"weights in {source} do not fit the model:\n  " + "\n  ".join(shown))
    module.load_state_dict(state, strict=True)


def save_weights(folder: Path, state: dict[str, Tensor], model_config: ModelConfig, infer_config: InferConfig) -> None:
    """Write a model's state dict and its settings; each file appears complete or not at all."""
    settings = {"model": configuration.to_dict(model_config), "infer": configuration.to_dict(infer_config)}
    write_model(folder, state, settings)


def write_model(folder: Path, state: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Write a state dict beside its settings; each file appears complete or not at all.

    Raises WeightsError when it cannot be written: a full disk, say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            save_file(state, Path(partial, WEIGHTS_FILE), metadata={"format": "pt"})
            Path(partial, CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
            # safetensors may write for the owner alone; others of a group shall read as the umask says.
            shutil.copymode(Path(partial, CONFIG_FILE), Path(partial, WEIGHTS_FILE))
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                os.replace(Path(partial, name), folder / name)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"cannot write {folder / WEIGHTS_FILE}: {error}") from error


def find_weights(path_or_hub_id: str | os.PathLike) -> Path:
    """The folder that holds `model.safetensors`: the path itself, `weights/` of a run, or a download from the hub.

    Of a run with several phases the last one counts: correct, then instruct. `hf:owner/name` is a repository of the
    Hugging Face hub; so is `owner/name` where nothing here says that it is meant as a path, see `is_path`.

    Raises:
        WeightsError: nothing there; the message lists where it looked, or the nearest folder there is.
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
            f"{HUB_PREFIX}owner/name for a model of the Hugging Face hub"
        )
    return _download(name, f"there is no folder {name!r} here, so the Hugging Face hub was asked; ")


def is_path(name: str) -> bool:
    """Is the name of a model that is not there meant as a path, and so not to be asked from a hub?

    So it is unless it is `owner/name`: anything that starts with `.`, `/`, `~` or `runs/`, has no or several slashes or
    a letter that names on the hub cannot have, and also when its first part is a file or folder here.
    """
    owner = name.split("/")[0]
    return _HUB_ID.fullmatch(name) is None or owner == "runs" or os.path.lexists(owner)


def _nearest_folder(path: Path) -> str:
    """What there is in place of a path that does not exist, for a message."""
    there = path.parent
    missing = path.name
    while not there.is_dir():
        there, missing = there.parent, there.name
    try:
        names = sorted(entry.name for entry in there.iterdir() if entry.is_dir())
    except OSError:
        names = []
    near = difflib.get_close_matches(missing, names, n=1)
    return f"; did you mean {str(there / near[0])!r}?" if near else f", nearest there is: {str(there)!r}"


def _download(name: str, why: str) -> Path:
    """The folder of a repository of the hub, from its cache or from the network. `why` begins the message of errors."""
    if _HUB_ID.fullmatch(name) is None:
        raise WeightsError(f"expected {HUB_PREFIX}owner/name, got {HUB_PREFIX}{name}")
    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS_FILE, CONFIG_FILE]))
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{why}cannot get {HUB_PREFIX}{name} from the hub: {reason}") from error


def read_weights(folder: Path) -> tuple[dict[str, Tensor], ModelConfig, InferConfig]:
    """State dict and settings of a folder. Raises WeightsError for files that are missing, damaged or not ours."""
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
    # The file holds the backbone as trained: building must not fetch the weights training started from.
    return state, replace(model_config, backbone_weights=""), infer_config


def _read_settings(settings: object) -> tuple[ModelConfig, InferConfig]:
    """What `save_weights` stored. Every setting of the model has to be there: a default might be of another model."""
    for section in ("model", "infer"):
        if not isinstance(settings, dict) or not isinstance(settings.get(section), dict):
            raise ConfigError(f"expected a section {section!r} with settings by name")
    missing = [field.name for field in fields(ModelConfig) if field.name not in settings["model"]]
    if missing:
        raise ConfigError(f"model lacks {', '.join(missing)}")
    model_config = configuration.from_dict(ModelConfig, settings["model"], where="model")
    return model_config, configuration.from_dict(InferConfig, settings["infer"], where="infer")
