# SPDX-License-Identifier: Apache-2.0
"""Procedurally drawn scenes with true entity/part hierarchies: a data set without a download.

A scene is a textured backdrop and 3 to 7 composite objects (`scene_objects.py`) of random look, size, rotation
and depth, with occlusion, shadows, uneven light, blur and sensor noise. The ground truth is a forest of masks of
*visible* pixels: the mask of an object is its own body and all its parts, without what is occluded.

Colours mostly follow the hierarchy: an object differs from the backdrop and its neighbours, its parts vary around
its colour, their parts around theirs. So grouping by colour finds much of the ground truth, but not all of it.

The backdrop is either one surface, which is no entity, or two (sky and ground, wall and floor), each of which is an
entity without parts.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import PCG64, Generator
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage
from torch import Tensor

from sohes.data.coco import write_coco
from sohes.data.errors import DataError
from sohes.data.scene_layout import Node, backdrop_nodes, object_nodes
from sohes.data.scene_paint import paint, smooth_noise
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks

SUPERSAMPLING = 3  # odd, so that there is a sample at the centre of a pixel, from which masks are read
MIN_FRAGMENT = 12  # pixels; smaller connected pieces are removed from masks
SAME_AS_PARENT = 0.95  # a part with more than this share of its parent's area gets no mask

SCENES_VERSION = 1  # raised with every change that draws other scenes for the same seed
SCENES_PER_SEED = 1_000_000
STAMP = "scenes.json"


@dataclass(frozen=True, eq=False)
class Scene:
    """image: uint8 [3, H, W]. forest: the visible entities and parts, all scores 1."""

    image: Tensor
    forest: Forest


def draw_scene(seed: int, size: int) -> Scene:
    """Draw scene number `seed` with `size` x `size` pixels. Equal arguments give equal bytes.

    Raises:
        ValueError: `seed` < 0 or `size` < 32 (too small for parts).
    """
    if seed < 0 or size < 32:
        raise ValueError(f"draw_scene: expected seed >= 0 and size >= 32, got seed {seed} and size {size}")
    rng = Generator(PCG64(seed))
    backdrop = backdrop_nodes(rng, size)
    nodes = backdrop + object_nodes(rng, size, [node.look.colour for node in backdrop])
    owner = _owners(nodes, size)  # [3 * size, 3 * size]
    sun = rng.uniform(0, 2 * np.pi)
    light = np.array([np.cos(sun), np.sin(sun)], dtype=np.float32)  # [2], direction to the light
    pixels = _paint_nodes(rng, nodes, owner, light * rng.uniform(0.05, 0.2))
    pixels *= _shadows(rng, nodes, len(backdrop), size, light)[..., None]
    image = torch.from_numpy(_photograph(rng, pixels)).permute(2, 0, 1).contiguous()
    middle = slice(SUPERSAMPLING // 2, None, SUPERSAMPLING)
    first_entity = 1 if len(backdrop) == 1 else 0  # a single surface is no entity
    return Scene(image, _true_forest(nodes, owner[middle, middle], first_entity))


def _owners(nodes: list[Node], size: int) -> np.ndarray:
    """The number of the node seen at every sample, int32 [3 * size, 3 * size]."""
    canvas = Image.new("I", (size * SUPERSAMPLING, size * SUPERSAMPLING), 0)
    draw = ImageDraw.Draw(canvas)
    for number, node in enumerate(nodes):
        if node.outline is not None:
            draw.polygon((node.outline * SUPERSAMPLING - 0.5).ravel().tolist(), fill=number)
    return np.asarray(canvas)


def _paint_nodes(rng: Generator, nodes: list[Node], owner: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Colours float32 [size, size, 3]: each node's surface, weighted by the share of every pixel that shows it."""
    size = len(owner) // SUPERSAMPLING
    pixels = np.zeros((size, size, 3), dtype=np.float32)
    for number, node in enumerate(nodes):
        if node.outline is None:
            continue
        x0, y0 = np.clip(np.floor(node.outline.min(axis=0)).astype(int) - 1, 0, size)
        x1, y1 = np.clip(np.ceil(node.outline.max(axis=0)).astype(int) + 1, 0, size)
        rows, columns = slice(y0 * SUPERSAMPLING, y1 * SUPERSAMPLING), slice(x0 * SUPERSAMPLING, x1 * SUPERSAMPLING)
        samples = owner[rows, columns] == number
        if not samples.any():
            continue
        blocks = samples.reshape(y1 - y0, SUPERSAMPLING, x1 - x0, SUPERSAMPLING)
        share = blocks.sum(axis=(1, 3), dtype=np.uint8) * np.float32(SUPERSAMPLING**-2)  # [h, w]
        x = np.arange(x0, x1, dtype=np.float32)[None] - np.float32(node.centre[0])  # [1, w]
        y = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(node.centre[1])  # [h, 1]
        share *= 1 + (x * light[0] + y * light[1]) / np.float32(node.extent)  # lit from one side
        pixels[y0:y1, x0:x1] += share[..., None] * paint(rng, node.look, x, y)
    return pixels


def _shadows(rng: Generator, nodes: list[Node], first_object: int, size: int, light: np.ndarray) -> np.ndarray:
    """Light that reaches each pixel, float32 [size, size] in 0..1: objects cast shadows on what is behind them."""
    canvas = Image.new("L", (size, size), 255)
    draw = ImageDraw.Draw(canvas)
    darkness = int(255 * rng.uniform(0.55, 0.85))
    length = rng.uniform(0.08, 0.22)
    for root, node in enumerate(nodes):
        if node.parent >= 0 or root < first_object:
            continue
        bodies = [part.outline for part in nodes[root : node.last + 1] if part.outline is not None]
        for offset, value in ((-light * length * node.extent, darkness), (np.zeros(2), 255)):
            for body in bodies:
                draw.polygon((body + offset).ravel().tolist(), fill=value)
    blurred = canvas.filter(ImageFilter.GaussianBlur(size / 110))
    return np.asarray(blurred, dtype=np.float32) / 255


def _photograph(rng: Generator, pixels: np.ndarray) -> np.ndarray:
    """Pixels float32 [size, size, 3] with uneven light, blur and sensor noise, uint8 of the same shape."""
    size = len(pixels)
    uneven = 1 + rng.uniform(0, 0.12) * smooth_noise(rng, (size, size), size * 0.7)
    exposed = np.clip(pixels * uneven[..., None] * rng.uniform(0.9, 1.1), 0, 1)
    sharp = Image.fromarray(np.rint(exposed * 255).astype(np.uint8))
    blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6))), dtype=np.float32)
    noisy = blurred + rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(1, 5)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)


def _true_forest(nodes: list[Node], visible: np.ndarray, first: int) -> Forest:
    """The forest of the nodes from number `first` on; `visible` int [H, W] is the node at each pixel."""
    masks: list[np.ndarray] = []
    areas: list[int] = []
    parents: list[int] = []
    kept: dict[int, int] = {}  # node number -> mask index
    for number in range(first, len(nodes)):
        mask = _without_fragments((visible >= number) & (visible <= nodes[number].last))
        area = int(mask.sum())
        above = nodes[number].parent
        while above >= 0 and above not in kept:
            above = nodes[above].parent
        parent = kept[above] if above >= 0 else -1
        if area == 0 or (parent >= 0 and area > SAME_AS_PARENT * areas[parent]):
            continue
        kept[number] = len(masks)
        masks.append(mask)
        areas.append(area)
        parents.append(parent)
    dense = np.stack(masks) if masks else np.zeros((0, *visible.shape), dtype=bool)
    packed = PackedMasks.from_dense(dense)
    scores = torch.ones(len(masks), dtype=torch.float32, device="cpu")
    return Forest(packed, scores, torch.tensor(parents, dtype=torch.int64, device="cpu"))


def _without_fragments(mask: np.ndarray) -> np.ndarray:
    """`mask` bool [H, W] without its connected pieces of fewer than `MIN_FRAGMENT` pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return mask
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    pieces, count = ndimage.label(mask[window])
    large = np.bincount(pieces.ravel(), minlength=count + 1) >= MIN_FRAGMENT
    large[0] = False
    cleaned = np.zeros_like(mask)
    cleaned[window] = large[pieces]
    return cleaned


def write_scenes(folder: str | os.PathLike, num: int, size: int, seed: int) -> Path:
    """Write `num` scenes as `images/*.png` and `annotations.json` (COCO with `level` and `parent`) under `folder`.

    Scene i is `draw_scene(seed * 1_000_000 + i, size)`, so sets of different seeds share no scene. The folder is
    written atomically. If it already holds the scenes of the same request (recorded in `scenes.json`), they are kept;
    scenes of another request are replaced.

    Returns:
        `folder`, as a Path; `LabelSet(folder)` reads it.

    Raises:
        ValueError: `num` < 1 or > 1_000_000, or a bad seed or size.
        DataError: the folder holds other files.
    """
    if not 1 <= num <= SCENES_PER_SEED:
        raise ValueError(f"write_scenes: expected num from 1 to {SCENES_PER_SEED}, got {num}")
    folder = Path(folder)
    request = {"version": SCENES_VERSION, "num": num, "size": size, "seed": seed}
    if _holds(folder, request):
        return folder
    if folder.exists() and any(folder.iterdir()) and not (folder / STAMP).is_file():
        raise DataError(f"{folder} is not empty and holds no drawn scenes ({STAMP}); choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _build_scenes(building, request)
        building.chmod(0o755)  # temporary folders are private
        try:
            os.rename(building, folder)
        except OSError:  # the folder is there already
            if _holds(folder, request):  # another process has written the same scenes, and may be reading them
                return folder
            shutil.rmtree(folder)
            os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _holds(folder: Path, request: dict[str, int]) -> bool:
    """Whether a folder has the scenes of a request."""
    try:
        return json.loads((folder / STAMP).read_text()) == request
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def _build_scenes(folder: Path, request: dict[str, int]) -> None:
    size = request["size"]
    names = [f"{index:06d}.png" for index in range(request["num"])]
    (folder / "images").mkdir()

    def annotations() -> Iterator[dict[str, Any]]:
        first_id = 1
        for index, name in enumerate(names):
            scene = draw_scene(request["seed"] * SCENES_PER_SEED + index, size)
            picture = Image.fromarray(scene.image.permute(1, 2, 0).numpy())
            picture.save(folder / "images" / name, compress_level=3)
            yield from scene.forest.to_coco(image_id=index + 1, first_id=first_id)
            first_id += len(scene.forest)

    images = [{"id": i + 1, "file_name": name, "width": size, "height": size} for i, name in enumerate(names)]
    write_coco(folder / "annotations.json", images, annotations(), info=request)
    (folder / STAMP).write_text(json.dumps(request))
