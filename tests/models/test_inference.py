# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from sohes.configs.run import InferConfig
from sohes.models.inference import extract_forest, link_parents, predict, score_masks, working_size
from sohes.models.outputs import Outputs
from sohes.models.segmenter_model import build_model
from sohes.structures.masks import PackedMasks, mask_iou


def boxes(size: int, *corners: tuple[int, int, int, int]) -> torch.Tensor:
    """bool [N, size, size] from (y0, y1, x0, x1)."""
    masks = torch.zeros(len(corners), size, size, dtype=torch.bool)
    for mask, (y0, y1, x0, x1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def outputs_of(masks: torch.Tensor, entity: list[float], ancestors: torch.Tensor | None = None) -> Outputs:
    """Outputs of stride 4 that predict exactly `masks`, bool [N, h, w]."""
    N, h, w = masks.shape
    class_logits = torch.stack((torch.tensor(entity), torch.zeros(N)), dim=-1)[None]
    features = torch.where(masks, 9.0, -9.0)[None]
    return Outputs(class_logits, torch.eye(N)[None], features, ancestors, (4 * h, 4 * w), 4)


def test_score_is_entity_probability_times_mean_probability_inside():
    logits = torch.tensor([[[0.0, -5.0], [2.0, 4.0]], [[-1.0, -1.0], [-1.0, -1.0]], [[float("nan"), 1.0], [1.0, 1.0]]])
    classes = torch.tensor([[1.0, 0.0], [9.0, 0.0], [0.0, 0.0]])
    inside = (torch.tensor(2.0).sigmoid() + torch.tensor(4.0).sigmoid()) / 2
    scores = score_masks(classes, logits)
    torch.testing.assert_close(scores[0], torch.tensor(1.0).sigmoid() * inside)
    assert scores[1] == 0  # a mask without a cell
    assert scores[2].isfinite()


def test_duplicates_small_and_weak_masks_are_removed():
    masks = boxes(16, (0, 10, 0, 10), (0, 10, 0, 10), (12, 16, 12, 16), (0, 0, 0, 0), (3, 5, 3, 5))
    config = InferConfig(min_area=70, min_score=0.3)
    forest = extract_forest(outputs_of(masks, [1.0, 3.0, 2.0, 5.0, 4.0]), 0, (64, 64), config)
    assert len(forest) == 2
    assert forest.scores.tolist() == sorted(forest.scores.tolist(), reverse=True)
    expected = masks[[1, 2]].repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert mask_iou(forest.masks, PackedMasks.from_dense(expected)).diagonal().min() > 0.9
    weak = extract_forest(outputs_of(masks, [-9.0] * 5), 0, (64, 64), config)
    assert len(weak) == 0
    few = extract_forest(outputs_of(masks, [1.0, 3.0, 2.0, 5.0, 4.0]), 0, (64, 64), InferConfig(max_masks=1))
    assert len(few) == 1


def test_the_parent_is_the_smallest_mask_with_ancestor_score_and_cover():
    masks = PackedMasks.from_dense(boxes(20, (0, 20, 0, 20), (0, 10, 0, 10), (2, 6, 2, 6), (8, 14, 8, 14)))
    sure, scores, config = torch.ones(4, 4), torch.ones(4), InferConfig(ancestor_cover=0.9)
    assert link_parents(masks, scores, sure, config).tolist() == [-1, 0, 1, 0]
    assert link_parents(masks, scores, sure, replace(config, ancestor_cover=0.1)).tolist() == [-1, 0, 1, 1]
    unsure = sure.clone()
    unsure[1, 2] = 0.4  # the head does not call 1 an ancestor of 2
    assert link_parents(masks, scores, unsure, config).tolist() == [-1, 0, 0, 0]
    assert link_parents(masks, scores, torch.zeros(4, 4), config).tolist() == [-1] * 4
    equal = PackedMasks.from_dense(boxes(20, (0, 9, 0, 9), (0, 9, 0, 9)))
    for some in (config, replace(config, child_area=0.9)):
        assert link_parents(equal, scores[:2], torch.ones(2, 2), some).tolist() == [-1, -1]  # equal masks: no cycle
    assert link_parents(equal[:0], scores[:0], torch.ones(0, 0), config).tolist() == []


def test_near_duplicates_can_be_on_one_level():
    """Five masks of one object, each a row smaller than the one before, and a part of the object."""
    takes = [(0, 20 - k, 0, 20) for k in range(5)]
    masks = PackedMasks.from_dense(boxes(20, *takes, (2, 6, 2, 6)))
    scores, config = torch.tensor([0.3, 0.4, 0.9, 0.5, 0.6, 0.8]), InferConfig(child_area=0.9)
    chain = link_parents(masks, scores, torch.ones(6, 6), InferConfig())
    assert chain.tolist() == [-1, 0, 1, 2, 3, 4]
    # 17 and 16 rows are at most 0.9 times 20 or 18; 16 is the smallest that covers the part, 17 is nearly as small.
    parents = link_parents(masks, scores, torch.ones(6, 6), config)
    assert parents.tolist() == [-1, -1, 0, 1, 2, 4]
    scores[3] = 0.7
    assert link_parents(masks, scores, torch.ones(6, 6), config)[5] == 3


def test_weak_masks_are_for_scoring_only():
    masks = boxes(16, (0, 16, 0, 16), (2, 8, 2, 8), (9, 14, 9, 14))
    outputs = outputs_of(masks, [-4.0, 2.0, 1.0])  # the largest is a mask with a probability of 0.02
    forest = extract_forest(outputs, 0, (64, 64), InferConfig())
    assert forest.scores.min() > InferConfig.min_score
    assert forest.levels.tolist() == [0, 0]
    config = InferConfig()
    everything = extract_forest(outputs, 0, (64, 64), replace(config, min_score=config.eval_min_score))
    assert everything.levels.tolist() == [1, 1, 0]


def test_the_forest_follows_the_ancestor_head_or_coverage_without_one():
    masks = boxes(16, (0, 12, 0, 12), (2, 6, 2, 6))
    without = extract_forest(outputs_of(masks, [2.0, 1.0]), 0, (64, 64), InferConfig())
    assert without.parents.tolist() == [-1, 0]
    against = torch.full((1, 2, 2), -5.0)
    refused = extract_forest(outputs_of(masks, [2.0, 1.0], against), 0, (64, 64), InferConfig())
    assert refused.parents.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (384, 512)), ((1, 1), (512, 512)), ((3, 2000), (4, 512)), ((100, 99), (512, 508))],
)
def test_working_size_keeps_the_aspect(size, expected):
    assert working_size(size, 512) == expected


def test_a_batch_of_mixed_sizes_gives_the_masks_of_single_images(tiny_config):
    torch.manual_seed(0)
    model = build_model(tiny_config(query_init="seeds")).eval()
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        for size in ((40, 60), (64, 64), (40, 60), (1, 1), (90, 30))
    ]
    config = InferConfig(size=64, batch_size=2)
    together = predict(model, images, config)
    alone = [predict(model, [image], config)[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda image: predict(model, [image], config)[0], images))
    for image, a, b, c in zip(images, together, alone, threaded, strict=True):
        assert a.masks.size == image.shape[1:]
        assert len(a) == len(b)
        assert (mask_iou(a.masks, b.masks).diagonal() > 0.999).all()
        assert torch.equal(b.masks.words, c.masks.words)
        torch.testing.assert_close(b.scores, c.scores)
    assert len(together[0]) > 0
    assert predict(model, [], config) == []


def test_every_size_from_1_to_130(tiny_config):
    torch.manual_seed(0)
    model = build_model(tiny_config(query_init="seeds")).eval()
    generator = torch.Generator().manual_seed(0)
    sizes = [(height, 131 - height) for height in range(1, 131)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    forests = predict(model, images, InferConfig(size=32))
    assert [forest.masks.size for forest in forests] == sizes
    for forest in forests:
        assert torch.isfinite(forest.scores).all()
        assert (forest.masks.areas > 0).all()


def test_a_trained_model_accepts_a_larger_grid(tiny_config):
    coarse, fine = (tiny_config(query_init="seeds", grid_size=size) for size in (2, 5))
    model, larger = (build_model(config).eval() for config in (coarse, fine))
    larger.load_state_dict(model.state_dict())
    image = torch.randint(0, 256, (3, 40, 64), dtype=torch.uint8)
    (own,), (more,), (expected,) = (
        predict(network, [image], InferConfig(size=64, grid_size=size))
        for network, size in ((model, 0), (model, 5), (larger, 0))
    )
    assert len(more) == len(expected) > len(own)
    assert torch.equal(more.masks.words, expected.masks.words)
    assert torch.equal(more.scores, expected.scores)
    with pytest.raises(ValueError, match="grid_size 5 is for models with seed queries"):
        predict(build_model(tiny_config(query_init="learned")), [image], InferConfig(size=64, grid_size=5))


def test_only_images_are_accepted(tiny_config):
    model = build_model(tiny_config()).eval()
    with pytest.raises(ValueError, match=r"^expected an image of uint8 \[3, H, W\], got torch.float32 \[3, 8, 8\]$"):
        predict(model, [torch.zeros(3, 8, 8)], InferConfig())
