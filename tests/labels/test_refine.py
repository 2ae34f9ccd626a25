# SPDX-License-Identifier: Apache-2.0
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.configs.run import ExploreConfig
from sohes.labels import refine
from sohes.labels.features import build_extractor
from sohes.labels.refine import Lattice, RefinerMissing, mean_field, refine_masks, snap_to_regions
from sohes.phases.explore import explore
from sohes.structures.masks import PackedMasks, mask_iou
from sohes.utils.console import RunLog


def in_blocks(mask, side=8):
    blocks = torch.nn.functional.avg_pool2d(mask[None, None].float(), side) > 0.5
    return blocks[0, 0].repeat_interleave(side, 0).repeat_interleave(side, 1)


@pytest.mark.parametrize("refiner", ["snap", "guided", "crf"])
def test_blocks_become_discs_again(two_discs, refiner):
    image, outer, inner = two_discs
    config = ExploreConfig(refiner=refiner)
    view = build_extractor(config).view(image)
    truth = PackedMasks.from_dense(torch.stack([outer, inner] * 5))  # more than one chunk
    rough = PackedMasks.from_dense(torch.stack([in_blocks(outer), in_blocks(inner)] * 5))
    refined, kept = refine_masks(rough, view, config)
    before, after = mask_iou(rough, truth).diagonal(), mask_iou(refined, truth).diagonal()
    assert kept.all()
    assert after.min() > 0.9
    assert (after > before).all()
    single, _ = refine_masks(rough[:1], view, config)
    assert torch.equal(single.words, refined.words[:1])  # a mask does not depend on the others
    assert len(refine_masks(rough[:0], view, config)[0]) == 0


@pytest.mark.parametrize("refiner", ["snap", "guided", "crf"])
@pytest.mark.parametrize("size", [(1, 1), (1, 20), (3, 5)])
def test_any_size(refiner, size):
    config = ExploreConfig(refiner=refiner)
    view = build_extractor(config).view(torch.zeros(3, *size, dtype=torch.uint8))
    masks = PackedMasks.from_dense(torch.ones(2, *size, dtype=torch.bool))
    refined, kept = refine_masks(masks, view, config)
    assert refined.size == size
    assert len(kept) == 2


def test_a_replaced_mask_is_not_kept(two_discs):
    image, outer, _ = two_discs
    config = ExploreConfig(refiner="snap")
    view = build_extractor(config).view(image)
    thin = torch.zeros_like(outer)
    thin[30, 40:50] = True  # far less than half of any basin
    _, kept = refine_masks(PackedMasks.from_dense(torch.stack([thin, outer])), view, config)
    assert kept.tolist() == [False, True]


def test_snapping_by_hand():
    labels = torch.tensor([[0, 0, 0], [1, 1, 2]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    expected = [[True, True, True], [False, False, True]]  # exactly half is not enough
    assert snap_to_regions(mask[None], labels)[0].tolist() == expected


def test_lattice_is_close_to_the_gaussian_it_stands_for():
    generator = torch.Generator().manual_seed(0)
    points = 4 * torch.rand(400, 3, generator=generator)
    values = points[:, :1].sin()
    distances = torch.cdist(points, points)
    weights = torch.exp(-distances.square() / 2)
    expected = weights @ values / weights.sum(1, keepdim=True)
    got = Lattice(points)(values)
    # Cells as wide as the kernel make it coarse: what matters is that it smooths about as much.
    assert (got - expected).abs().mean() < 0.12
    assert torch.corrcoef(torch.stack([got[:, 0], expected[:, 0]]))[0, 1] > 0.9
    torch.testing.assert_close(Lattice(points)(torch.ones(400, 2)), torch.ones(400, 2))


def test_crf_without_steps_gives_the_mask_back():
    masks = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    lattice = Lattice(torch.rand(42, 2))
    assert torch.equal(mean_field(masks, lattice, lattice, steps=0), masks)


@pytest.fixture
def photo(two_discs, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(two_discs[0].permute(1, 2, 0).numpy()).save(tmp_path / "photos" / "a.png")
    return tmp_path / "photos"


def test_a_missing_plug_in_is_an_error_before_anything_is_written(photo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_refinement", None)
    refine.load_cascadepsp.cache_clear()
    with pytest.raises(RefinerMissing, match="needs the package segmentation-refinement"):
        explore([photo], tmp_path / "out", ExploreConfig(refiner="cascadepsp"), log=RunLog(console=False))
    assert not (tmp_path / "out" / "labels").exists()


@pytest.mark.parametrize("error", [ConnectionError("no network"), AssertionError("MD5 still does not pass")])
def test_plug_in_without_a_network_says_where_weights_go(photo, tmp_path, monkeypatch, error):
    def refuse(device):
        raise error

    monkeypatch.setitem(sys.modules, "segmentation_refinement", SimpleNamespace(Refiner=refuse))
    refine.load_cascadepsp.cache_clear()
    with pytest.raises(RefinerMissing, match=r"could not fetch its weights \(\w+Error\); without a network put the "):
        explore([photo], tmp_path / "out", ExploreConfig(refiner="cascadepsp"), log=RunLog(console=False))
    assert not (tmp_path / "out").exists()


def test_labels_of_the_plug_in_say_that_they_use_human_labels(photo, tmp_path, monkeypatch, capsys):
    class Refiner:
        def __init__(self, device):
            self.device = device

        def refine(self, image, mask, fast):
            assert image.shape == (64, 96, 3)
            assert mask.dtype == np.uint8
            return mask

    monkeypatch.setitem(sys.modules, "segmentation_refinement", SimpleNamespace(Refiner=Refiner))
    refine.load_cascadepsp.cache_clear()
    config = ExploreConfig(refiner="cascadepsp", max_masks=5)
    explore([photo], tmp_path / "out", config, log=RunLog())
    refine.load_cascadepsp.cache_clear()
    shard = json.loads((tmp_path / "out/labels/shard-00000.json").read_text())
    assert shard["info"]["human_labels"] is True
    assert "USE HUMAN LABELS" in capsys.readouterr().err
    assert len(shard["annotations"]) > 0
