# SPDX-License-Identifier: Apache-2.0
"""Self-correction: the teacher's labels and the branch weights."""

from dataclasses import replace

import pytest
import torch

from sohes.configs.run import CorrectConfig
from sohes.data.dataset import Batch
from sohes.engine.optim import cosine_between
from sohes.models.outputs import Outputs
from sohes.phases.correct import teacher_targets

SIZE = 64


def outputs_of(masks, probabilities):
    """Outputs whose mask logits are +-8 for the given bool masks [Q, 64, 64] and whose entity probability is given."""
    maps = torch.nn.functional.avg_pool2d(masks.float()[None], 4)[0]  # [Q, 16, 16]
    logits = torch.where(maps > 0.5, 8.0, -8.0)
    entity = torch.tensor(probabilities).logit()
    return Outputs(
        class_logits=torch.stack((entity, torch.zeros_like(entity)), dim=-1)[None],
        mask_embeddings=torch.eye(len(masks))[None],
        mask_features=logits[None],
        ancestor_logits=None,
        image_size=(SIZE, SIZE),
        stride=4,
    )


def batch():
    return Batch(["photo"], torch.zeros(1, 3, SIZE, SIZE), None, torch.ones(1, SIZE, SIZE, dtype=torch.bool), [])


def box(x0, y0, x1, y1):
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_thresholds_depend_on_size():
    # Areas as if the long side were 640: 8x8 px count as 80x80 (medium), 4x4 as 40x40, 32x32 as 320x320 (large).
    masks = torch.stack([box(0, 0, 32, 32), box(40, 40, 48, 48), box(0, 40, 32, 64), box(52, 0, 60, 8)])
    config = CorrectConfig(score_thresholds=(0.3, 0.5, 0.7))
    (target,) = teacher_targets(outputs_of(masks, [0.65, 0.65, 0.75, 0.45]), batch(), config)
    areas = sorted(target.masks.flatten(1).sum(1).tolist())
    assert len(areas) == 2  # the large one of 0.65 and the medium one of 0.45 are left out
    assert areas[0] < 150 < areas[1]


def test_one_threshold_for_all_would_starve_the_small():
    masks = torch.stack([box(0, 0, 32, 32), box(40, 40, 44, 44)])
    scores = [0.8, 0.4]
    sized = CorrectConfig(score_thresholds=(0.3, 0.5, 0.7), size_limits=(64.0**2, 96.0**2))
    flat = CorrectConfig(score_thresholds=(0.7, 0.7, 0.7), size_limits=(64.0**2, 96.0**2))
    assert len(teacher_targets(outputs_of(masks, scores), batch(), sized)[0].masks) == 2
    assert len(teacher_targets(outputs_of(masks, scores), batch(), flat)[0].masks) == 1


def test_thresholds_are_not_rounded_to_the_model_s_type():
    """0.6235 is 0.625 in bfloat16, and the mask scores 0.6241."""
    outputs = outputs_of(torch.stack([box(0, 0, 32, 32)]), [0.5])
    outputs.class_logits[..., 0] = 65 / 128
    config = CorrectConfig(score_thresholds=(0.6235, 0.6235, 0.6235))
    for dtype in (torch.float32, torch.bfloat16):
        (target,) = teacher_targets(replace(outputs, class_logits=outputs.class_logits.to(dtype)), batch(), config)
        assert len(target.masks) == 1
        assert 0.6235 < target.scores.item() < 0.625


def test_labels_have_no_duplicates_and_a_forest():
    masks = torch.stack([box(0, 0, 40, 40), box(0, 0, 40, 40), box(8, 8, 24, 24)])
    (target,) = teacher_targets(outputs_of(masks, [0.9, 0.95, 0.8]), batch(), CorrectConfig())
    assert target.masks.shape == (2, SIZE, SIZE)
    torch.testing.assert_close(target.scores, torch.tensor([0.95, 0.8]), atol=2e-3, rtol=0)
    assert target.ancestors.tolist() == [[False, True], [False, False]]


def test_duplicates_and_the_forest_can_be_left_as_they_are():
    masks = torch.stack([box(0, 0, 40, 40), box(0, 0, 40, 40), box(8, 8, 24, 24)])
    config = CorrectConfig(nms_iou=1.0, teacher_forest=False)
    (target,) = teacher_targets(outputs_of(masks, [0.9, 0.95, 0.8]), batch(), config)
    torch.testing.assert_close(target.scores, torch.tensor([0.95, 0.9, 0.8]), atol=2e-3, rtol=0)
    assert not target.ancestors.any()


def test_best_labels_stay_when_there_are_too_many():
    masks = torch.stack([box(16 * i, 0, 16 * i + 12, 12) for i in range(4)])
    (target,) = teacher_targets(outputs_of(masks, [0.8, 0.95, 0.85, 0.9]), batch(), CorrectConfig(max_labels=2))
    torch.testing.assert_close(target.scores, torch.tensor([0.95, 0.9]), atol=2e-3, rtol=0)


def test_a_teacher_that_sees_nothing_gives_no_labels():
    masks = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    (target,) = teacher_targets(outputs_of(masks, [0.9, 0.9, 0.9]), batch(), CorrectConfig())
    assert target.masks.shape == (0, SIZE, SIZE)
    assert target.ancestors.shape == (0, 0)


def test_branch_weights_follow_a_cosine():
    assert cosine_between(1.0, 0.0, 0.0) == 1.0
    assert cosine_between(1.0, 0.0, 1.0) == pytest.approx(0.0)
    assert cosine_between(2.0, 3.0, 0.5) == pytest.approx(2.5)
    weights = [cosine_between(2.0, 3.0, k / 10) for k in range(11)]
    assert weights == sorted(weights)
