# SPDX-License-Identifier: Apache-2.0
"""The training loss of phases 2 and 3: match queries to target masks, then score class, mask and ancestors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sohes.config import LossConfig
from sohes.losses.ancestor_loss import ancestor_loss
from sohes.losses.mask_losses import bce_loss, class_loss, dice_loss
from sohes.losses.matcher import Matches, assign, pairwise_cost
from sohes.losses.points import random_points, sample_labels, sample_logits, uncertain_points
from sohes.models.outputs import Outputs


class Target(Protocol):
    """What is to be found in one image."""

    masks: Tensor
    """bool [N, H, W]."""
    ancestors: Tensor
    """bool [N, N]; [i, j]: i is an ancestor of j."""


class Criterion:
    """Loss of a batch. A pure function of its arguments; every decoder layer is supervised alike.

    Calling it returns named scalars: `loss` (weighted sum, with gradient), `loss_class`, `loss_mask`, `loss_dice`,
    `loss_ancestor` (each unweighted and summed over layers) and `num_unusable_costs`, which is above zero when the
    model gives numbers that cannot be matched.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def __call__(
        self,
        outputs: Outputs,
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
        num_masks: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of one batch.

        Args:
            outputs: of B images.
            targets: B of them, on the same device; images without masks are legal.
            generator: source of the sampled points; the global one if None.
            num_masks: divisor of the mask losses. Give the mean over processes or accumulated batches of
                `count_masks`, and the loss of the whole is that of one large batch. Default: this batch's own.
        """
        layers = [*outputs.aux, outputs]
        B, Q = outputs.class_logits.shape[:2]
        if len(targets) != B:
            raise ValueError(f"expected {B} targets, one per image, got {len(targets)}")
        device = outputs.class_logits.device
        with torch.autocast(device.type, enabled=False):
            matches = self.match(layers, targets, generator)
            query_of_target = matches.query_of_target  # [layers, B, N]
            exists = query_of_target >= 0
            normaliser = count_masks(targets, Q) if num_masks is None else num_masks
            normaliser = torch.as_tensor(normaliser, dtype=torch.float32, device=device).clamp(min=1.0)

            is_matched = torch.zeros(len(layers), B, Q + 1, dtype=torch.bool, device=device)
            is_matched.scatter_(2, query_of_target.masked_fill(~exists, Q), True)
            class_logits = torch.stack([x.class_logits for x in layers])
            losses = {
                "loss_class": class_loss(class_logits, is_matched[..., :Q], normaliser, self.config.no_object_weight)
            }
            losses["loss_mask"], losses["loss_dice"] = self.mask_losses(
                layers, targets, query_of_target, normaliser, generator
            )
            losses["loss_ancestor"] = self.ancestor_loss(layers, targets, query_of_target)
            config = self.config
            losses["loss"] = (
                config.class_weight * losses["loss_class"]
                + config.mask_weight * losses["loss_mask"]
                + config.dice_weight * losses["loss_dice"]
                + config.ancestor_weight * losses["loss_ancestor"]
            )
            losses["num_unusable_costs"] = torch.tensor(float(matches.num_unusable))
        return losses

    @torch.no_grad()
    def match(self, layers: list[Outputs], targets: Sequence[Target], generator: torch.Generator | None) -> Matches:
        """Match every layer. One set of points per image serves all its queries, targets and layers."""
        features = layers[-1].mask_features.float()  # [B, E, h, w]
        points = random_points((features.shape[0], self.config.num_points), generator, features.device)
        labels = pad_sequence(
            [sample_labels(t.masks, p[None]) for t, p in zip(targets, points, strict=True)], batch_first=True
        )  # [B, N, P]
        sampled = sample_logits(features, points, map_extent(layers[-1]))  # [B, E, P]
        costs = torch.stack(
            [
                pairwise_cost(
                    layer.class_logits, torch.bmm(layer.mask_embeddings.float(), sampled), labels, self.config
                )
                for layer in layers
            ]
        )
        return assign(costs, [len(t.masks) for t in targets])

    def mask_losses(
        self,
        layers: list[Outputs],
        targets: Sequence[Target],
        query_of_target: Tensor,
        num_masks: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """BCE and dice of all matched pairs, summed over layers, per mask."""
        features = layers[-1].mask_features.float()
        embeddings = torch.stack([x.mask_embeddings for x in layers]).float()  # [layers, B, Q, E]
        maps, masks = [], []
        for image, target in enumerate(targets):
            layer, index = torch.nonzero(query_of_target[:, image] >= 0, as_tuple=True)  # [M]
            chosen = embeddings[layer, image, query_of_target[layer, image, index]]  # [M, E]
            maps.append((chosen @ features[image].flatten(1)).unflatten(1, features.shape[2:]))  # [M, h, w]
            masks.append((target.masks, index))
        if not sum(len(x) for x in maps):
            zero = (embeddings.sum() + features.sum()) * 0.0  # keeps every parameter in the graph
            return zero, zero
        extent = map_extent(layers[-1])
        points = uncertain_points(
            torch.cat(maps).detach(),
            self.config.num_points,
            extent,
            oversample_ratio=self.config.oversample_ratio,
            importance_ratio=self.config.importance_ratio,
            generator=generator,
        )  # [all M, P, 2]
        logits = sample_logits(torch.cat(maps)[:, None], points, extent)[:, 0]  # [all M, P]
        parts = points.split([len(x) for x in maps])
        labels = torch.cat([sample_labels(m[index], p) for (m, index), p in zip(masks, parts, strict=True)])
        return (
            bce_loss(logits, labels).sum() / num_masks,
            dice_loss(logits, labels).sum() / num_masks,
        )

    def ancestor_loss(self, layers: list[Outputs], targets: Sequence[Target], query_of_target: Tensor) -> Tensor:
        """Loss of the ancestor logits between matched queries; zero without the head."""
        if layers[-1].ancestor_logits is None:
            return query_of_target.new_zeros((), dtype=torch.float32)
        N = query_of_target.shape[2]
        logits = torch.stack([x.ancestor_logits for x in layers])  # [layers, B, Q, Q]
        index = query_of_target.clamp(min=0)  # [layers, B, N]
        logits = logits.gather(2, index[..., :, None].expand(-1, -1, -1, logits.shape[-1]))  # [layers, B, N, Q]
        logits = logits.gather(3, index[..., None, :].expand(-1, -1, N, -1))  # [layers, B, N, N]
        labels = torch.zeros(len(targets), N, N, dtype=torch.bool, device=logits.device)
        for image, target in enumerate(targets):
            labels[image, : len(target.masks), : len(target.masks)] = target.ancestors
        return ancestor_loss(logits, labels[None], query_of_target >= 0)


def map_extent(outputs: Outputs) -> tuple[float, float]:
    """Share (x, y) of the mask map that the image covers."""
    (H, W), (h, w) = outputs.image_size, outputs.mask_features.shape[2:]
    return W / (4 * w), H / (4 * h)


def count_masks(targets: Sequence[Target], num_queries: int) -> int:
    """Masks of a batch that can be matched."""
    return sum(min(len(t.masks), num_queries) for t in targets)
