# SPDX-License-Identifier: Apache-2.0
"""Photos, views and batches do not depend on the default device and dtype of torch."""

import dataclasses

import numpy as np
import pytest
import torch
from micro import default_dtype
from PIL import Image

from sohes.configs.pretrain import CropConfig, DistortConfig
from sohes.configs.run import ViewConfig
from sohes.data.coco import LabelSet
from sohes.data.crops import cut_crops, cut_labels, distort, draw_boxes, draw_patch_masks, gaussian_blur
from sohes.data.dataset import LabelDataset
from sohes.data.images import image_to_tensor, read_annotated, read_image
from sohes.data.photo_pack import shrink, write_pack
from sohes.data.photos import PhotoSet, photo_batches, photo_canvas
from sohes.data.sampling import batches
from sohes.data.scenes import draw_scene, write_scenes
from sohes.data.sources import list_images
from sohes.data.transforms import (
    StrongView,
    draw_geometry,
    normalize,
    strong_view,
    view_image,
    view_masks,
    view_valid,
    visible_masks,
)

VIEWS = ViewConfig(size=48, scale=(0.6, 1.8), cache_mb=16)
STRONG = StrongView(jitter_probability=1.0, gray_probability=0.3, blur_probability=1.0)


OTHERS = {
    "meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num=5, size=64, seed=0)


@pytest.fixture(scope="module")
def works(folder):
    """Name -> function to test. Inputs are made here, before the defaults change."""
    photos = list_images(folder / "images")
    labels = LabelSet(folder)
    labelled, image = labels[0], photos.read(0)
    geometry = draw_geometry(np.random.default_rng(4), labelled.size, 48, (1.2, 1.3))
    assert geometry.visible_size == (48, 48)
    masks, ancestors = view_masks(labelled.forest.masks, geometry), labelled.forest.ancestors()
    canvases, sizes = torch.rand(4, 3, 32, 32), torch.tensor([[32, 32], [20, 32], [32, 9], [5, 5]])
    mirrored, sigma = torch.tensor([True, False, True, False]), torch.tensor([0.5, 0.9, 1.1, 1.5])
    maps, crops = torch.randint(0, 9, (4, 8, 8), dtype=torch.uint8), torch.rand(4, 3, 16, 16)
    generator = torch.Generator()
    config = DistortConfig(jitter_probability=1.0, gray_probability=0.5)

    def seeded():
        return generator.manual_seed(3)

    def boxes():
        return draw_boxes(sizes, (0.3, 0.8), CropConfig(), seeded())

    def packed(name):
        write_pack(photos, folder.parent / name, 32, 80, 1)
        return list_images(folder.parent / name).read(1)

    return {
        "read_image": lambda: read_image(photos[0]),
        "read_annotated": lambda: read_annotated(photos[0]),
        "image_to_tensor": lambda: image_to_tensor(Image.new("I;16", (3, 2), 777)),
        "shrink": lambda: shrink(image, 20),
        "write_pack": lambda: packed("pack.tar"),
        "photo_canvas": lambda: photo_canvas(image[:, :40], 80),
        "PhotoSet": lambda: [b for _, b in photo_batches(PhotoSet(photos, 48, 1, 1.0), 3, 0, 0, 3)],
        "PhotoSet.photo": lambda: PhotoSet(photos, 48, 1, 1.0).photo(2),
        "view_image": lambda: view_image(image, geometry),
        "view_masks": lambda: view_masks(labelled.forest.masks, geometry),
        "view_valid": lambda: view_valid(geometry),
        "visible_masks": lambda: visible_masks(masks, ancestors, 4),
        "strong_view": lambda: [strong_view(np.random.default_rng(k), image, STRONG) for k in range(6)],
        "normalize": lambda: normalize(image, view_valid(dataclasses.replace(geometry, size=64))[:64, :64]),
        "LabelSet": lambda: [(one.crowd, one.forest.scores, one.forest.parents) for one in LabelSet(folder)],
        "LabelDataset": lambda: LabelDataset(labels, VIEWS, seed=1, pairs=True).sample(3, 2),
        "batches": lambda: [b for _, b in batches(LabelDataset(labels, VIEWS, 1, pairs=True), 2, 0, 0, 3)],
        "batches of workers": lambda: [
            b for _, b in batches(LabelDataset(labels, VIEWS, 1), 2, 0, 0, 2, num_workers=1)
        ],
        "draw_scene": lambda: (lambda scene: (scene.image, scene.forest.scores, scene.forest.parents))(
            draw_scene(5, 64)
        ),
        "draw_boxes": boxes,
        "cut_crops": lambda: [cut_crops(canvases, boxes(), mirrored, size) for size in (8, 32)],
        "cut_labels": lambda: cut_labels(maps, boxes(), mirrored, 5, 32),
        "distort": lambda: distort(crops, config, 0.5, 0.5, seeded()),
        "gaussian_blur": lambda: gaussian_blur(crops, sigma, 1.5),
        "draw_patch_masks": lambda: draw_patch_masks(6, (7, 9), (0.1, 0.5), 0.7, seeded()),
    }


NAMES = (
    "read_image, read_annotated, image_to_tensor, shrink, write_pack, photo_canvas, PhotoSet, PhotoSet.photo, "
    "view_image, view_masks, view_valid, visible_masks, strong_view, normalize, LabelSet, LabelDataset, batches, "
    "batches of workers, draw_scene, draw_boxes, cut_crops, cut_labels, distort, gaussian_blur, draw_patch_masks"
)


def flat(value):
    """A result with every tensor replaced by (dtype, device, values)."""
    if isinstance(value, torch.Tensor):
        return [(value.dtype, value.device.type, value.tolist())]
    if dataclasses.is_dataclass(value):
        return flat([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, list | tuple):
        return [one for part in value for one in flat(part)]
    return [value]


@pytest.mark.parametrize("name", NAMES.split(", "))
@pytest.mark.parametrize("default", OTHERS)
def test_nothing_depends_on_the_defaults(works, name, default):
    expected = flat(works[name]())
    with OTHERS[default]():
        found = works[name]()
    assert flat(found) == expected


def test_every_work_has_its_test(works):
    assert sorted(works) == sorted(NAMES.split(", "))
