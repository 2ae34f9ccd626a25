# SPDX-License-Identifier: Apache-2.0
"""`Segmenter`: segments photos with a trained model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sohes.configs.checks import check_saved
from sohes.configs.model import ModelConfig
from sohes.configs.run import InferConfig
from sohes.data.images import image_to_tensor, read_image
from sohes.models.export import save_vit
from sohes.models.inference import predict
from sohes.models.segmenter_model import SohesModel, build_model
from sohes.models.vit_adapter import ViTAdapter
from sohes.models.weights import CONFIG_FILE, WeightsError, find_weights, load_strictly, read_weights, save_weights
from sohes.structures.forest import Forest
from sohes.utils.devices import require_device
from sohes.utils.errors import SohesError

ImageInput = str | os.PathLike | Tensor | np.ndarray | Image.Image
_IMAGE_TYPES = (str, os.PathLike, Tensor, np.ndarray, Image.Image)
_ACCEPTED = (
    "expected a path, a uint8 tensor [3, H, W] or [1, H, W], a uint8 array [H, W, 3] or [H, W], or a PIL image, none "
    "of them empty"
)
# What timm and torch raise for settings that describe no model.
_BUILD_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NotImplementedError),
    *(RuntimeError, TypeError, ValueError),
)


class ImageInputError(SohesError, TypeError, ValueError):
    """The input is not an image of an accepted type; the message lists them."""


class Segmenter:
    """Segments photos into entities and parts. Has a model and settings, but no state, so threads may share it.

    >>> segmenter = Segmenter.from_pretrained("runs/default")
    >>> forest = segmenter("photo.jpg")[0]
    """

    def __init__(self, model: SohesModel, model_config: ModelConfig, infer_config: InferConfig) -> None:
        self.model = model
        self.model_config = model_config
        self.infer_config = infer_config

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | os.PathLike, device: torch.device | str = "cpu") -> Segmenter:
        """Load a folder with `model.safetensors` and `config.json`, a run folder, or a repository of Hugging Face.

        Repositories are `hf:owner/name`, or `owner/name` if that cannot be a path, see `find_weights`.

        Raises:
            WeightsError: the files are missing or damaged, or the weights do not fit the settings.
            DeviceError: a CUDA device that torch does not see.
        """
        require_device(device)
        folder = find_weights(path_or_hub_id)
        state, model_config, infer_config = read_weights(folder)
        model = _rebuild(model_config, infer_config, state, folder)
        return cls(model.to(device).eval(), model_config, infer_config)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write a folder for `from_pretrained`. If interrupted, the old files stay."""
        save_weights(Path(folder), self.model.state_dict(), self.model_config, self.infer_config)

    def save_backbone(self, folder: str | os.PathLike) -> None:
        """Write only the ViT, for `timm.create_model(f"local-dir:{folder}", pretrained=True)`.

        Raises:
            WeightsError: the backbone is not a plain ViT.
        """
        if not isinstance(self.model.backbone, ViTAdapter):
            raise WeightsError(f"only a plain ViT can be saved on its own, not {self.model_config.backbone!r}")
        arguments = {"num_classes": 0, "global_pool": "token", "dynamic_img_size": True}
        arguments |= self.model_config.backbone_kwargs
        save_vit(Path(folder), self.model.backbone.vit, self.model_config.backbone.split(".")[0], arguments)

    def __call__(self, images: ImageInput | Sequence[ImageInput]) -> list[Forest]:
        """One forest per image, at the image's own size, best scores first.

        Args:
            images: one or a list of: path, uint8 tensor [3, H, W] or [1, H, W], uint8 array [H, W, 3] or [H, W],
                PIL image. Files are turned upright by their EXIF orientation; images in memory are taken as they are
                (for a PIL image see `PIL.ImageOps.exif_transpose`).

        Raises:
            UnreadableImage: a file is not an image.
            ImageInputError: the input has another type or shape; the message says what is accepted.
        """
        if isinstance(images, _IMAGE_TYPES):
            images = [images]
        elif isinstance(images, bytes | bytearray | Mapping) or not isinstance(images, Iterable):
            raise ImageInputError(f"{_ACCEPTED}, or a list of those, got {_describe(images)}")
        return predict(self.model, [to_tensor(image) for image in images], self.infer_config)

    def __repr__(self) -> str:
        device = next(self.model.parameters()).device
        return f"Segmenter({self.model_config.backbone!r}, {self.model.num_queries} queries, {device})"


def _rebuild(
    model_config: ModelConfig, infer_config: InferConfig, state: dict[str, Tensor], folder: Path
) -> SohesModel:
    """The saved model. Raises WeightsError, with a message of one line for wrong settings."""
    try:
        check_saved(model_config, infer_config)
        with torch.device("cpu"):  # also if the caller has set another default device
            model = build_model(model_config)
    except _BUILD_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{folder / CONFIG_FILE} does not describe a model: {reason}") from error
    load_strictly(model, state, str(folder))
    return model


def to_tensor(image: ImageInput) -> Tensor:
    """An image of any accepted type as uint8 [3, H, W]."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        return image_to_tensor(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        tensor = torch.from_numpy(np.ascontiguousarray(image))
        tensor = tensor[None] if tensor.dim() == 2 else tensor.movedim(-1, 0)
    elif isinstance(image, Tensor):
        tensor = image
    else:
        raise ImageInputError(f"{_ACCEPTED}, got {_describe(image)}")
    if tensor.dtype != torch.uint8 or tensor.dim() != 3 or tensor.shape[0] not in (1, 3) or 0 in tensor.shape:
        raise ImageInputError(f"{_ACCEPTED}, got {_describe(image)}")
    return tensor.expand(3, -1, -1)


def _describe(given: object) -> str:
    if isinstance(given, np.ndarray | Tensor):
        kind = "an array" if isinstance(given, np.ndarray) else "a tensor"
        text = f"{kind} of {str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
        return text + ("; a batch is given as a list of images" if len(given.shape) == 4 else "")
    if isinstance(given, bytes | bytearray):
        return f"{type(given).__name__}; Image.open(io.BytesIO(...)) of PIL reads encoded images"
    return type(given).__name__
