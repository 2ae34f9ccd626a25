# SPDX-License-Identifier: Apache-2.0
"""Models on disk: a folder with `model.safetensors` and `config.json`, read strictly."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sohes import config as configuration
from sohes.config import ConfigError, InferConfig, ModelConfig
from sohes.errors import SohesError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
NUM_SHOWN_DIFFERENCES = 20


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

    Of a run with several phases the last one counts: correct, then instruct.

    Raises:
        WeightsError: nothing there; the message lists where it looked.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        tried = [path, path / "weights", path / "weights" / "correct", path / "weights" / "instruct"]
        tried += [path / "correct", path / "instruct"]
        for folder in tried:
            if (folder / WEIGHTS_FILE).is_file():
                return folder
        places = ", ".join(str(folder) for folder in tried[:4])
        raise WeightsError(f"no {WEIGHTS_FILE} in {path} (looked in {places})")
    name = str(path_or_hub_id)
    if path.exists() or path.is_absolute() or name.count("/") != 1 or name.startswith("."):
        raise WeightsError(f"no weights at {name}: expected a folder with {WEIGHTS_FILE} and {CONFIG_FILE}")
    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS_FILE, CONFIG_FILE]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"no folder {name}, and not to be had from the hub either: {reason}") from error


def read_weights(folder: Path) -> tuple[dict[str, Tensor], ModelConfig, InferConfig]:
    """State dict and settings of a folder. Raises WeightsError for files that are missing, damaged or not ours."""
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name} is missing")
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text())
        model_config = configuration.from_dict(ModelConfig, settings["model"], where="model")
        infer_config = configuration.from_dict(InferConfig, settings["infer"], where="infer")
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError, ConfigError) as error:
        raise WeightsError(f"{folder / CONFIG_FILE} does not describe a model: {error}") from error
    try:
        state = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{folder / WEIGHTS_FILE} is damaged or truncated: {error}") from error
    # The file holds the backbone as trained: building must not fetch the weights training started from.
    return state, replace(model_config, backbone_weights=""), infer_config
