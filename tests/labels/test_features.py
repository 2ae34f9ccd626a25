# SPDX-License-Identifier: Apache-2.0
import json
import socket
from dataclasses import replace

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch.nn import functional as F

from sohes.configs.run import ConfigError, ExploreConfig
from sohes.labels.features import build_extractor, packaged_names
from sohes.labels.pipeline import label_image
from sohes.models.export import save_vit
from sohes.models.weights import WeightsError
from sohes.structures.masks import PackedMasks, mask_iou
from sohes.utils.errors import SohesError

TINY = "vit_tiny_patch16_224"


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (5, 5), (64, 96), (61, 97)])
def test_descriptor_of_any_size(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = build_extractor(ExploreConfig())
    view = extractor.view(image)
    (features,) = extractor([view])
    assert features.shape[:2] == view.grid
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert view.patches.max() == view.grid[0] * view.grid[1] - 1


def test_descriptor_separates_surfaces(two_discs):
    image, outer, inner = two_discs
    extractor = build_extractor(ExploreConfig(place_weight=0.0, start="patches"))
    view = extractor.view(image)
    features = F.normalize(extractor([view])[0].flatten(0, 1), dim=1)
    kind = (view.pool(torch.stack([outer, inner]).float()) > 0.5).sum(1)  # 0 gray, 1 red, 2 yellow
    means = torch.stack([features[kind == k].mean(0) for k in range(3)])
    between = F.cosine_similarity(means[:, None], means[None], dim=2)
    assert between.fill_diagonal_(0).max() < 0.5
    for k in range(3):
        assert (features[kind == k] @ means[k]).mean() > 0.9


def test_constant_image_differs_by_place_only():
    extractor = build_extractor(ExploreConfig(place_weight=0.0, start="patches"))
    (features,) = extractor([extractor.view(torch.full((3, 32, 32), 77, dtype=torch.uint8))])
    torch.testing.assert_close(features, features[:1, :1].expand_as(features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("facet", ["key", "query", "value", "output"])
def test_vit_keeps_the_aspect_ratio_and_drops_prefix_tokens(facet):
    extractor = build_extractor(ExploreConfig(features=TINY, weights="random", side=64, facet=facet))
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in ((50, 100), (1, 1), (100, 50), (50, 100))]
    views = [extractor.view(image) for image in images]
    together = extractor(views)
    assert [tuple(f.shape) for f in together] == [(3, 6, 192), (4, 4, 192), (6, 3, 192), (3, 6, 192)]
    for view, features in zip(views, together, strict=True):
        torch.testing.assert_close(extractor([view])[0], features, rtol=1e-3, atol=1e-4)


def test_the_packaged_backbone_separates_surfaces(two_discs):
    """Without internet or a file of the user."""
    assert packaged_names() == ["sohes-micro"]
    image, outer, inner = two_discs
    config = ExploreConfig(features="sohes-micro", facet="output", side=192, feature_side=96, start="patches")
    extractor = build_extractor(config)
    view = extractor.view(image)
    features = F.normalize(extractor([view])[0].flatten(0, 1), dim=1)
    shares = view.pool(torch.stack([outer, inner]).float())  # [h*w, 2]
    kind = shares.sum(1).round()
    pure = ((shares < 0.1) | (shares > 0.9)).all(1)
    means = F.normalize(torch.stack([features[pure & (kind == k)].mean(0) for k in range(3)]), dim=1)
    found = (features[pure] @ means.T).argmax(1)
    assert (found == kind[pure]).float().mean() > 0.9


def test_a_vit_may_see_less_than_the_working_size(two_discs):
    image = two_discs[0]  # 64 x 96
    config = ExploreConfig(features=TINY, weights="random", side=320, feature_side=96, start="patches")
    extractor = build_extractor(config)
    view = extractor.view(image)
    assert view.lab.shape[1:] == (64, 96)
    assert view.grid == (5, 7)
    (features,) = extractor([view])
    small = replace(view, image=F.interpolate(view.image[None].float(), (80, 112), mode="bilinear", antialias=True)[0])
    torch.testing.assert_close(features, extractor([small])[0])
    assert len(label_image(image, extractor, config)) > 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close(precision):
    config = ExploreConfig(features=TINY, weights="random", side=64, precision=precision)
    half = build_extractor(config)
    view = half.view(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8))
    (features,) = half([view])
    assert features.dtype == torch.float32
    state = {name: value.float() for name, value in half.vit.state_dict().items()}
    full = build_extractor(replace(config, precision="fp32"))
    full.vit.load_state_dict(state)
    # A ViT of 12 layers with rounded activations; weights are the same.
    assert F.cosine_similarity(features, full([view])[0], dim=2).min() > 0.999


def test_a_vit_labels_a_photo_from_basins_and_from_patches(two_discs):
    image, outer, _ = two_discs
    for start in ("basins", "patches"):
        config = ExploreConfig(features=TINY, weights="random", side=96, start=start, theta_small=0.05)
        forest = label_image(image, build_extractor(config), config)
        assert len(forest) > 1
        assert forest.masks.size == (64, 96)
        if start == "basins":  # sharp even where the features are those of a random network
            assert mask_iou(PackedMasks.from_dense(outer[None]), forest.masks).max() > 0.9


def test_key_is_what_the_last_attention_projects():
    extractor = build_extractor(ExploreConfig(features=TINY, weights="random", side=32))
    view = extractor.view(torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8))
    seen = []
    handle = extractor.vit.blocks[-1].attn.qkv.register_forward_hook(lambda m, i, o: seen.append(o))
    extractor.vit.forward_features(((view.image.float() / 255 - extractor.mean) / extractor.std)[None])
    handle.remove()
    torch.testing.assert_close(extractor([view])[0].flatten(0, 1), seen[0][0, 1:, 192:384], rtol=1e-4, atol=1e-5)


def test_local_weights_are_used_and_must_fit(tmp_path):
    state = timm.create_model(TINY, num_classes=0).state_dict()
    save_file(state, tmp_path / "good.safetensors")
    config = ExploreConfig(features=TINY, weights=str(tmp_path / "good.safetensors"), side=32)
    loaded = build_extractor(config).vit.state_dict()["blocks.11.attn.qkv.weight"]
    torch.testing.assert_close(loaded, state["blocks.11.attn.qkv.weight"])

    state["extra"] = state.pop("norm.bias")
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError) as error:
        build_extractor(ExploreConfig(features=TINY, weights=str(tmp_path / "bad.safetensors")))
    assert "missing     norm.bias [192]" in str(error.value)
    assert "unexpected  extra [192]" in str(error.value)


def test_missing_weights_file():
    with pytest.raises(WeightsError, match=r"^backbone weights not found: nowhere\.safetensors$"):
        build_extractor(ExploreConfig(features=TINY, weights="nowhere.safetensors"))


def test_no_network_gives_one_clear_error(monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # else the hub client retries for a minute
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as error:
        build_extractor(ExploreConfig(features=TINY))
    assert str(error.value).startswith(f"could not fetch the weights of '{TINY}' (")
    assert str(error.value).endswith(
        "without a network set weights to a local file (.safetensors, .pth), or to 'random' for untrained features, or "
        "features to a folder with a timm model (config.json and model.safetensors)"
    )


@pytest.mark.parametrize("name", ["vit_small_patch16_18x2_224", "vit_tiny_patch16_224.dinosaur"])
def test_weights_that_nobody_published(name):
    """timm has the architecture of the first only, and would continue with random weights."""
    with pytest.raises(WeightsError, match=rf"^timm has no weights for '{name}', only for: "):
        build_extractor(ExploreConfig(features=name))


# Every family that a name of timm may mean, and how many prefix tokens, patch size and width it has.
FAMILIES = {
    "vit_small_patch8_224.dino": (1, 8, 384),
    "vit_base_patch16_224.mae": (1, 16, 768),
    "vit_small_patch14_dinov2.lvd142m": (1, 14, 384),
    "vit_small_patch14_reg4_dinov2.lvd142m": (5, 14, 384),
    "vit_small_patch16_dinov3.lvd1689m": (5, 16, 384),
    "vit_small_patch16_dinov3_qkvb.lvd1689m": (5, 16, 384),
    "vit_small_patch16_rope_mixed_ape_224": (1, 16, 384),
    "vit_xsmall_patch16_clip_224": (1, 16, 256),
    "vit_wee_patch16_reg1_gap_256": (1, 16, 256),
    "vit_tiny_r_s16_p8_224": (1, 32, 192),
}


@pytest.fixture
def shallow(monkeypatch):
    """timm's networks with two blocks."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: create(name, depth=2, **kwargs))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_vits(name, shallow, monkeypatch):
    num_prefix, patch, width = FAMILIES[name]
    torch.manual_seed(0)
    extractor = build_extractor(ExploreConfig(features=name, weights="random", side=64))
    for parameter in extractor.vit.parameters():  # biases and scales begin at 0 or 1, which would hide mistakes
        parameter.copy_(0.1 * torch.randn_like(parameter))
    assert (extractor.vit.num_prefix_tokens, extractor.patch) == (num_prefix, patch)
    sizes = ((50, 100), (1, 1), (300, 20), (50, 100))
    views = [extractor.view(torch.randint(0, 256, (3, h, w), dtype=torch.uint8)) for h, w in sizes]
    together = extractor(views)
    assert [tuple(f.shape) for f in together] == [(*view.grid, width) for view in views]
    single = [extractor([view])[0] for view in views]
    for features, alone in zip(together, single, strict=True):
        assert features.isfinite().all()
        torch.testing.assert_close(features, alone, rtol=1e-3, atol=1e-4)

    # What the network's own attention sees as query and key, before norm and rotation, and as value.
    seen = {}
    attention, sdpa = extractor.vit.blocks[-1].attn, F.scaled_dot_product_attention
    attention.q_norm.register_forward_pre_hook(lambda _, args: seen.update(query=args[0]))
    attention.k_norm.register_forward_pre_hook(lambda _, args: seen.update(key=args[0]))
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **kwargs: seen.update(value=v) or sdpa(q, k, v, **kwargs)
    )
    pixels = (views[0].image.float() / 255 - extractor.mean) / extractor.std
    output = extractor.vit.forward_features(pixels[None])[0, num_prefix:]
    wanted = dict(seen)
    for facet in ("query", "key", "value"):
        expected = wanted[facet][0].transpose(0, 1).flatten(1)[num_prefix:]  # [heads, L, D] -> [L, heads * D]
        extractor.config = replace(extractor.config, facet=facet)
        got = extractor([views[0]])[0].flatten(0, 1)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    extractor.config = replace(extractor.config, facet="output")
    torch.testing.assert_close(extractor([views[0]])[0].flatten(0, 1), output, rtol=1e-3, atol=1e-4)


def test_facets_of_unusual_blocks(shallow):
    name = "vit_pwee_patch16_reg1_gap_256"
    with pytest.raises(ConfigError, match=r"of kind ParallelScalingBlock, of which facet 'key' cannot be taken"):
        build_extractor(ExploreConfig(features=name, weights="random"))
    extractor = build_extractor(ExploreConfig(features=name, weights="random", facet="output", side=32))
    assert extractor([extractor.view(torch.zeros(3, 9, 9, dtype=torch.uint8))])[0].shape == (2, 2, 256)


def test_a_vit_for_one_size():
    with pytest.raises(ConfigError, match=r"^features 'vit_relpos_small_patch16_224' cannot take images of any size"):
        build_extractor(ExploreConfig(features="vit_relpos_small_patch16_224", weights="random"))


@pytest.mark.parametrize("name", ["resnet50", "vit_bsae_patch8", "nothing"])
def test_unknown_features(name):
    with pytest.raises(
        ValueError, match=rf"features '{name}': expected 'descriptor', 'sohes-micro', a folder with a timm model, or"
    ):
        build_extractor(ExploreConfig(features=name, weights="random"))


def test_a_folder_with_a_timm_model(tmp_path):
    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "reg_tokens": 3}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **arguments)
    save_vit(tmp_path / "vit", vit, "vit_tiny_patch16_224", arguments, torch.float16)
    config = ExploreConfig(features=str(tmp_path / "vit"), facet="output", side=48)
    extractor = build_extractor(config)
    assert extractor.patch == 8
    view = extractor.view(torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8))
    (features,) = extractor([view])
    pixels = (view.image.float() / 255 - extractor.mean) / extractor.std
    expected = vit.eval().half().float().forward_features(pixels[None])[0, 4:].reshape(*view.grid, 24)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    random = build_extractor(replace(config, weights="random"))
    assert not torch.equal(random([view])[0], features)
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(WeightsError, match="holds no timm model"):
        build_extractor(config)


@pytest.mark.parametrize("weights", ["timm", "random"])
@pytest.mark.parametrize("name", ["convnext_atto", "resnet10t", "vit_relpos_small_patch16_224", "swin_s3_tiny_224"])
def test_a_folder_with_another_network(tmp_path, name, weights):
    """Networks that take other arguments, or are not plain ViTs."""
    config = {"architecture": name, "num_classes": 0, "pretrained_cfg": {"num_classes": 0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if weights == "timm":
        save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(
        ConfigError, match=r"^features.*(no ViT for images of any size|expected a plain Vision)"
    ) as error:
        build_extractor(ExploreConfig(features=str(tmp_path), weights=weights))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no timm model"),
        ("[1]", "names no architecture of timm"),
        ('{"architecture": 3}', "names no architecture of timm"),
        ('{"architecture": "vit_of_tomorrow"}', "names no architecture of timm"),
        ('{"model": {}, "infer": {}}', "names no architecture of timm"),  # a model of sohes
        ('{"architecture": "vit_tiny_patch16_224", "model_args": {"depth_": 2}}', "has unknown settings"),
        ('{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}', "holds no timm model"),  # and no weights
    ],
)
def test_a_folder_whose_config_is_none(tmp_path, text, expected):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SohesError, match=rf"^features: {tmp_path}.*{expected}") as error:
        build_extractor(ExploreConfig(features=str(tmp_path)))
    assert "\n" not in str(error.value)
