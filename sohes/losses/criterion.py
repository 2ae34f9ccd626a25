# SPDX-License-Identifier: Apache-2.0
"""The training loss of phases 2 and 3: matching, then losses of classes, masks and ancestors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sohes.configs.model import LossConfig
from sohes.losses.ancestor_loss import ancestor_loss
from sohes.losses.mask_losses import bce_loss, class_loss, dice_loss
from sohes.losses.matcher import Matches, assign, pairwise_cost
from sohes.losses.points import loss_points, match_points, sample_labels, sample_maps
from sohes.models.outputs import Outputs
from sohes.structures.target import Target

Generators = torch.Generator | Sequence[torch.Generator] | None


class Criterion:
    """Loss of a batch, with the same supervision for every decoder layer. A pure function of its arguments.

    Returns named scalars: `loss` (weighted sum, with gradient), `loss_class`, `loss_mask`, `loss_dice`,
    `loss_ancestor` (each unweighted and summed over layers) and `num_unusable_costs`, above zero when the model's
    outputs are not finite or too large for matching.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def __call__(
        self,
        outputs: Outputs,
        targets: Sequence[Target],
        generators: Generators = None,
        num_masks: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of one batch.

        Args:
            outputs: of B images.
            targets: one per image, on the same device; may have no masks.
            generators: for the sampled points: one per image, so that its points do not depend on the rest of the
                batch, or one for all; None: torch's global generator.
            num_masks: divisor of the mask losses, above zero. With the mean of `count_masks` over processes and
                micro-batches, their mean loss equals that of one large batch. Default: `count_masks` of this batch,
                at least 1.
        """
        layers = [*outputs.aux, outputs]
        B, Q = outputs.class_logits.shape[:2]
        if len(targets) != B:
            raise ValueError(f"expected {B} targets, one per image, got {len(targets)}")
        if generators is None or isinstance(generators, torch.Generator):
            per_image: Sequence[torch.Generator | None] = [generators] * B
        else:
            per_image = generators
        device = outputs.class_logits.device
        with torch.autocast(device.type, enabled=False):
            matches = self.match(layers, targets, per_image)
            query_of_target = matches.query_of_target  # [layers, B, N]
            exists = query_of_target >= 0
            normaliser = max(count_masks(targets, Q), 1) if num_masks is None else num_masks
            normaliser = torch.as_tensor(normaliser, dtype=torch.float32, device=device)

            is_matched = torch.zeros(len(layers), B, Q + 1, dtype=torch.bool, device=device)
            is_matched.scatter_(2, query_of_target.masked_fill(~exists, Q), True)
            class_logits = torch.stack([x.class_logits for x in layers])
            losses = {
                "loss_class": class_loss(class_logits, is_matched[..., :Q], normaliser, self.config.no_object_weight)
            }
            losses["loss_mask"], losses["loss_dice"] = self.mask_losses(
                layers, targets, query_of_target, normaliser, per_image
            )
            losses["loss_ancestor"] = self.ancestor_loss(layers, targets, query_of_target)
            config = self.config
            losses["loss"] = (
                config.class_weight * losses["loss_class"]
                + config.mask_weight * losses["loss_mask"]
                + config.dice_weight * losses["loss_dice"]
                + config.ancestor_weight * losses["loss_ancestor"]
            )
            losses["num_unusable_costs"] = torch.tensor(float(matches.num_unusable), dtype=torch.float32, device="cpu")
        return losses

    @torch.no_grad()
    def match(
        self, layers: list[Outputs], targets: Sequence[Target], generators: Sequence[torch.Generator | None]
    ) -> Matches:
        """Matches of every layer. All queries, targets and layers of an image share one set of points."""
        config = self.config
        matched = layers if config.match_layers == "each" else layers[-1:]
        points = torch.stack(
            [
                match_points(t.masks, config.num_match_points, config.local_ratio, generator)
                for t, generator in zip(targets, generators, strict=True)
            ]
        )  # [B, P, 2]
        labels = pad_sequence(
            [sample_labels(t.masks, p[None]) for t, p in zip(targets, points, strict=True)], batch_first=True
        )  # [B, N, P]
        features = layers[-1].mask_features.float()  # [B, E, h, w]
        sampled = sample_maps(features, points, layers[-1].extent)  # [B, E, P]
        costs = [
            pairwise_cost(x.class_logits, torch.bmm(x.mask_embeddings.float(), sampled), labels, config)
            for x in matched
        ]
        matches = assign(torch.stack(costs), [len(t.masks) for t in targets])
        return replace(matches, query_of_target=matches.query_of_target.expand(len(layers), -1, -1))

    def mask_losses(
        self,
        layers: list[Outputs],
        targets: Sequence[Target],
        query_of_target: Tensor,
        num_masks: Tensor,
        generators: Sequence[torch.Generator | None],
    ) -> tuple[Tensor, Tensor]:
        """BCE and dice loss of all matched pairs, summed over layers and divided by `num_masks`."""
        config, extent = self.config, layers[-1].extent
        features = layers[-1].mask_features.float()
        embeddings = torch.stack([x.mask_embeddings for x in layers]).float()  # [layers, B, Q, E]
        zero = (embeddings.sum() + features.sum()) * 0.0  # keeps every parameter in the graph, also without masks
        sums = [zero, zero]
        # unbind, because the backward pass of indexing allocates a map of the whole batch for every image.
        per_image = zip(targets, features.unbind(0), embeddings.unbind(1), generators, strict=True)
        for image, (target, feature, embedding, generator) in enumerate(per_image):
            query = query_of_target[:, image, : len(target.masks)]  # [layers, N]
            found = (query >= 0).T.float()  # [N, layers]
            if found.numel() == 0:
                continue
            layer = torch.arange(len(layers), device=query.device)[:, None]
            chosen = embedding[layer, query.clamp(min=0)]  # [layers, N, E]
            maps = torch.einsum("lne,ehw->nlhw", chosen, feature)  # [N, layers, h, w]
            points = loss_points(
                maps.detach(),
                target.masks,
                config.num_points,
                extent,
                oversample_ratio=config.oversample_ratio,
                importance_ratio=config.importance_ratio,
                local_ratio=config.local_ratio,
                generator=generator,
            )  # [N, P, 2]
            logits = sample_maps(maps, points, extent)  # [N, layers, P]
            labels = sample_labels(target.masks, points)[:, None].expand_as(logits)
            for k, loss in enumerate((bce_loss, dice_loss)):
                sums[k] = sums[k] + (loss(logits, labels) * found).sum() / num_masks
        return sums[0], sums[1]

    def ancestor_loss(self, layers: list[Outputs], targets: Sequence[Target], query_of_target: Tensor) -> Tensor:
        """Loss of the ancestor logits between matched queries; zero without an ancestor head."""
        found = [x.ancestor_logits for x in layers if x.ancestor_logits is not None]
        if not found:
            return query_of_target.new_zeros((), dtype=torch.float32)
        N = query_of_target.shape[2]
        logits = torch.stack(found)  # [layers, B, Q, Q]
        index = query_of_target.clamp(min=0)  # [layers, B, N]
        logits = logits.gather(2, index[..., :, None].expand(-1, -1, -1, logits.shape[-1]))  # [layers, B, N, Q]
        logits = logits.gather(3, index[..., None, :].expand(-1, -1, N, -1))  # [layers, B, N, N]
        labels = torch.zeros(len(targets), N, N, dtype=torch.bool, device=logits.device)
        for image, target in enumerate(targets):
            labels[image, : len(target.masks), : len(target.masks)] = target.ancestors
        return ancestor_loss(logits, labels[None], query_of_target >= 0)


def count_masks(targets: Sequence[Target], num_queries: int) -> int:
    """Number of masks in a batch that can be matched: at most `num_queries` per image."""
    return sum(min(len(t.masks), num_queries) for t in targets)
