# SPDX-License-Identifier: Apache-2.0
"""Losses of self-distillation, compared with the formulas for single photos."""

from __future__ import annotations

import math

import torch

from sohes.losses.distillation import class_loss, koleo_loss, patch_loss, region_loss, sinkhorn


def test_sinkhorn_gives_probabilities_that_use_all_prototypes():
    logits = torch.randn(96, 12, generator=torch.Generator().manual_seed(0)) * 0.1
    logits[:, 0] += 0.4  # a prototype that all tokens prefer
    temperature = 0.05
    plain = (logits / temperature).softmax(1)
    balanced = sinkhorn(logits, temperature)
    torch.testing.assert_close(balanced.sum(1), torch.ones(96))
    assert plain[:, 0].sum() > 60
    assert (balanced.sum(0) - 8).abs().max() < 5  # three iterations give approximate balance
    assert torch.isfinite(sinkhorn(logits * 1e4, 0.04)).all()
    assert sinkhorn(logits[:0], temperature).shape == (0, 12)


def test_class_loss_compares_different_crops_only():
    B, K, views = 3, 5, 4
    teacher = torch.rand(2, B, K).softmax(-1)
    student = torch.randn(views, B, K)
    total, pairs = 0.0, 0
    for t in range(2):
        for v in range(views):
            if t == v:
                continue
            pairs += 1
            for b in range(B):
                log_p = (student[v, b] / 0.1).log_softmax(-1)
                total -= (teacher[t, b] * log_p).sum().item() / B
    assert math.isclose(class_loss(teacher, student, 0.1).item(), total / pairs, rel_tol=1e-5)


def test_patch_loss_weights_masked_crops_equally():
    masks = torch.zeros(3, 2, 2, dtype=torch.bool)
    masks[0, 0, 0] = True
    masks[2] = True
    teacher, student = torch.rand(5, 6).softmax(-1), torch.randn(5, 6)
    each = -(teacher * (student / 0.1).log_softmax(-1)).sum(-1)
    expected = (each[0] + each[1:].mean()) / 2
    torch.testing.assert_close(patch_loss(teacher, student, masks, 0.1), expected)
    nothing = torch.zeros(3, 2, 2, dtype=torch.bool)
    assert patch_loss(teacher[:0], student[:0], nothing, 0.1) == 0


def test_koleo_pushes_nearest_neighbours_apart():
    tokens = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.1]], requires_grad=True)
    unit = tokens.detach() / tokens.detach().norm(dim=1, keepdim=True)
    distance = torch.cdist(unit, unit) + 10 * torch.eye(3)
    loss = koleo_loss(tokens)
    torch.testing.assert_close(loss.detach(), -distance.amin(1).log().mean())
    loss.backward()
    moved = tokens.detach() - 0.05 * tokens.grad
    assert koleo_loss(moved) < loss


def test_region_loss_is_a_contrast_of_common_regions():
    B, R, D = 3, 4, 6
    teacher, student = torch.nn.functional.normalize(torch.randn(2, 2, B, R, D), dim=-1)
    present = torch.rand(2, B, R) < 0.7
    present[:, 0, :2] = True
    common = [(b, r) for b in range(B) for r in range(R) if present[0, b, r] and present[1, b, r]]
    chosen = torch.randperm(len(common))[: len(common) - 1]
    common = [common[i] for i in chosen]
    total = 0.0
    for view in range(2):
        for place, (b, r) in enumerate(common):
            logits = torch.stack([student[view, b, r] @ teacher[1 - view, c, q] for c, q in common]) / 0.1
            total -= logits.log_softmax(0)[place].item() / len(common) / 2
    got = region_loss(teacher, student, present, 0.1, chosen)
    assert math.isclose(got.item(), total, rel_tol=1e-5)
    assert region_loss(teacher, student, torch.zeros_like(present), 0.1, chosen[:0]) == 0
