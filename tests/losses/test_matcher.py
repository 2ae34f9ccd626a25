# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from sohes.configs.run import LossConfig
from sohes.losses.mask_losses import bce_loss, dice_loss
from sohes.losses.matcher import assign, pairwise_cost


def test_the_assignment_of_least_cost_is_found():
    costs = torch.tensor([[4.0, 1.0], [2.0, 3.0], [9.0, 0.5]])[None, None]  # [1, 1, Q=3, N=2]
    assert assign(costs, [2]).query_of_target.tolist() == [[[1, 2]]]


def test_permuting_queries_and_targets_permutes_the_assignment():
    generator = torch.Generator().manual_seed(0)
    costs = torch.rand(2, 3, 9, 4, generator=generator)
    queries, targets = torch.randperm(9, generator=generator), torch.randperm(4, generator=generator)
    plain = assign(costs, [4, 4, 4]).query_of_target
    permuted = assign(costs[:, :, queries][..., targets], [4, 4, 4]).query_of_target
    assert torch.equal(queries[permuted], plain[..., targets])


def test_images_have_their_own_number_of_targets():
    matches = assign(torch.rand(2, 4, 5, 6), [0, 3, 6, 1])
    found = (matches.query_of_target >= 0).sum(dim=2)
    assert found.tolist() == [[0, 3, 5, 1]] * 2  # five queries for six targets
    for layer in matches.query_of_target:
        for row in layer:
            used = row[row >= 0]
            assert len(used.unique()) == len(used)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30, -1e30])
def test_invalid_costs_give_a_valid_assignment_and_are_counted(bad):
    costs = torch.rand(1, 2, 6, 3)
    costs[0, 0, 0] = bad
    costs[0, 1] = bad
    costs[0, 1, :, 2] = float("nan")  # padding of the second image is not counted
    matches = assign(costs, [3, 2])
    assert matches.num_unusable == 3 + 12
    assert 0 not in matches.query_of_target[0, 0].tolist()  # the query with invalid costs is not matched
    assert len(set(matches.query_of_target[0, 1, :2].tolist())) == 2
    assert matches.query_of_target[0, 1, 2] == -1


def test_no_targets_at_all():
    assert assign(torch.zeros(2, 3, 4, 0), [0, 0, 0]).query_of_target.shape == (2, 3, 0)


def test_cost_equals_the_losses():
    torch.manual_seed(0)
    config = LossConfig(class_weight=1.5, mask_weight=3.0, dice_weight=7.0)
    logits, labels, classes = torch.randn(2, 5, 40), (torch.rand(2, 3, 40) > 0.6).float(), torch.randn(2, 5, 2)
    cost = pairwise_cost(classes, logits, labels, config)
    for b in range(2):
        for q in range(5):
            for n in range(3):
                expected = 3.0 * bce_loss(logits[b, q], labels[b, n]) + 7.0 * dice_loss(logits[b, q], labels[b, n])
                expected = expected - 1.5 * classes[b, q].softmax(0)[0]
                torch.testing.assert_close(cost[b, q, n], expected, rtol=1e-5, atol=1e-5)


def test_extreme_logits_are_matched():
    logits = torch.tensor([[[float("nan")] * 8, [-1e30] * 8, [1.0] * 8, [float("inf")] * 8]])
    cost = pairwise_cost(torch.zeros(1, 4, 2), logits, torch.ones(1, 1, 8), LossConfig())
    matches = assign(cost[None], [1])
    assert matches.query_of_target.tolist() == [[[2]]]
    assert matches.num_unusable == 3
