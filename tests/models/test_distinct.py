# SPDX-License-Identifier: Apache-2.0
"""NMS of masks in chunks: the same masks as all at once, without memory for a second copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sohes.configs.run import InferConfig
from sohes.models import distinct
from sohes.models.distinct import DistinctMasks, masks_per_chunk, pairwise_overlap
from sohes.models.inference import extract_forest, predict
from sohes.models.outputs import Outputs
from sohes.ops._binary import find_binary
from sohes.ops.mask_overlap import mask_overlap
from sohes.structures.masks import PackedMasks, nms_masks


def discs(num: int, least: float, most: float) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [N, 2], radii [N] and scores [N] of random discs, as fractions of the image; small ones are common."""
    generator = torch.Generator().manual_seed(0)
    centre, share, score = (torch.rand(num, *shape, generator=generator) for shape in ((2,), (), ()))
    return centre, least + (most - least) * share**3, score


class DiscModel(nn.Module):
    """A model that predicts the same discs in every image, at any size, each an ancestor of all others."""

    def __init__(self, num: int, least: float, most: float):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        centre, radius, score = discs(num, least, most)
        far = radius**2 - centre.square().sum(1)
        self.embeddings = 200 * torch.stack((2 * centre[:, 0], 2 * centre[:, 1], -torch.ones(num), far), dim=-1)
        self.classes = torch.stack((4 * score, torch.zeros(num)), dim=-1)

    def forward(self, images: Tensor, grid_size: int | None = None) -> Outputs:
        B, num, (height, width) = len(images), len(self.classes), images.shape[2:]
        h, w = -(-height // 4), -(-width // 4)
        y = ((torch.arange(h) + 0.5) / h)[:, None].expand(h, w)
        x = ((torch.arange(w) + 0.5) / w).expand(h, w)
        maps = torch.stack((x, y, x * x + y * y, torch.ones_like(x)))
        each = (one.expand(B, *one.shape) for one in (self.classes, self.embeddings, maps, torch.ones(num, num)))
        return Outputs(*each, (height, width), 4)


def random_masks(num: int, size: tuple[int, int]) -> PackedMasks:
    """Discs, some of them twice, and an empty one."""
    centre, radius, _ = discs(num, 0.02, 0.6)
    y, x = torch.arange(size[0])[:, None] / size[0], torch.arange(size[1]) / size[1]
    dense = (x - centre[:, :1, None]) ** 2 + (y - centre[:, 1:, None]) ** 2 < radius[:, None, None] ** 2
    return PackedMasks.from_dense(torch.cat((dense, dense[::3], torch.zeros(1, *size, dtype=torch.bool))))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(distinct, "CHUNK_BYTES", 5000)


@pytest.mark.parametrize("size", [(40, 50), (64, 64), (1, 300), (37, 3)])
@pytest.mark.parametrize("capacity", [1, 9, 1000])
def test_chunks_give_the_masks_of_nms(size, capacity, small_chunks):
    masks = random_masks(30, size)
    best = nms_masks(masks, 0.7, -torch.arange(len(masks)))[:capacity]
    step = masks_per_chunk(size)
    kept = DistinctMasks(size, capacity, 0.7, torch.device("cpu"))
    stays = [start + kept.add(masks[start : start + step]) for start in range(0, len(masks), step)]
    assert torch.equal(torch.cat(stays), best)
    assert torch.equal(kept.masks.words, masks[best].words)
    assert torch.equal(kept.masks.areas, masks[best].areas)
    assert torch.equal(kept.masks.boxes, masks[best].boxes)
    assert len(kept) == len(best)


def test_overlaps_in_chunks_equal_those_at_once(small_chunks):
    masks = random_masks(30, (130, 90))
    assert torch.equal(pairwise_overlap(masks), mask_overlap(masks, masks))
    assert pairwise_overlap(masks[:0]).shape == (0, 0)


def test_a_forest_does_not_depend_on_the_chunk(monkeypatch):
    outputs = DiscModel(60, 0.03, 0.5)(torch.zeros(1, 3, 128, 96))
    config = InferConfig(nms_iou=0.7, min_area=30)
    expected = extract_forest(outputs, 0, (256, 192), config)
    assert 10 < len(expected) < 60
    assert int(expected.levels.max()) > 1
    for size in (1, 20000):
        monkeypatch.setattr(distinct, "CHUNK_BYTES", size)
        forest = extract_forest(outputs, 0, (256, 192), config)
        assert torch.equal(forest.masks.words, expected.masks.words)
        assert torch.equal(forest.scores, expected.scores)
        assert torch.equal(forest.parents, expected.parents)


def resident_megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


@pytest.mark.skipif(find_binary().module is None, reason="the references take minutes")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can reset the peak memory")
@pytest.mark.parametrize(("num", "tile"), [(1000, 0), (400, 2500)])
def test_masks_of_twelve_megapixels_add_less_than_a_gigabyte(num, tile):
    """1000 masks would take 1.4 GiB packed and 12 GB dense; 400 in each of four tiles and in the whole photo, 10 GB
    dense. Measured: 280 and 400 MB."""
    model = DiscModel(num, 0.01, 0.25)
    image = torch.zeros(3, 3000, 4000, dtype=torch.uint8)
    config = InferConfig(size=512, tile=tile)
    predict(model, [image[:, :300, :400]], config)  # loads what stays in memory
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak resident size
    before = resident_megabytes("VmRSS")
    (forest,) = predict(model, [image], config)
    assert resident_megabytes("VmHWM") - before < 1000
    assert forest.masks.size == (3000, 4000)
    assert len(forest) > 0.9 * num
