# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from sohes.models.mask_heads import OUTPUT_GAIN, AnchorMasks
from sohes.models.pixel_decoder import PixelFeatures
from sohes.models.queries import find_seeds, sample_map


def test_seeds_are_the_cell_centres_then_the_farthest_points():
    affinity = torch.zeros(1, 1, 8, 8)
    affinity[0, 0, 1, 6] = 3.0  # in the upper right cell of a 2x2 grid
    affinity[0, 0, 7, 0] = -9.0
    seeds = find_seeds(affinity, 2, 2)[0]
    pixels = [tuple(p) for p in (seeds * 8 - 0.5).long().tolist()]  # (x, y)
    assert pixels[:4] == [(2, 2), (6, 2), (2, 6), (6, 6)]
    assert pixels[5] == (6, 1)
    assert pixels[6] == (0, 7)


def test_more_cells_than_pixels():
    seeds = find_seeds(torch.randn(2, 3, 2, 5), 7, 3)
    assert seeds.shape == (2, 7 * 7 * 3, 2)
    assert seeds.min() > 0
    assert seeds.max() < 1


def test_untrained_masks_are_regions_of_one_colour_around_their_anchor():
    torch.manual_seed(0)
    colours = torch.full((1, 3, 32, 32), -1.0)
    colours[..., 10:20, 12:24] = 1.5
    blank = torch.zeros(1, 8, 32, 32)
    pixels = PixelFeatures([], blank, blank, colours)
    form = AnchorMasks(finest_dim=8, affinity_dim=6, num_granularities=2)
    maps = form.maps(pixels)
    anchors = torch.tensor([[[0.55, 0.45], [0.55, 0.45]]])  # fine and coarse at one point inside the box
    embeddings = form.embeddings(torch.zeros(1, 2, form.num_outputs), anchors, sample_map(maps[:, :6], anchors))
    masks = torch.einsum("bqe,behw->bqhw", embeddings, maps)[0] > 0
    box = colours[0, 0] > 0
    assert not (masks & ~box).any()
    assert torch.equal(masks[1], box)  # the coarse one fills the region
    assert 0 < masks[0].sum() < box.sum()  # the fine one stays near the anchor


def test_anchor_masks_equal_their_formula():
    torch.manual_seed(0)
    finest, colours = torch.randn(2, 8, 6, 6), torch.randn(2, 3, 6, 6)
    form = AnchorMasks(finest_dim=8, affinity_dim=4, num_granularities=1)
    maps = form.maps(PixelFeatures([], finest, finest, colours))
    anchors, outputs = torch.rand(2, 5, 2), 3.0 * torch.randn(2, 5, 9)
    affinity = sample_map(maps[:, :4], anchors)
    logits = torch.einsum("bqe,behw->bqhw", form.embeddings(outputs, anchors, affinity), maps)
    outputs = OUTPUT_GAIN * outputs
    log_s, log_t, b = (outputs[..., 6:] + form.start).unbind(-1)  # [B, Q]
    s, t = log_s.exp(), log_t.exp()
    centre = affinity + outputs[..., :4] / s.sqrt()[..., None]  # [B, Q, A]
    point = anchors + outputs[..., 4:6] / t.sqrt()[..., None]  # [B, Q, 2]
    g_distance = (maps[:, None, :4] - centre[..., None, None]).square().sum(2)  # [B, Q, h, w]
    x_distance = (maps[:, None, 5:7] - point[..., None, None]).square().sum(2)
    expected = b[..., None, None] - s[..., None, None] * g_distance - t[..., None, None] * x_distance
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
