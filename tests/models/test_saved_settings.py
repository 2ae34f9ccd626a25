# SPDX-License-Identifier: Apache-2.0
"""config.json of a saved model, edited by hand: errors are one line that names the file and the setting."""

import json

import pytest
import torch
from micro import micro_model

from sohes.configs.run import InferConfig
from sohes.models.segmenter import Segmenter
from sohes.models.segmenter_model import build_model
from sohes.models.weights import WeightsError


@pytest.fixture(scope="module")
def settings_and_weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = micro_model(query_init="seeds")
    Segmenter(build_model(config), config, InferConfig(size=64)).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text()), (folder / "model.safetensors")


@pytest.fixture
def edited(settings_and_weights, tmp_path):
    settings, weights = settings_and_weights
    (tmp_path / "model.safetensors").symlink_to(weights)

    def write(**changes):
        content = json.loads(json.dumps(settings))
        for name, value in changes.items():
            section, key = name.split("__")
            content[section][key] = value
        (tmp_path / "config.json").write_text(json.dumps(content))
        return tmp_path

    return write


def fails(folder, expected):
    with pytest.raises(WeightsError) as caught:
        Segmenter.from_pretrained(folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'} does not describe a model: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "model__backbone",
            "vit_tinny_patch16_224",
            "timm has no model 'vit_tinny_patch16_224'; similar names: vit_",
        ),
        ("model__backbone", "", "timm has no model ''"),
        ("model__backbone", "mobilevit_xxs", "ByoModelCfg"),
        ("model__backbone", "vit_relpos_small_patch16_224", "VisionTransformerRelPos"),
        ("model__backbone_kwargs", {"depht": 2}, "depht"),
        ("model__backbone_kwargs", {"embed_dim": "wide"}, ""),
        ("model__backbone_kwargs", {"num_heads": 0}, ""),
        ("model__backbone_kwargs", [1], "model.backbone_kwargs = [1], expected a dictionary"),
        ("model__hidden_dim", 30, "hidden_dim 30 must be divisible by 4 and by num_heads"),
        ("model__hidden_dim", 0, "model.hidden_dim = 0, expected >= 1"),
        ("model__hidden_dim", -64, ""),
        ("model__hidden_dim", "32", "model.hidden_dim = '32', expected int"),
        ("model__hidden_dim", True, "model.hidden_dim = True, expected int"),
        ("model__num_heads", 0, ""),
        ("model__mask_stride", 3, "model.mask_stride = 3"),
        ("model__mask_stride", True, "model.mask_stride = True"),
        ("model__vit_stride", 7, "vit_stride must divide 32, got 7"),
        ("model__adapter_heads", 5, "must be divisible by num_heads 5"),
        ("model__deform_points", -1, ""),
        ("model__affinity_dim", 1, "model.affinity_dim = 1, expected >= 3"),
        ("model__dropout", 1.5, "model.dropout = 1.5, expected 0 to 1"),
        ("model__query_init", "seed", "did you mean seeds?"),
        ("infer__size", 0, "infer.size = 0, expected >= 32"),
        ("infer__size", 64.5, "infer.size = 64.5, expected int"),
        ("infer__nms_iou", 1.01, "infer.nms_iou = 1.01, expected 0 to 1"),
        ("infer__min_score", float("nan"), "infer.min_score = nan, expected 0 to 1"),
        ("infer__max_masks", 0, "infer.max_masks = 0, expected >= 1"),
        ("infer__batch_size", -1, "infer.batch_size = -1, expected >= 1"),
        ("infer__ancestor_cover", 2, "infer.ancestor_cover = 2.0, expected 0 to 1"),
        ("infer__min_area", -3, "infer.min_area = -3, expected >= 0"),
        ("infer__join_iou", 10**400, "infer.join_iou"),
        ("infer__theta_cover", None, "infer.theta_cover = None, expected float"),
        ("infer__nms_uio", 0.5, "did you mean 'nms_iou'?"),
    ],
)
def test_impossible_settings(edited, name, value, expected):
    fails(edited(**{name: value}), expected)


def test_several_errors_are_one_line(edited):
    fails(edited(infer__size=-5, infer__nms_iou=7), "infer.size = -5, expected >= 32; infer.nms_iou = 7")


def test_seeds_for_a_model_without(edited):
    fails(edited(model__query_init="learned", infer__grid_size=4), "infer.grid_size = 4 is for model.query_init seeds")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "Expecting value"),
        ("[]", "expected a section 'model'"),
        ("3", "expected a section 'model'"),
        ('{"model": {}}', "expected a section 'infer'"),
        ('{"model": 3, "infer": {}}', "expected a section 'model'"),
        ('{"model": {}, "infer": {}}', "model lacks backbone, backbone_kwargs, "),
        ("[" * 100_000, ""),
        ("\ud83d", ""),
    ],
)
def test_files_without_settings(edited, text, expected):
    folder = edited()
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    fails(folder, expected)


def test_a_setting_that_was_deleted(edited):
    folder = edited()
    settings = json.loads((folder / "config.json").read_text())
    del settings["model"]["num_heads"], settings["model"]["vit_stride"]
    (folder / "config.json").write_text(json.dumps(settings))
    fails(folder, "model lacks vit_stride, num_heads")


def test_another_size_gives_the_differences_of_weights(edited):
    with pytest.raises(WeightsError, match=r"do not fit the model:\n"):
        Segmenter.from_pretrained(edited(model__decoder_ffn_dim=48))


def test_inference_settings_may_be_edited(edited):
    folder = edited(infer__max_masks=3, infer__nms_iou=1)
    assert len(Segmenter.from_pretrained(folder)(torch.zeros(3, 40, 40, dtype=torch.uint8))[0]) <= 3
