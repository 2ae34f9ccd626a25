# SPDX-License-Identifier: Apache-2.0
"""Patch features of photos: the weight-free descriptor, or the last block of a timm ViT."""

from __future__ import annotations

import difflib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.configs.io import ConfigError
from sohes.configs.run import ExploreConfig
from sohes.labels.descriptor import describe
from sohes.labels.view import View, fit_area, make_view
from sohes.models.backbone import load_vit_weights, packaged_folder, packaged_names
from sohes.models.weights import WeightsError
from sohes.utils.devices import pick_device

_NOT_OF_TIMM = (
    *(OSError, AssertionError, AttributeError, LookupError, RecursionError, RuntimeError, SafetensorError),
    *(ValueError, pickle.UnpicklingError),
)
"""Raised by timm and file readers for a folder that is not in timm's format."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FeatureExtractor(Protocol):
    """Turns photos into views with a grid of patches, and views into one feature per patch.

    device: where networks run, its own and a refiner's; results are on the CPU.
    """

    config: ExploreConfig
    device: torch.device

    def view(self, image: Tensor, scale: float = 1.0) -> View:
        """A photo uint8 [3, H, W] at working size times `scale`, aspect ratio kept."""
        ...

    def __call__(self, views: Sequence[View]) -> list[Tensor]:
        """Views of any sizes -> float32 [h, w, C] each."""
        ...


def snap_rounds(config: ExploreConfig) -> int:
    """Rounds of the assignment of pixels to patches; 0 for basins, whose borders are sharp already."""
    return config.snap_rounds if config.start == "patches" else 0


def reduced_size(photo_size: tuple[int, int], side: int, scale: float) -> tuple[int, int]:
    """(H, W) of a photo that is shrunk to at most side^2 pixels, times `scale`."""
    area = min(photo_size[0] * photo_size[1], side**2)
    return fit_area(photo_size, scale**2 * area, 1, enlarge=False)


class DescriptorExtractor:
    """The descriptor of `sohes.labels.descriptor`. Photos are reduced to the working area, never enlarged."""

    def __init__(self, config: ExploreConfig, device: torch.device) -> None:
        self.config, self.device = config, device

    def view(self, image: Tensor, scale: float = 1.0) -> View:
        config = self.config
        size = reduced_size((image.shape[1], image.shape[2]), config.side, scale)
        grid = (max(1, round(size[0] / config.patch)), max(1, round(size[1] / config.patch)))
        return make_view(image, size, grid, snap_rounds(config), config.compactness)

    def __call__(self, views: Sequence[View]) -> list[Tensor]:
        return [describe(view, self.config) for view in views]


class ViTExtractor:
    """One facet of a ViT's last attention, without class and register tokens. Threads may share it.

    vit: a plain ViT, or timm's Eva with rotary positions, such as DINOv3; positions are resampled to each view's grid.
    The facet of the config is key, query or value (before any norm or rotation), or output (the normalised output of
    the network). Images are normalised by the weights' own mean and std. Runs on `device` in `config.precision`;
    features are float32 on the CPU.
    """

    def __init__(self, vit: VisionTransformer | Eva, config: ExploreConfig, device: torch.device) -> None:
        self.device = device
        self.dtype = _DTYPES[config.precision]
        self.vit, self.config = vit.eval().requires_grad_(False).to(self.device, self.dtype), config
        patch = vit.patch_embed.feat_ratio()
        assert isinstance(patch, int)
        self.patch = patch
        settings = cast("dict[str, Any]", vit.pretrained_cfg)
        self.mean, self.std = (
            torch.tensor(settings.get(name, (0.5, 0.5, 0.5)), dtype=torch.float32, device="cpu")[:, None, None]
            for name in ("mean", "std")
        )  # [3, 1, 1] each

    def view(self, image: Tensor, scale: float = 1.0) -> View:
        config = self.config
        photo_size = (image.shape[1], image.shape[2])
        side = scale * config.side
        if config.feature_side == 0:
            size = fit_area(photo_size, side**2, self.patch, enlarge=True)
            grid = (size[0] // self.patch, size[1] // self.patch)
        else:
            size = reduced_size(photo_size, config.side, scale)
            input_size = fit_area(photo_size, min(config.feature_side, side) ** 2, self.patch, enlarge=True)
            grid = (min(input_size[0] // self.patch, size[0]), min(input_size[1] // self.patch, size[1]))
        return make_view(image, size, grid, snap_rounds(config), config.compactness)

    def __call__(self, views: Sequence[View]) -> list[Tensor]:
        """Views of equal grid are one batch."""
        features: list[Tensor] = [torch.empty(0, device="cpu")] * len(views)
        for grid in dict.fromkeys(view.grid for view in views):
            group = [i for i, view in enumerate(views) if view.grid == grid]
            images = torch.stack([(self._input(views[i]) / 255 - self.mean) / self.std for i in group])  # [B, 3, H, W]
            tokens = self._forward(images.to(self.device, self.dtype)).float().cpu()  # [B, h*w, C]
            for i, feature in zip(group, tokens, strict=True):
                features[i] = feature.reshape(*grid, -1)
        return features

    def _input(self, view: View) -> Tensor:
        """A view as the network's input, float32 [3, h*patch, w*patch] in 0..255."""
        size = (view.grid[0] * self.patch, view.grid[1] * self.patch)
        if view.image.shape[1:] == size:
            return view.image.float()
        return F.interpolate(view.image[None].float(), size, mode="bilinear", antialias=True)[0]

    @torch.no_grad()
    def _forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> patch features [B, h*w, C]."""
        prefix = self.vit.num_prefix_tokens
        if self.config.facet == "output":
            return self.vit.forward_features(images)[:, prefix:]
        # The input of the last block. Its norm and projection act on each token alone, so only patch tokens are needed.
        depth = len(self.vit.blocks)
        intermediates = self.vit.forward_intermediates(
            images, indices=[depth - 2], output_fmt="NLC", stop_early=True, intermediates_only=True
        )
        assert isinstance(intermediates, list)
        (tokens,) = intermediates  # [B, h*w, D]
        last = self.vit.blocks[-1]
        assert isinstance(last, Block | EvaBlock)  # as _check_facet has seen to
        return _project(last.attn, last.norm1(tokens), self.config.facet)


def _project(attention: nn.Module, tokens: Tensor, facet: str) -> Tensor:
    """Query, key or value of tokens [B, L, D] in an attention of timm, [B, L, C].

    The attention has three projections, or one joint matrix `qkv`, with joint or separate biases.
    """
    qkv = attention.qkv
    if not isinstance(qkv, nn.Linear):
        return getattr(attention, f"{facet[0]}_proj")(tokens)
    index = ("query", "key", "value").index(facet)
    bias = None
    if qkv.bias is not None:
        bias = qkv.bias.chunk(3)[index]
    elif getattr(attention, "q_bias", None) is not None:
        bias = getattr(attention, f"{facet[0]}_bias")
    return F.linear(tokens, qkv.weight.chunk(3)[index], bias)


def build_extractor(config: ExploreConfig, device: torch.device | None = None) -> FeatureExtractor:
    """The feature extractor of a config, with its weights loaded.

    device: for a GPU with its index. Default: the current GPU if there is one.

    Raises:
        WeightsError: weights are missing, do not fit, or cannot be fetched.
        ConfigError: timm has no such ViT.
    """
    device = pick_device() if device is None else device
    if config.features == "descriptor":
        return DescriptorExtractor(config, device)
    name = config.features
    fetch = config.weights == "timm"
    folder = packaged_folder(name) or Path(name)
    with torch.device("cpu"):  # the calling program may have set another default device
        # A folder with settings and weights, from sohes.pretrain or a download of a timm model, or a name of timm.
        network = _create_local(folder, fetch) if (folder / "config.json").is_file() else _create_named(name, fetch)
    vit = _check_facet(network, config)
    if config.weights not in ("timm", "random"):
        load_vit_weights(vit, Path(config.weights))
    return ViTExtractor(vit, config, device)


def _check_facet(vit: nn.Module, config: ExploreConfig) -> VisionTransformer | Eva:
    """The same network. Raises ConfigError if it is no ViT, or does not have the facet of the config."""
    name = config.features
    if not isinstance(vit, VisionTransformer | Eva):
        raise ConfigError(f"features {name!r} is a {type(vit).__name__}, expected a plain VisionTransformer or an Eva")
    # Other kinds of blocks normalize after attention, or have several attentions in parallel.
    if config.facet != "output" and (len(vit.blocks) < 2 or type(vit.blocks[-1]) not in (Block, EvaBlock)):
        raise ConfigError(
            f"features {name!r} has {len(vit.blocks)} blocks of kind {type(vit.blocks[-1]).__name__}, of which facet "
            f"{config.facet!r} cannot be taken: expected at least two of kind Block or EvaBlock, or facet 'output'"
        )
    return vit


def _create_local(folder: Path, fetch: bool) -> nn.Module:
    """The network of a folder in timm's format. Raises as `build_extractor`."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = settings.get("architecture") if isinstance(settings, dict) else None
        if not isinstance(architecture, str) or not timm.is_model(architecture):
            raise WeightsError(f"features: {folder} holds no timm model: config.json names no architecture of timm")
        return timm.create_model(f"local-dir:{folder}", pretrained=fetch, num_classes=0, dynamic_img_size=True)
    except WeightsError:
        raise
    except TypeError as error:  # other kinds of networks have no argument `dynamic_img_size`
        reason = f"{architecture!r} is no ViT for images of any size, or has unknown settings ({error})"
        raise ConfigError(f"features: {folder}: {reason}") from error
    except _NOT_OF_TIMM as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"features: {folder} holds no timm model: {reason}") from error


def _create_named(name: str, fetch: bool) -> nn.Module:
    """A network by its timm name. Raises as `build_extractor`."""
    if not name.startswith("vit_") or not timm.is_model(name.split(".")[0]):
        near = ", ".join(difflib.get_close_matches(name.split(".")[0], timm.list_models("vit_*"), n=3))
        raise ConfigError(
            f"features {name!r}: expected 'descriptor', {', '.join(map(repr, packaged_names()))}, a folder with a timm "
            f"model, or a ViT of timm (vit_*); near: {near or 'none'}"
        )
    if fetch and not timm.models.is_model_pretrained(name):  # timm itself would continue with random weights
        known = ", ".join(timm.list_pretrained(name.split(".")[0] + ".*"))
        raise WeightsError(
            f"timm has no weights for {name!r}, only for: {known or 'none of that architecture'}; set weights to a "
            "local file, or to 'random' for untrained features"
        )
    try:
        return timm.create_model(name, pretrained=fetch, num_classes=0, dynamic_img_size=True)
    except TypeError as error:  # for instance with relative positions, which are for one size
        raise ConfigError(f"features {name!r} cannot take images of any size: {error}") from error
    except (OSError, HfHubHTTPError) as error:
        raise WeightsError(
            f"could not fetch the weights of {name!r} ({type(error).__name__}); without a network set weights to a "
            "local file (.safetensors, .pth), or to 'random' for untrained features, or features to a folder with a "
            "timm model (config.json and model.safetensors)"
        ) from error
