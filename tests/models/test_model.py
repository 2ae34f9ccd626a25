# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from sohes.configs.run import LossConfig
from sohes.losses.criterion import Criterion
from sohes.models.segmenter_model import build_model
from sohes.structures.target import Target


@pytest.fixture(scope="module", params=["learned", "seeds"])
def model(request, tiny_config):
    torch.manual_seed(0)
    return build_model(tiny_config(query_init=request.param, mask_stride=4 if request.param == "learned" else 1))


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (1, 1), (3, 130), (70, 53)])
def test_shapes_at_any_size(model, size):
    outputs = model.eval()(torch.randn(2, 3, *size))
    queries = outputs.class_logits.shape[1]
    assert queries in (9, 3 * 3 * 2 * 2)
    assert outputs.class_logits.shape == (2, queries, 2)
    assert outputs.mask_logits.shape == (2, queries, *(-(-side // outputs.stride) for side in size))
    assert outputs.ancestor_logits.shape == (2, queries, queries)
    assert len(outputs.aux) == 2
    assert all(layer.mask_logits.shape == outputs.mask_logits.shape and not layer.aux for layer in outputs.aux)
    for layer in (*outputs.aux, outputs):
        assert layer.mask_logits.isfinite().all()
        assert layer.ancestor_logits.isfinite().all()


def test_gradients_reach_every_parameter(model):
    torch.manual_seed(0)
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[0, 5:40, 5:30] = masks[1, 10:20, 10:20] = masks[2, 40:60, 30:60] = True
    target = Target(masks, torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.bool), torch.ones(3))
    # Injectors and masks start with zero weights: what comes before them has gradients from the second step on.
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    model.zero_grad()
    criterion = Criterion(LossConfig(num_points=64, num_match_points=64, local_ratio=0.2))
    criterion(model.train()(torch.randn(2, 3, 64, 64)), [target, target])["loss"].backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert silent == []


def test_predictions_do_not_depend_on_the_rest_of_the_batch(model):
    model.eval()
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    torch.testing.assert_close(together.mask_logits[1:2], alone.mask_logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(together.class_logits[1:2], alone.class_logits, rtol=1e-3, atol=1e-3)


def test_attention_does_not_see_invalid_patches(model):
    model.eval()
    valid = torch.zeros(1, 64, 128, dtype=torch.bool)
    valid[:, :, :64] = True
    images = torch.randn(1, 3, 64, 128) * valid
    with torch.no_grad():
        tokens = model.backbone.embed(images)[0]  # [1, 1 + 8*16, C]
        attend = model.backbone.attention_mask(valid, (8, 16))
        loud = tokens.clone()
        loud[:, 1:].view(1, 8, 16, -1)[:, :, 8:] = 100.0
        seen = [model.backbone.run_blocks(0, 2, x, attend)[:, 1:].view(1, 8, 16, -1)[:, :, :8] for x in (tokens, loud)]
        assert model(images, valid).mask_logits.isfinite().all()
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_hierarchical_backbones_have_no_adapter(name, tiny_config):
    model = build_model(tiny_config(backbone=name, backbone_kwargs={})).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).mask_logits.shape == (1, 9, 16, 16)


def test_an_8_pixel_vit_sees_the_image_at_half_size(tiny_config):
    model = build_model(tiny_config(vit_stride=16)).eval()
    seen = []
    model.backbone.vit.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 128))
    assert seen == [(1, 3, 32, 64)]


def test_at_first_the_adapter_does_not_change_the_vit(tiny_config):
    model = build_model(tiny_config()).eval()
    vit, images = model.backbone.vit, torch.randn(1, 3, 64, 64)
    blocks = []
    vit.blocks[-1].register_forward_hook(lambda _, __, output: blocks.append(output))
    with torch.no_grad():
        model(images)
        vit.forward_features(images)
    torch.testing.assert_close(blocks[0], blocks[1])


def test_checkpointed_activations_give_the_same_gradients(tiny_config):
    images, gradients = torch.randn(1, 3, 64, 64), []
    for activation_checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_model(tiny_config(activation_checkpointing=activation_checkpointing)).train()
        outputs = model(images)
        (outputs.mask_logits.square().mean() + outputs.class_logits.square().mean()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 33}, "hidden_dim 33 must be divisible by 4 and by num_heads 2"),
        ({"vit_stride": 12}, "vit_stride must divide 32, got 12"),
        ({"adapter_interactions": 3}, "num_interactions must be 1..2 (the ViT's depth), got 3"),
        ({"query_init": "seeds", "affinity_dim": 2}, "affinity_dim must be at least 3, one per colour, got 2"),
        (
            {"backbone": "convnext_atto", "backbone_kwargs": {}, "mask_stride": 2},
            "backbone 'convnext_atto' has no map of stride 2, which mask_stride 2 needs",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, message, tiny_config):
    with pytest.raises(ValueError) as error:
        build_model(tiny_config(**changes))
    assert str(error.value) == message


def test_an_unknown_backbone_gives_similar_names(tiny_config):
    with pytest.raises(
        ValueError, match=r"^timm has no model 'vit_tini_patch16_224'; similar names: .*vit_tiny_patch16_224"
    ):
        build_model(tiny_config(backbone="vit_tini_patch16_224"))
