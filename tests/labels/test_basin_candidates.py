# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
import torch

from sohes.configs.run import ExploreConfig
from sohes.labels.basin_candidates import find_basin_candidates, grow_tree, score_nodes, sum_nodes, sum_pixels
from sohes.labels.basins import blur, find_basins, pool_features
from sohes.labels.draw import draw_candidates, draw_nodes, select_masks
from sohes.labels.features import build_extractor
from sohes.structures.masks import PackedMasks, mask_iou


def random_image(h, w, seed=0):
    pixels = torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed))
    return (blur(pixels, 2.0) * 255).byte()


def basins_of(image, config=None):
    config = config or ExploreConfig()
    return find_basins(build_extractor(config).view(image), None, config)


def score_all(tree, shared, basins):
    return score_nodes(tree, shared, sum_pixels(basins), np.arange(tree.num_nodes))


def test_blur_keeps_the_mean_of_a_constant():
    torch.testing.assert_close(blur(torch.full((2, 9, 7), 3.0), 1.5), torch.full((2, 9, 7), 3.0))


def test_pooled_features_are_means_over_pixels():
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(5), torch.randint(0, 5, (95,), generator=generator)])
    patches = torch.randint(0, 7, (100,), generator=generator)
    features = torch.randn(7, 3, generator=generator)
    got = pool_features(labels, torch.bincount(labels), patches, features)
    unit = features / features.norm(dim=1, keepdim=True)
    for region in range(5):
        torch.testing.assert_close(got[region], unit[patches[labels == region]].mean(0))


def test_colors_are_moments_over_pixels():
    image = random_image(19, 23)
    view, basins = build_extractor(ExploreConfig()).view(image), basins_of(image)
    for region in range(len(basins.sizes)):
        inside = view.lab[:, basins.labels == region].double()
        torch.testing.assert_close(basins.colors[region, :3], inside.mean(1))
        torch.testing.assert_close(basins.colors[region, 3], inside.square().sum(0).mean())


def test_of_two_equal_discs_the_varied_one_scores_more():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(128), indexing="ij")
    image = torch.full((3, 64, 128), 128, dtype=torch.uint8)
    discs = [(y - 32) ** 2 + (x - center) ** 2 < 18**2 for center in (32, 96)]
    for disc in discs:
        image[:, disc] = torch.tensor([200, 20, 20], dtype=torch.uint8)[:, None]
    image[:, discs[1] & (y < 32)] = torch.tensor([20, 20, 200], dtype=torch.uint8)[:, None]
    basins = basins_of(image)
    tree, shared = grow_tree(basins, 3.0, 0.3)
    scores = score_all(tree, shared, basins)
    masks = PackedMasks.from_dense(tree.node_masks(torch.arange(tree.num_nodes))[:, basins.labels])
    flat, varied = mask_iou(PackedMasks.from_dense(torch.stack(discs)), masks).argmax(1).tolist()
    assert scores[varied] > scores[flat]


def test_drawn_intervals_are_unions_of_their_basins():
    basins = basins_of(random_image(37, 51))
    tree, _ = grow_tree(basins, 3.0, 0.3)
    ids = torch.tensor([0, tree.num_leaves - 1, tree.num_leaves + 1, tree.num_nodes - 2, tree.num_nodes - 1])
    expected = tree.node_masks(ids)[:, basins.labels]
    assert torch.equal(draw_nodes(tree, ids, basins.labels).to_dense(), expected)
    assert len(draw_nodes(tree, ids[:0], basins.labels)) == 0


def test_sums_equal_those_of_drawn_masks():
    basins = basins_of(random_image(21, 26))
    tree, shared = grow_tree(basins, 3.0, 0.3)
    ids = torch.arange(tree.num_nodes)
    length, strength, frame, *lab, squared = sum_nodes(tree, shared, sum_pixels(basins), ids.numpy())
    masks = tree.node_masks(ids)  # [R, N]
    a, b = basins.edges.T
    crossing = (masks[:, a] != masks[:, b]).float()  # [R, E]
    np.testing.assert_allclose(length, crossing @ basins.borders[:, 0], atol=1e-3)
    np.testing.assert_allclose(strength, crossing @ basins.borders[:, 1], atol=1e-3)
    pixels = masks[:, basins.labels]  # [R, H, W]
    np.testing.assert_array_equal(frame, sum(pixels[:, y].sum(1) + pixels[:, :, y].sum(1) for y in (0, -1)))
    colors = masks.double() @ (basins.colors * basins.sizes[:, None])  # [R, 4]
    np.testing.assert_allclose([*lab, squared], colors.T, rtol=1e-9, atol=1e-6)


def test_nodes_are_scored_one_by_one():
    basins = basins_of(random_image(21, 26))
    tree, shared = grow_tree(basins, 3.0, 0.3)
    some = np.array([tree.num_nodes - 1, 0, tree.num_leaves, tree.num_leaves + 7])
    expected = score_all(tree, shared, basins)[some]
    np.testing.assert_array_equal(score_nodes(tree, shared, sum_pixels(basins), some), expected)
    assert len(score_nodes(tree, shared, sum_pixels(basins), some[:0])) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 3), (30, 41)])
def test_scores_are_in_range_for_any_size(size):
    basins = basins_of(random_image(*size))
    tree, shared = grow_tree(basins, 3.0, 0.3)
    scores = score_all(tree, shared, basins)
    assert scores.shape == (tree.num_nodes,)
    assert ((scores > 0) & (scores <= 1)).all()


@pytest.mark.parametrize("ward_weight", [0.0, 0.88])
def test_finds_a_whole_and_its_part(two_discs, ward_weight):
    image, outer, inner = two_discs
    config = ExploreConfig(max_masks=10, ward_weight=ward_weight)
    basins = basins_of(image, config)
    candidates = find_basin_candidates(basins, (64, 96), config)
    assert len(candidates) == 1 + (ward_weight > 0)
    masks, scores, _ = select_masks(draw_candidates(candidates, basins.labels), (64, 96), config)
    assert 2 <= len(masks) <= 10
    assert (scores[:-1] >= scores[1:]).all()
    iou = mask_iou(PackedMasks.from_dense(torch.stack([outer, inner])), masks)
    assert iou[:, :4].max(1).values.min() > 0.9  # both among the best four
    assert mask_iou(masks, masks).fill_diagonal_(0).max() <= config.nms_iou


def test_features_of_a_network_are_pooled(two_discs):
    image, outer, _ = two_discs
    config = ExploreConfig()
    view = build_extractor(config).view(image)
    inside = view.pool(outer[None].float())[:, 0] > 0.5
    features = torch.eye(2)[inside.long()].view(*view.grid, 2)
    basins = find_basins(view, features, config)
    assert basins.means.shape == (len(basins.sizes), 2)
    torch.testing.assert_close(basins.means.sum(1), torch.ones(len(basins.sizes)))
    shares = torch.zeros(len(basins.sizes)).index_add_(0, basins.labels.flatten(), outer.flatten().float())
    assert (basins.means[:, 1] - shares / basins.sizes).abs().mean() < 0.1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_colors_share_the_features_of_basins_with_a_network(two_discs, share):
    config = ExploreConfig(color_share=share)
    view = build_extractor(config).view(two_discs[0])
    features = torch.ones(*view.grid, 2)
    colors, both = find_basins(view, None, config).means, find_basins(view, features, config).means
    parts = both.split([colors.shape[1] * (share > 0), 2 * (share < 1)], dim=1)
    torch.testing.assert_close(parts[0].square().sum(1), share * torch.ones(len(colors)))
    torch.testing.assert_close(parts[1].square().sum(1), (1 - share) * torch.ones(len(colors)))
    if share:
        torch.testing.assert_close(parts[0], share**0.5 * colors)


def test_trees_of_colors_stand_beside_that_of_a_network(two_discs):
    """With features that do not separate the discs, the trees of colours still find them."""
    image, outer, inner = two_discs
    config = ExploreConfig(features="a ViT", color_trees=True, max_masks=20)
    view = build_extractor(ExploreConfig()).view(image)
    basins = find_basins(view, torch.ones(*view.grid, 2), config)
    candidates = find_basin_candidates(basins, (64, 96), config)
    plain = find_basin_candidates(
        find_basins(view, None, ExploreConfig()), (64, 96), replace(config, features="descriptor")
    )
    assert (len(candidates), len(plain)) == (3, 2)
    for part, other in zip(candidates[1:], plain, strict=True):
        assert torch.equal(part.tree.merges, other.tree.merges)
        torch.testing.assert_close(part.scores[:1], other.scores[:1])
    less = find_basin_candidates(basins, (64, 96), replace(config, feature_weight=0.5))
    torch.testing.assert_close(less[0].scores[:1], candidates[0].scores[:1] * 0.5 / 0.93)
    other = find_basin_candidates(basins, (64, 96), replace(config, feature_border_weight=0.0))
    assert not torch.equal(other[0].tree.merges, candidates[0].tree.merges)
    masks = draw_candidates(candidates, basins.labels).masks
    iou = mask_iou(PackedMasks.from_dense(torch.stack([outer, inner])), masks)
    assert iou.max(1).values.min() > 0.9
    assert len(find_basin_candidates(basins, (64, 96), replace(config, color_trees=False))) == 2
