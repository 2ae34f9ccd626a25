# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from sohes.configs.run import LossConfig
from sohes.losses.criterion import Criterion, count_masks
from sohes.models.outputs import Outputs
from sohes.structures.target import Target

H, W, Q, E = 24, 32, 6, 3


def random_outputs(B: int, num_aux: int = 1, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def layer(aux: list[Outputs]) -> Outputs:
        values = [torch.randn(B, *shape, generator=generator) for shape in ((Q, 2), (Q, E), (Q, Q))]
        classes, embeddings, ancestors = (value.requires_grad_() for value in values)
        return Outputs(classes, embeddings, features, ancestors, (H, W), 4, aux)

    features = torch.randn(B, E, H // 4, W // 4, generator=generator).requires_grad_()
    return layer([layer([]) for _ in range(num_aux)])


def random_targets(counts: list[int], seed: int = 0) -> list[Target]:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        masks = torch.zeros(count, H, W, dtype=torch.bool)
        for mask in masks:
            y, x = (int(torch.randint(side - 6, (), generator=generator)) for side in (H, W))
            mask[y : y + 6, x : x + 5] = True
        ancestors = torch.ones(count, count, dtype=torch.bool).triu(1)
        targets.append(Target(masks, ancestors, torch.ones(count)))
    return targets


def small(**changes: object) -> LossConfig:
    return LossConfig(**{"num_points": 64, "num_match_points": 64, **changes})


@pytest.mark.parametrize("match_layers", ["each", "last"])
@pytest.mark.parametrize("local_ratio", [0.0, 0.25])
def test_total_is_the_weighted_sum_and_all_inputs_have_gradients(match_layers, local_ratio):
    config = small(match_layers=match_layers, local_ratio=local_ratio, importance_ratio=0.5)
    outputs = random_outputs(3)
    losses = Criterion(config)(outputs, random_targets([2, 4, 1]))
    parts = {"class": 2.0, "mask": 5.0, "dice": 5.0, "ancestor": 1.0}
    total = sum(weight * losses[f"loss_{name}"] for name, weight in parts.items())
    torch.testing.assert_close(losses["loss"], total)
    losses["loss"].backward()
    for layer in [*outputs.aux, outputs]:
        for value in (layer.class_logits, layer.mask_embeddings, layer.ancestor_logits, layer.mask_features):
            assert value.grad is not None
            assert value.grad.abs().sum() > 0
    assert losses["num_unusable_costs"] == 0


def test_images_without_masks():
    outputs = random_outputs(2)
    losses = Criterion(small())(outputs, random_targets([0, 0]))
    assert losses["loss_mask"] == losses["loss_dice"] == losses["loss_ancestor"] == 0
    assert losses["loss_class"] > 0
    losses["loss"].backward()
    assert outputs.mask_features.grad is not None  # needed by the all-reduce of DDP in a process without masks
    mixed = Criterion(small())(random_outputs(2), random_targets([0, 3]))
    assert all(math.isfinite(value.item()) for value in mixed.values())


def test_more_masks_than_queries():
    losses = Criterion(small())(random_outputs(1), random_targets([Q + 3]))
    assert all(math.isfinite(value.item()) for value in losses.values())
    assert count_masks(random_targets([Q + 3, 2, 0]), Q) == Q + 2


def test_a_generator_makes_it_repeatable_and_leaves_the_global_one_unchanged():
    outputs, targets = random_outputs(2), random_targets([2, 3])
    state = torch.get_rng_state()
    first, second, other = (
        Criterion(small())(outputs, targets, torch.Generator().manual_seed(seed))["loss"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_a_perfect_prediction_costs_almost_nothing():
    targets = random_targets([1])
    mask = targets[0].masks[0]
    features = (torch.nn.functional.avg_pool2d(mask[None, None].float(), 4) - 0.5) * 200  # [1, 1, h, w]
    blocks = features.repeat_interleave(4, 2).repeat_interleave(4, 3)[0, 0] > 0
    targets = [Target(blocks[None], targets[0].ancestors, targets[0].scores)]
    embeddings = torch.tensor([[[1.0], [-1.0]]])
    classes = torch.tensor([[[20.0, -20.0], [-20.0, 20.0]]])
    outputs = Outputs(classes, embeddings, features.float(), None, (H, W), 4)
    losses = Criterion(small(importance_ratio=0.0))(outputs, targets, torch.Generator().manual_seed(0))
    assert losses["loss_class"] < 1e-6
    assert losses["loss_dice"] < 0.3  # the border of a map of stride 4 is blurred
    swapped = Outputs(classes.flip(1), embeddings.flip(1), features.float(), None, (H, W), 4)
    other = Criterion(small(importance_ratio=0.0))(swapped, targets, torch.Generator().manual_seed(0))
    torch.testing.assert_close(other["loss"], losses["loss"])  # the order of queries does not matter


def test_two_halves_with_the_mean_normaliser_equal_one_batch():
    # As needed for several processes and gradient accumulation. One generator gives the halves other points than the
    # whole batch, but for full masks the points do not matter.
    outputs = random_outputs(2)
    targets = [
        Target(torch.ones(n, H, W, dtype=torch.bool), torch.zeros(n, n, dtype=torch.bool), torch.ones(n))
        for n in (1, 3)
    ]
    flat = torch.ones_like(outputs.mask_features)

    def part(o: Outputs, rows: slice) -> Outputs:
        return Outputs(o.class_logits[rows], o.mask_embeddings[rows], flat[rows], o.ancestor_logits[rows], (H, W), 4)

    criterion = Criterion(small())
    whole = criterion(part(outputs, slice(0, 2)), targets)
    mean = count_masks(targets, Q) / 2
    halves = [criterion(part(outputs, slice(i, i + 1)), targets[i : i + 1], num_masks=mean) for i in range(2)]
    for name in ("loss_mask", "loss_dice", "loss_class", "loss_ancestor"):
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, whole[name], rtol=1e-4, atol=1e-5)


def test_invalid_costs_are_counted():
    outputs = random_outputs(1, num_aux=0)
    with torch.no_grad():
        outputs.mask_embeddings[0, 0] = float("nan")
    losses = Criterion(small())(outputs, random_targets([2]))
    assert losses["num_unusable_costs"] == 2


def test_the_wrong_number_of_targets_is_named():
    with pytest.raises(ValueError, match=r"^expected 2 targets, one per image, got 1$"):
        Criterion(small())(random_outputs(2), random_targets([1]))
