# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from micro import micro_model

from sohes.configs.run import InferConfig, LossConfig
from sohes.data.scenes import draw_scene
from sohes.data.transforms import normalize
from sohes.losses.criterion import Criterion
from sohes.models.inference import predict
from sohes.models.segmenter_model import build_model
from sohes.structures.masks import mask_iou
from sohes.structures.target import Target

SIZE = 64


@pytest.mark.parametrize(
    ("query_init", "mask_stride", "learning_rate", "steps", "enough"),
    [("seeds", 1, 2e-3, 140, (0.93, 0.9)), ("learned", 2, 1e-3, 70, (0.2, 0.0))],
)
def test_the_model_overfits_one_scene(query_init, mask_stride, learning_rate, steps, enough):
    """`enough`: mean best IoU and average recall of the scene's masks. Learned queries need many more steps."""
    scene = draw_scene(3, SIZE)
    images, targets = normalize(scene.image)[None], [Target.from_forest(scene.forest)]
    torch.manual_seed(0)
    model = build_model(
        micro_model(query_init=query_init, mask_stride=mask_stride, num_queries=40, grid_size=8, seeds_per_cell=2)
    )
    criterion = Criterion(
        LossConfig(num_points=1024, num_match_points=1024, local_ratio=0.4, importance_ratio=0.4, match_layers="last")
    )

    def measure() -> tuple[float, float]:
        """Mean best IoU over true masks, and their average recall over IoU thresholds .50:.05:.95."""
        forest = predict(model, [scene.image], InferConfig(size=SIZE))[0]
        best = mask_iou(scene.forest.masks, forest.masks).amax(dim=1)
        return best.mean().item(), (best[:, None] >= torch.linspace(0.5, 0.95, 10)).float().mean().item()

    iou_before, _ = measure()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    first_losses = None
    for _ in range(steps):
        losses = criterion(model(images), targets, generator)
        first_losses = first_losses or losses
        optimiser.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    iou, recall = measure()
    assert iou > max(iou_before + 0.1, enough[0])
    assert recall >= enough[1]
    assert losses["loss_ancestor"] < 0.9 * first_losses["loss_ancestor"]
