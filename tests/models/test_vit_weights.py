# SPDX-License-Identifier: Apache-2.0
"""Published forms of ViT weights, and files without weights."""

import argparse
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from sohes.models.backbone import load_vit_weights
from sohes.models.weights import WeightsError

NAME, SIZES = "vit_tiny_patch16_224", {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 32}


def new_vit():
    return timm.create_model(NAME, num_classes=0, dynamic_img_size=True, **SIZES)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(1)
    return {key: torch.randn_like(value) for key, value in new_vit().state_dict().items()}


def below(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def other(state):
    return {key: value + 1 for key, value in state.items()}


FORMS = {
    "bare": lambda s: s,
    "ordered": OrderedDict,
    "DINO": lambda s: {
        "student": below("module.backbone.", other(s)) | {"module.head.mlp.0.weight": torch.zeros(2, 2)},
        "teacher": below("backbone.", s) | {"head.last_layer.weight_v": torch.zeros(3, 2)},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny", patch_size=16),
        "dino_loss": {"center": torch.zeros(1, 4)},
    },
    "DINO, student alone": lambda s: {"student": below("module.backbone.", s)},
    "DINOv2": lambda s: {"teacher": below("backbone.", s) | {"dino_head.mlp.0.weight": torch.zeros(1)}},
    "DINOv2 in a run": lambda s: {"model": below("teacher.backbone.", s) | below("student.backbone.", other(s))},
    "MAE": lambda s: {"model": s | {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 5, 8)}},
    "MAE, fine-tuned": lambda s: {"model": s | {"head.weight": torch.zeros(9, 24), "fc_norm.weight": torch.ones(24)}},
    "DataParallel": lambda s: {"state_dict": below("module.", s)},
    "Lightning": lambda s: {"state_dict": below("model.backbone.", s), "epoch": 1, "global_step": 7},
    "compiled": lambda s: {"model": below("_orig_mod.", s)},
    "in containers": lambda s: {"state_dict": {"model": {"module": below("net.vit.", s)}}},
    "with a number beside": lambda s: s | {"epoch": 5},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_checkpoints(tmp_path, state, form):
    torch.save(FORMS[form](dict(state)), tmp_path / "weights.pth")
    vit = new_vit()
    load_vit_weights(vit, tmp_path / "weights.pth")
    for key, value in vit.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_safetensors_with_a_prefix(tmp_path, state):
    save_file(below("encoder.vit.", state), tmp_path / "weights.safetensors")
    vit = new_vit()
    load_vit_weights(vit, tmp_path / "weights.safetensors")
    assert torch.equal(vit.blocks[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ((1, 2), "got tuple"),
        ("weights", "got str"),
        (None, "got NoneType"),
        (2.5, "got float"),
        (torch.zeros(3), "got Tensor"),
        ({}, "found nothing"),
        ({"model": None}, "found model"),
        ({"teacher": 3, "student": "x"}, "found student, teacher"),
        ({"state_dict": {"model": {"epoch": 1}}}, "in state_dict.model: expected tensors by name, found epoch"),
        ({1: torch.zeros(2)}, "found 1"),
    ],
)
def test_files_without_weights(tmp_path, content, expected):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"^backbone weights in .*weights\.pth") as caught:
        load_vit_weights(new_vit(), tmp_path / "weights.pth")
    assert str(caught.value).endswith(expected)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x02}q\x00", b"<html>404</html>", bytes(1000)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
def test_files_that_cannot_be_read(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"^backbone weights in .*") as caught:
        load_vit_weights(new_vit(), path)
    assert "\n" not in str(caught.value)


class Payload:
    """An object whose unpickling executes code."""

    def __reduce__(self):
        return (np.testing.assert_equal, (1, 2))


def test_pickles_are_not_executed(tmp_path, state):
    torch.save({"model": state, "extra": Payload()}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"cannot be read: .*[Ww]eights.only"):
        load_vit_weights(new_vit(), tmp_path / "weights.pth")


def test_two_networks_without_a_teacher(tmp_path, state):
    torch.save(below("image.", state) | below("depth.", state), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"expected one ViT, found several, below 'depth.', 'image.'$"):
        load_vit_weights(new_vit(), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch_embed.proj.weight", torch.zeros(3)),
        ("patch_embed.proj.weight", torch.zeros(24, 5, 16, 16)),
        ("pos_embed", torch.zeros(4)),
        ("pos_embed", torch.zeros(1, 8, 24)),
        ("pos_embed", torch.zeros(1, 5, 25)),
        ("blocks.0.attn.qkv.weight", torch.zeros(5)),
    ],
)
def test_tensors_of_other_shapes(tmp_path, state, key, value):
    torch.save(state | {key: value}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"do not fit"):
        load_vit_weights(new_vit(), tmp_path / "weights.pth")
