# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from sohes.config import InferConfig, LossConfig
from sohes.data.dataset import Target
from sohes.data.scenes import draw_scene
from sohes.data.transforms import normalise
from sohes.losses.criterion import Criterion
from sohes.masks import mask_iou
from sohes.models.inference import predict
from sohes.models.segmenter_model import build_model

SIZE = 64


@pytest.mark.parametrize(("query_init", "learning_rate", "enough"), [("seeds", 2e-3, 0.78), ("learned", 1e-3, 0.2)])
def test_a_scene_is_learned_by_heart(tiny_config, query_init, learning_rate, enough):
    scene = draw_scene(3, SIZE)
    images, targets = normalise(scene.image)[None], [Target.from_forest(scene.forest)]
    torch.manual_seed(0)
    model = build_model(
        tiny_config(query_init=query_init, mask_stride=2, num_queries=40, grid_size=8, seeds_per_cell=2)
    )
    criterion = Criterion(
        LossConfig(num_points=256, num_match_points=512, local_ratio=0.4, importance_ratio=0.4, match_layers="last")
    )

    def recall() -> float:
        """Mean over true masks of the best IoU."""
        forest = predict(model, [scene.image], InferConfig(size=SIZE))[0]
        return mask_iou(scene.forest.masks, forest.masks).amax(dim=1).mean().item()

    before = recall()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    first_losses = None
    for _ in range(70):
        losses = criterion(model(images), targets, generator)
        first_losses = first_losses or losses
        optimiser.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    after = recall()
    assert after > before + 0.1
    assert after > enough
    assert losses["loss_ancestor"] < 0.9 * first_losses["loss_ancestor"]
