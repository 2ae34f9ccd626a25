# SPDX-License-Identifier: Apache-2.0
"""Results that must not change with mixed precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sohes.configs.presets import get_preset
from sohes.configs.run import InferConfig, LossConfig
from sohes.data.scenes import draw_scene
from sohes.data.transforms import normalize
from sohes.losses.distillation import class_loss, koleo_loss, region_loss
from sohes.losses.mask_losses import bce_loss, dice_loss
from sohes.losses.matcher import pairwise_cost
from sohes.models import mask_decoder
from sohes.models.distillation import ProjectionHead
from sohes.models.inference import extract_forest
from sohes.models.mask_heads import AnchorMasks
from sohes.models.outputs import Outputs
from sohes.models.pixel_decoder import PixelFeatures
from sohes.models.queries import sample_map
from sohes.models.segmenter_model import build_model

HALF_TYPES = (torch.bfloat16, torch.float16)


def agreement(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean IoU of masks bool [B, Q, ...], and the fraction that differs."""
    a, b = a.flatten(2), b.flatten(2)
    union = (a | b).sum(-1)
    iou = torch.where(union > 0, (a & b).sum(-1) / union.clamp(min=1), 1.0)
    return iou.mean().item(), (iou < 1).float().mean().item()


@pytest.mark.parametrize("stirred", [False, True])
def test_seed_queries_attend_to_the_same_cells_as_in_float32(stirred, monkeypatch):
    """With mask products in bfloat16, mean IoU would be 0.91 at the second layer and 0.85 at the third, where half of
    the attention masks differ. `stirred`: the last layer of the masks' MLP has random weights instead of zeros."""
    torch.manual_seed(0)
    config = replace(get_preset("cpu").model, backbone_weights="")
    model = build_model(config).eval()
    if stirred:
        torch.nn.init.normal_(model.mask_decoder.mask_embedder[-1].weight, std=0.5)
    seen: list[Tensor] = []
    original = mask_decoder.attention_mask
    monkeypatch.setattr(mask_decoder, "attention_mask", lambda *a: seen.append(original(*a)) or seen[-1])
    images = torch.stack([normalize(draw_scene(seed, 160).image) for seed in (0, 1)])
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(images)
            masks = outputs.mask_logits > 0
    num_layers = config.decoder_layers
    assert len(seen) == 2 * num_layers
    for full, mixed in zip(seen[:num_layers], seen[num_layers:], strict=True):
        iou, changed = agreement(full, mixed)
        assert iou > 0.995
        assert changed < 0.1 if stirred else changed < 0.03
    assert agreement(expected.mask_logits > 0, masks)[0] > 0.995
    assert outputs.mask_logits.dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_attention_masks_of_anchors_do_not_change_with_autocast(dtype):
    """Equal inputs give bitwise equal masks."""
    torch.manual_seed(0)
    form = AnchorMasks(finest_dim=8, affinity_dim=6, num_granularities=2)
    finest, colours = torch.randn(1, 8, 40, 40), 2.0 * torch.randn(1, 3, 40, 40)
    anchors, outputs = torch.rand(1, 60, 2), torch.randn(1, 60, form.num_outputs)

    def attend() -> Tensor:
        maps = form.maps(PixelFeatures([], finest, finest, colours))
        embeddings = form.embeddings(outputs, anchors, sample_map(maps[:, :6], anchors))
        return mask_decoder.attention_mask(embeddings, maps.flatten(2), None)

    with torch.no_grad():
        expected = attend()
        with torch.autocast("cpu", dtype):
            assert torch.equal(attend(), expected)


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_16_bit_features_are_sampled_at_exact_points(dtype):
    stripes = (torch.arange(3000) % 4 < 2).to(dtype).expand(1, 1, 2, -1)  # exact in every type
    points = torch.rand(1, 200, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample_map(stripes, points).float(), sample_map(stripes.float(), points))


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_forests_do_not_change_with_autocast(dtype):
    """Squared distances to a centre, expanded: the embedding (2c, -1, r^2 - c^2) times the map (x, x^2, 1)."""
    place = torch.linspace(10.0, 20.0, 64)
    centre, radius = torch.linspace(11.0, 19.0, 12), torch.linspace(0.5, 3.0, 12)
    embeddings = torch.stack((2 * centre, -torch.ones(12), radius**2 - centre**2), dim=-1)[None]  # [1, Q, 3]
    features = torch.stack((place, place**2, torch.ones(64)))[None, :, None, :].expand(1, 3, 64, 64)
    outputs = Outputs(torch.zeros(1, 12, 2), embeddings, features, None, (64, 64), 1)
    logits, expected = outputs.mask_logits, extract_forest(outputs, 0, (64, 64), InferConfig())
    assert len(expected) > 3
    with torch.autocast("cpu", dtype):
        assert torch.equal(outputs.mask_logits, logits)
        forest = extract_forest(outputs, 0, (64, 64), InferConfig())
    assert torch.equal(forest.masks.words, expected.masks.words)
    assert torch.equal(forest.scores, expected.scores)


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_costs_and_losses_do_not_change_with_autocast(dtype):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels = (normal(2, 3, 500) > 0).float()
    teacher, student = normal(2, 4, 20).softmax(-1), normal(5, 4, 20)
    regions = [torch.nn.functional.normalize(normal(2, 4, 3, 16), dim=-1) for _ in range(2)]
    tokens = normal(6, 8) + 20.0  # near each other: angles are small differences
    head = ProjectionHead(8, 16, 16, 32)
    embedded = normal(6, 16)

    def results() -> list[Tensor]:
        return [
            pairwise_cost(normal_classes, points, labels, LossConfig()),
            class_loss(teacher, student, 0.1),
            koleo_loss(tokens),
            region_loss(*regions, torch.ones(2, 4, 3, dtype=torch.bool), 0.1, torch.arange(12)),
        ]

    normal_classes, points = normal(2, 5, 2), 8.0 * normal(2, 5, 500)
    expected = results()
    with torch.autocast("cpu", dtype):
        for found, value in zip(results(), expected, strict=True):
            assert torch.equal(found, value)
    head.layers = torch.nn.Identity()
    with torch.no_grad():
        cosines = head(embedded)
        with torch.autocast("cpu", dtype):
            assert torch.equal(head(embedded), cosines)


@pytest.mark.parametrize("loss", [bce_loss, dice_loss])
def test_losses_of_16_bit_logits_are_computed_in_float32(loss):
    """16-bit types cannot represent sums over 12,544 points."""
    labels = (torch.rand(3, 12544, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    logits = (8.0 * labels - 4.0).to(torch.bfloat16)
    assert loss(logits, labels).dtype == torch.float32
    torch.testing.assert_close(loss(logits, labels), loss(logits.float(), labels), rtol=0, atol=0)
