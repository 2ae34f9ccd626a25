# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch

from sohes.configs.run import ExploreConfig
from sohes.labels.candidates import area_limits
from sohes.labels.draw import draw_candidates, draw_nodes, select_masks
from sohes.labels.features import build_extractor
from sohes.labels.node_statistics import node_statistics
from sohes.labels.patch_candidates import cut_thresholds, find_patch_candidates
from sohes.labels.photo_regions import photo_tree
from sohes.labels.pipeline import label_image
from sohes.ops.merge_regions import merge_regions
from sohes.ops.reference.merge_regions import grid_edges
from sohes.structures.masks import PackedMasks, mask_iou


def random_tree(h, w, seed):
    return merge_regions(torch.randn(h, w, 6, generator=torch.Generator().manual_seed(seed)))[0]


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (5, 4), (9, 13)])
def test_statistics_equal_those_of_drawn_masks(h, w):
    tree = random_tree(h, w, seed=h * w)
    colors = 30 * torch.randn(h * w, 3, generator=torch.Generator().manual_seed(1))
    statistics = node_statistics(tree, colors, softness=10.0)
    masks = tree.node_masks(torch.arange(tree.num_nodes)).flatten(1)
    a, b = grid_edges(h, w).T
    difference = (colors[a] - colors[b]).norm(dim=1)
    strength = difference / (difference + 10)
    for node, mask in enumerate(masks):
        crossing = mask[a] != mask[b]
        assert statistics.counts[node] == mask.sum()
        assert statistics.border[node] == crossing.sum()
        expected = strength[crossing].mean().item() if crossing.any() else 0.0
        assert statistics.contrast[node] == pytest.approx(expected, abs=1e-5)
    assert statistics.separation[-1] == 1
    for merge, (left, right) in enumerate(tree.merges.tolist()):
        expected = min(1, max(0, 1 - tree.similarity[merge].item()))
        assert statistics.separation[[left, right]] == pytest.approx(expected, abs=1e-6)


def test_adaptive_thresholds_do_not_depend_on_the_scale_of_similarities():
    tree = random_tree(12, 12, seed=5)
    squeezed = replace(tree, similarity=0.9 + tree.similarity * 0.01)
    config = ExploreConfig(num_cuts=16)
    cuts = [t.candidates(cut_thresholds(t, config)).tolist() for t in (tree, squeezed)]
    assert cuts[0] == cuts[1]
    assert len(cuts[0]) > 16
    assert cut_thresholds(tree, ExploreConfig(cuts="fixed")) == [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_area_limits_scale_with_the_image():
    config = ExploreConfig()
    assert area_limits((480, 480), config) == (100, 0.9 * 480 * 480)
    assert area_limits((960, 960), config) == (400, 0.9 * 960 * 960)
    assert area_limits((128, 128), config) == (16, 0.9 * 128 * 128)


def test_drawn_nodes_are_unions_of_their_patches():
    tree = random_tree(4, 5, seed=0)
    patches = torch.randint(0, 20, (33, 41), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([39 - 1, 3, 25, 30])
    dense = draw_nodes(tree, ids, patches).to_dense()
    expected = tree.node_masks(ids).flatten(1)[:, patches]
    assert torch.equal(dense, expected)


def test_finds_a_whole_and_its_part(two_discs):
    image, outer, inner = two_discs
    config = ExploreConfig(max_masks=10, start="patches")
    extractor = build_extractor(config)
    view = extractor.view(image)
    (tree,) = merge_regions(extractor([view])[0])
    candidates = find_patch_candidates(tree, view, config)
    assert (candidates.scores[:-1] >= candidates.scores[1:]).all()
    assert ((candidates.scores > 0) & (candidates.scores <= 1)).all()
    masks, scores, _ = select_masks(draw_candidates([candidates], view.patches), view.photo_size, config)
    assert 2 <= len(masks) <= 10
    assert len(scores) == len(masks)
    iou = mask_iou(PackedMasks.from_dense(torch.stack([outer, inner])), masks)
    assert iou[:, :4].max(1).values.min() > 0.9  # both among the best four
    assert mask_iou(masks, masks).fill_diagonal_(0).max() <= config.nms_iou


def test_patches_merge_by_the_schedule_of_the_settings():
    config = ExploreConfig(start="patches", schedule="rounds", side=48, max_masks=10)
    image = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = build_extractor(config)
    (expected,) = merge_regions(extractor([extractor.view(image)]), schedule="rounds")
    (exact,) = merge_regions(extractor([extractor.view(image)]))
    tree, _ = photo_tree(image, extractor)
    assert torch.equal(tree.merges, expected.merges)
    assert not torch.equal(tree.merges, exact.merges)
    forests = [label_image(image, extractor, replace(config, schedule=schedule)) for schedule in ("exact", "rounds")]
    assert not torch.equal(forests[0].masks.to_dense(), forests[1].masks.to_dense())
