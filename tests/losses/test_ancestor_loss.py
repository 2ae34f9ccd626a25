# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from sohes.losses.ancestor_loss import ancestor_loss
from sohes.models.ancestor_head import AncestorHead


def chain(N: int) -> torch.Tensor:
    """Mask 0 is an ancestor of all, mask 1 of all but 0, and so on."""
    return torch.ones(N, N, dtype=torch.bool).triu(1)


def test_positive_and_negative_pairs_have_equal_weight():
    labels = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    labels[0, 0, 0, 1] = True
    exists = torch.ones(1, 1, 4, dtype=torch.bool)
    logits = torch.zeros(1, 1, 4, 4)
    torch.testing.assert_close(ancestor_loss(logits, labels, exists), torch.tensor(2.0).log())
    logits[0, 0, 0, 1] = 50.0  # now the only positive pair is correct, and its half of the loss is zero
    torch.testing.assert_close(ancestor_loss(logits, labels, exists), 0.5 * torch.tensor(2.0).log())


def test_padding_and_the_diagonal_do_not_count():
    labels, exists = chain(3)[None, None], torch.tensor([[[True, True, False]]])
    logits = torch.zeros(1, 1, 3, 3)
    plain = ancestor_loss(logits, labels, exists)
    logits[..., 2, :] = logits[..., :, 2] = 1e4
    logits[..., range(3), range(3)] = 1e4
    assert ancestor_loss(logits, labels, exists) == plain
    assert ancestor_loss(logits, labels, torch.zeros_like(exists)) == 0
    assert (
        ancestor_loss(
            torch.zeros(2, 3, 0, 0), torch.zeros(1, 3, 0, 0, dtype=torch.bool), torch.zeros(2, 3, 0, dtype=torch.bool)
        )
        == 0
    )


def test_the_head_learns_a_planted_hierarchy():
    torch.manual_seed(0)
    queries, labels, exists = torch.randn(1, 1, 12, 32), chain(12)[None, None], torch.ones(1, 1, 12, dtype=torch.bool)
    head = AncestorHead(32)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        ancestor_loss(head(queries), labels, exists).backward()
        optimiser.step()
    predicted = (head(queries) > 0)[0, 0] & ~torch.eye(12, dtype=torch.bool)
    assert torch.equal(predicted, labels[0, 0])
    assert not (predicted & predicted.T).any()  # the relation has a direction
