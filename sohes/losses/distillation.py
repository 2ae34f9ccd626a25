# SPDX-License-Identifier: Apache-2.0
"""Losses of self-distillation: class tokens (DINO), masked patches (iBOT), spread (KoLeo), regions (DetCon)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.models.precision import without_autocast
from sohes.utils.distributed import all_sum

_SINKHORN_ROUNDS = 3  # [DINOv2]
_KOLEO_EPSILON = 1e-8


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float) -> Tensor:
    """Sinkhorn-Knopp: the teacher's logits as probabilities that use all prototypes about equally. [SwAV, DINOv2]

    Normalises columns and rows of exp(logits / temperature) alternately, over the batch of all processes.

    Args:
        logits: [M, K], M may be 0.

    Returns:
        float32 [M, K]; each row sums to 1.
    """
    logits = logits.float() / temperature
    # Subtracting each row's maximum changes no result, since rows are normalised.
    weights = torch.exp(logits - logits.amax(1, keepdim=True)) if len(logits) else logits
    for _ in range(_SINKHORN_ROUNDS):
        used = all_sum(weights.sum(0, keepdim=True))  # [1, K]
        weights = weights / used.clamp_min(torch.finfo(torch.float32).tiny)
        weights = weights / weights.sum(1, keepdim=True)
    return weights


@without_autocast
def class_loss(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between the teacher's and the student's class tokens of different crops of a photo. [DINO]

    Args:
        teacher: probabilities [2, B, K] of the large crops.
        student: logits [V, B, K]; the first two are of the same crops as the teacher's.

    Returns:
        Scalar: the mean over photos and pairs of different crops.
    """
    log_probabilities = F.log_softmax(student.float() / temperature, dim=-1)  # [V, B, K]
    pairs = -torch.einsum("tbk,vbk->tv", teacher, log_probabilities) / teacher.shape[1]  # [2, V]
    other = ~torch.eye(2, len(student), dtype=torch.bool, device=student.device)
    return pairs[other].mean()


def patch_loss(teacher: Tensor, student: Tensor, masks: Tensor, temperature: float) -> Tensor:
    """Cross-entropy on masked patches; every crop with masked patches has the same weight. [iBOT]

    Args:
        teacher: probabilities [M, K]. student: logits [M, K]. masks: bool [N, h, w] with M True.

    Returns:
        Scalar; 0 when nothing is masked.
    """
    each = -(teacher * F.log_softmax(student.float() / temperature, dim=-1)).sum(-1)  # [M]
    count = masks.flatten(1).sum(1, dtype=torch.float32)  # [N]
    weight = (1 / count.clamp_min(1))[:, None, None].expand(masks.shape)[masks]  # [M]
    return (each * weight).sum() / (count > 0).sum().clamp_min(1)


@without_autocast
def koleo_loss(tokens: Tensor) -> Tensor:
    """Minus the mean log distance of each normalised class token to its nearest neighbour; tokens [B, C]. [DINOv2]

    The Kozachenko-Leonenko entropy estimator: it spreads the tokens, so that features do not collapse.
    """
    unit = F.normalize(tokens.float(), dim=-1)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)  # [B]
    distance = (unit - unit[nearest]).norm(dim=-1)
    return -torch.log(distance + _KOLEO_EPSILON).mean()


@without_autocast
def region_loss(teacher: Tensor, student: Tensor, present: Tensor, temperature: float, chosen: Tensor) -> Tensor:
    """Contrastive loss: a region of one large crop against the teacher's features of all regions in the other crop.

    As in DetCon (Henaff et al. 2021): cross-entropy over the regions of this process's photos, in both directions.
    Negatives include other regions of the same photo.

    Args:
        teacher, student: [2, B, R, D] of unit length, features of region r in the first and second crop of each photo.
        present: bool [2, B, R], True where the crop shows the region.
        chosen: int64 [n], the regions to use: indices into those that both crops show.

    Returns:
        Scalar; 0 when no region is chosen.
    """
    both = present.all(0).flatten().nonzero()[:, 0][chosen]  # [n]
    if len(both) == 0:
        return student.sum() * 0
    keys, queries = (tokens.float().flatten(1, 2)[:, both] for tokens in (teacher, student))  # [2, n, D]
    positive = torch.arange(len(both), device=both.device)
    first, second = (F.cross_entropy(queries[v] @ keys[1 - v].T / temperature, positive) for v in (0, 1))
    return (first + second) / 2
