# SPDX-License-Identifier: Apache-2.0
"""`Segmenter`: trained weights in, forests of masks out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sohes.config import InferConfig, ModelConfig
from sohes.data.images import image_to_tensor, read_image
from sohes.forest import Forest
from sohes.models.export import save_vit
from sohes.models.inference import predict
from sohes.models.segmenter_model import SohesModel, build_model
from sohes.models.vit_adapter import ViTAdapter
from sohes.models.weights import WeightsError, find_weights, load_strictly, read_weights, save_weights

Picture = str | os.PathLike | Tensor | np.ndarray | Image.Image


class Segmenter:
    """Segments photos into entities and parts. Holds a model and settings, and no state: threads may share one.

    >>> segmenter = Segmenter.from_pretrained("runs/default")
    >>> forest = segmenter("photo.jpg")[0]
    """

    def __init__(self, model: SohesModel, model_config: ModelConfig, infer_config: InferConfig) -> None:
        self.model = model
        self.model_config = model_config
        self.infer_config = infer_config

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | os.PathLike, device: torch.device | str = "cpu") -> Segmenter:
        """Load a folder with `model.safetensors` and `config.json`, a run folder, or a repository of the hub.

        Raises:
            WeightsError: the files are missing or damaged, or do not fit the model key by key.
        """
        folder = find_weights(path_or_hub_id)
        state, model_config, infer_config = read_weights(folder)
        with torch.device("cpu"):  # whatever the default of the program around is
            model = build_model(model_config)
        load_strictly(model, state, str(folder))
        return cls(model.to(device).eval(), model_config, infer_config)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write what `from_pretrained` reads. An interrupted write leaves the old files."""
        save_weights(Path(folder), self.model.state_dict(), self.model_config, self.infer_config)

    def save_backbone(self, folder: str | os.PathLike) -> None:
        """Write the trained ViT alone: `timm.create_model(f"local-dir:{folder}", pretrained=True)` opens it.

        Raises:
            WeightsError: the backbone is no plain ViT.
        """
        if not isinstance(self.model.backbone, ViTAdapter):
            raise WeightsError(f"only a plain ViT can be saved alone, not {self.model_config.backbone!r}")
        arguments = {"num_classes": 0, "global_pool": "token", "dynamic_img_size": True}
        arguments |= self.model_config.backbone_kwargs
        save_vit(Path(folder), self.model.backbone.vit, self.model_config.backbone.split(".")[0], arguments)

    def __call__(self, images: Picture | Sequence[Picture]) -> list[Forest]:
        """One forest per image, at the image's own size, best scores first.

        Args:
            images: one or a list of: path, uint8 tensor [3, H, W] or [1, H, W], uint8 array [H, W, 3] or [H, W],
                PIL image.

        Raises:
            UnreadableImage: a file that is not an image.
            TypeError, ValueError: something else.
        """
        if isinstance(images, str | os.PathLike | np.ndarray | Image.Image | Tensor):
            images = [images]
        return predict(self.model, [to_tensor(image) for image in images], self.infer_config)


def to_tensor(image: Picture) -> Tensor:
    """Any kind of picture as uint8 [3, H, W]."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        return image_to_tensor(image)
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.ascontiguousarray(image))
        tensor = tensor[None] if tensor.dim() == 2 else tensor.movedim(-1, 0)
    elif isinstance(image, Tensor):
        tensor = image
    else:
        raise TypeError(f"expected a path, tensor, array or PIL image, got {type(image).__name__}")
    if tensor.dtype != torch.uint8 or tensor.dim() != 3 or tensor.shape[0] not in (1, 3) or 0 in tensor.shape:
        raise ValueError(
            f"expected an image of uint8, tensor [3, H, W] or array [H, W, 3], got {image.dtype} {list(image.shape)}"
        )
    return tensor.expand(3, -1, -1)
