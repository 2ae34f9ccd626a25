# SPDX-License-Identifier: Apache-2.0
"""Both decoders give the logits of a Mask2Former of transformers with the same random weights."""

from __future__ import annotations

import pytest
import torch

from sohes.models.mask_decoder import MaskDecoder
from sohes.models.mask_heads import ProjectedMasks
from sohes.models.ms_deform_attn_module import MSDeformAttn, reference_points
from sohes.models.pixel_decoder import PixelDecoder
from sohes.models.queries import LearnedQueries

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

CHANNELS = [12, 16, 24, 32]
DIM, QUERIES = 32, 7


@pytest.fixture(scope="module")
def peer():
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=12,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=DIM,
        mask_feature_size=DIM,
        hidden_dim=DIM,
        encoder_feedforward_dim=48,
        dim_feedforward=64,
        encoder_layers=2,
        decoder_layers=5,  # counts the prediction before the first layer
        num_attention_heads=4,
        num_queries=QUERIES,
        num_labels=1,
    )
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    module = model.model.pixel_level_module.decoder
    peer_decoder = type(module)(config, feature_channels=CHANNELS)
    for parameter in peer_decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model, peer_decoder.eval()


def pixel_decoder_from(peer_decoder: torch.nn.Module) -> PixelDecoder:
    ours = PixelDecoder(CHANNELS, DIM, DIM, 4, num_layers=2, num_heads=4, num_points=4, ffn_dim=48, dropout=0.0).eval()
    state = {
        key.replace("encoder.layers", "layers"): value
        for key, value in peer_decoder.state_dict().items()
        if not key.startswith("mask_projection")  # part of our mask decoder
    }
    ours.load_state_dict(state, strict=True)
    return ours


def mask_decoder_from(model: torch.nn.Module, peer_decoder: torch.nn.Module) -> MaskDecoder:
    ours = MaskDecoder(
        LearnedQueries(QUERIES, DIM),
        ProjectedMasks(DIM, DIM),
        DIM,
        4,
        num_layers=4,
        num_heads=4,
        ffn_dim=64,
        dropout=0.0,
        ancestor_head=False,
        activation_checkpointing=False,
    ).eval()
    state = {}
    for key, value in model.model.transformer_module.state_dict().items():
        key = key.removeprefix("decoder.")
        if ".cross_attn.in_proj_" in key:  # nn.MultiheadAttention has one matrix for three projections
            stem, kind = key.split("in_proj_")
            for name, part in zip("qkv", value.chunk(3), strict=True):
                state[f"{stem}{name}_proj.{kind}"] = part
            continue
        key = key.replace("queries_embedder.weight", "queries.position")
        key = key.replace("queries_features.weight", "queries.content")
        if key.startswith("mask_predictor.mask_embedder."):  # layer.0 -> index in our nn.Sequential
            _, _, layer, _, kind = key.split(".")
            key = f"mask_embedder.{2 * int(layer)}.{kind}"
        state[key] = value
    projection = peer_decoder.mask_projection.state_dict()
    state |= {f"masks.mask_projection.{kind}": value for kind, value in projection.items()}
    state |= {f"class_predictor.{kind}": value for kind, value in model.class_predictor.state_dict().items()}
    ours.load_state_dict(state, strict=True)
    return ours


@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_pixel_decoder_and_mask_decoder_equal_transformers(peer, size):
    model, peer_decoder = peer
    torch.manual_seed(1)
    maps = [torch.randn(2, c, size[0] // s, size[1] // s) for c, s in zip(CHANNELS, (4, 8, 16, 32), strict=True)]
    with torch.no_grad():
        theirs = peer_decoder(maps, return_dict=True, output_hidden_states=False, output_attentions=False)
        pixels = pixel_decoder_from(peer_decoder)(maps, torch.zeros(2, 3, *size))
        for ours, expected in zip(pixels.levels, theirs.multi_scale_features, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)

        decoded = model.model.transformer_module(list(theirs.multi_scale_features), theirs.mask_features)
        outputs = mask_decoder_from(model, peer_decoder)(pixels, size)
    layers = [*outputs.aux, outputs]
    assert len(layers) == len(decoded.masks_queries_logits) == 5
    for layer, masks, hidden in zip(
        layers, decoded.masks_queries_logits, decoded.intermediate_hidden_states, strict=True
    ):
        classes = model.class_predictor(hidden.transpose(0, 1))
        torch.testing.assert_close(layer.mask_logits, masks, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.class_logits, classes, rtol=1e-4, atol=1e-4)
    # If all mask logits had one sign, attention masks would have no effect on this test.
    assert 0.1 < (outputs.mask_logits > 0).float().mean() < 0.9


def test_deformable_attention_equals_transformers():
    modeling = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    torch.manual_seed(0)
    theirs = modeling.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(32, 4, n_levels=2, n_points=3)
    torch.nn.init.normal_(theirs.sampling_offsets.weight, std=0.3)
    torch.nn.init.normal_(theirs.attention_weights.weight, std=0.3)
    ours = MSDeformAttn(32, 4, 2, 3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    shapes = [(5, 4), (3, 2)]
    hidden = torch.randn(2, 26, 32)
    points = reference_points(shapes, torch.device("cpu"))  # [S, 2]
    expected, _ = theirs(
        hidden,
        encoder_hidden_states=hidden,
        reference_points=points[None, :, None].expand(2, -1, 2, -1),
        spatial_shapes_list=shapes,
    )
    torch.testing.assert_close(ours(hidden, points, hidden, shapes), expected, rtol=1e-5, atol=1e-5)
