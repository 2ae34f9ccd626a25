# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from micro import no_file_beyond
from PIL import Image
from safetensors.torch import load_file, save_file

from sohes.configs.packaged import PACKAGED
from sohes.configs.presets import cpu
from sohes.configs.run import InferConfig
from sohes.models.segmenter import ImageInputError, Segmenter
from sohes.models.segmenter_model import build_model
from sohes.models.weights import WeightsError, find_weights
from sohes.utils.devices import DeviceError
from sohes.utils.errors import SohesError


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(query_init="seeds")


@pytest.fixture(scope="module")
def segmenter(config):
    torch.manual_seed(0)
    return Segmenter(build_model(config).eval(), config, InferConfig(size=64))


@pytest.fixture
def saved(segmenter, tmp_path):
    segmenter.save_pretrained(tmp_path / "weights" / "instruct")
    return tmp_path / "weights" / "instruct"


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_a_full_disk_is_an_error_and_keeps_the_old_weights(segmenter, saved):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with no_file_beyond(100), pytest.raises(WeightsError, match=r"^cannot write .*model.safetensors: .+$"):
        segmenter.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def edit_config(folder: Path, **changes: object) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings["model"] |= changes
    (folder / "config.json").write_text(json.dumps(settings))


def test_saving_and_loading_gives_the_same_masks(segmenter, saved, picture):
    loaded = Segmenter.from_pretrained(saved)
    assert loaded.model_config == segmenter.model_config
    assert loaded.infer_config == segmenter.infer_config
    assert not loaded.model.training
    (before,), (after,) = segmenter(picture), loaded(picture)
    assert len(before) > 0
    assert torch.equal(before.masks.words, after.masks.words)
    assert torch.equal(before.parents, after.parents)
    assert {p.name for p in saved.iterdir()} == {"model.safetensors", "config.json"}


def test_weights_have_the_mode_of_the_umask(saved):
    modes = {path.stat().st_mode & 0o777 for path in saved.iterdir()}
    assert len(modes) == 1
    assert modes.pop() & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_a_run_folder_gives_its_last_phase(segmenter, saved):
    run = saved.parent.parent
    assert find_weights(run) == saved
    segmenter.save_pretrained(run / "weights" / "correct")
    assert find_weights(run) == find_weights(run / "weights") == run / "weights" / "correct"


def test_every_image_type_is_accepted(segmenter, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a photo.png")
    kinds = [
        picture,
        torch.from_numpy(picture).permute(2, 0, 1),
        Image.fromarray(picture),
        tmp_path / "a photo.png",
        str(tmp_path / "a photo.png"),
    ]
    forests = segmenter(kinds)
    assert len({forest.masks.words.numpy().tobytes() for forest in forests}) == 1
    gray = picture[..., 0]
    by_array, by_tensor, by_image = segmenter([gray, torch.from_numpy(gray)[None], Image.fromarray(gray)])
    assert torch.equal(by_array.masks.words, by_image.masks.words)
    assert torch.equal(by_array.masks.words, by_tensor.masks.words)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (7, "int"),
        (None, "NoneType"),
        (b"jpeg", "bytes; Image.open(io.BytesIO(...)) of PIL reads encoded images"),
        (np.zeros((4, 4, 3)), "an array of float64 [4, 4, 3]"),
        (np.zeros((4, 4, 4), np.uint8), "an array of uint8 [4, 4, 4]"),
        (np.zeros((3, 4, 5), np.uint8), "an array of uint8 [3, 4, 5]"),
        (np.zeros(5, np.uint8), "an array of uint8 [5]"),
        (np.array(5, np.uint8), "an array of uint8 []"),
        (np.array([[None]]), "an array of object [1, 1]"),
        (np.zeros((0, 4, 3), np.uint8), "an array of uint8 [0, 4, 3]"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "a tensor of uint8 [4, 4, 3]"),
        (torch.rand(3, 4, 4), "a tensor of float32 [3, 4, 4]"),
        (torch.zeros(2, 3, 4, 4).byte(), "a tensor of uint8 [2, 3, 4, 4]; a batch is given as a list of images"),
    ],
)
@pytest.mark.parametrize("in_a_list", [True, False])
def test_other_types_are_refused(segmenter, image, got, in_a_list):
    with pytest.raises(ImageInputError, match=r"^expected a path, a uint8 tensor \[3, H, W\] .*, got ") as caught:
        segmenter([image] if in_a_list else image)
    assert isinstance(caught.value, SohesError | TypeError | ValueError)
    assert str(caught.value).endswith(f", got {got}")
    assert "\n" not in str(caught.value)


def test_any_iterable_of_images(segmenter, picture):
    assert len(segmenter(picture for _ in range(3))) == len(segmenter((picture, picture, picture))) == 3
    assert segmenter([]) == []
    with pytest.raises(ImageInputError, match=r"or a list of those, got dict$"):
        segmenter({"image": picture})
    assert repr(segmenter) == f"Segmenter('vit_tiny_patch16_224', {segmenter.model.num_queries} queries, cpu)"


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(WeightsError, match=r"^no folder './nowhere', .*; expected one with model.safetensors and"):
        Segmenter.from_pretrained("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"^no model.safetensors in .*empty"):
        Segmenter.from_pretrained(tmp_path / "empty")
    (saved / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config.json is missing$"):
        Segmenter.from_pretrained(saved)


def test_truncated_weights_are_named(saved):
    weights = saved / "model.safetensors"
    for keep in (weights.stat().st_size - 1, 100, 0):
        weights.write_bytes(weights.read_bytes()[:keep])
        with pytest.raises(WeightsError, match=r"model.safetensors is damaged or truncated"):
            Segmenter.from_pretrained(saved)


def test_weights_that_do_not_fit_are_listed_key_by_key(saved):
    state = load_file(saved / "model.safetensors")
    state["mask_decoder.extra"] = torch.zeros(2)
    del state["mask_decoder.layernorm.bias"]
    state["mask_decoder.layernorm.weight"] = torch.zeros(5)
    save_file(state, saved / "model.safetensors")
    with pytest.raises(WeightsError) as error:
        Segmenter.from_pretrained(saved)
    assert str(error.value).splitlines() == [
        f"weights in {saved} do not fit the model:",
        "  missing     mask_decoder.layernorm.bias [32]",
        "  unexpected  mask_decoder.extra [2]",
        "  shape       mask_decoder.layernorm.weight is [5], expected [32]",
    ]


def test_a_damaged_config_is_named(saved):
    edit_config(saved, hiden_dim=32)
    with pytest.raises(WeightsError, match=r"config.json does not describe a model: .*did you mean 'hidden_dim'"):
        Segmenter.from_pretrained(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config.json does not describe a model"):
        Segmenter.from_pretrained(saved)


def test_loading_needs_no_backbone_weights(saved):
    edit_config(saved, backbone_weights="/gone/dino.pth")
    assert Segmenter.from_pretrained(saved).model_config.backbone_weights == ""


def test_backbone_weights_from_a_local_file(tiny_config, tmp_path):
    kwargs = {**tiny_config().backbone_kwargs, "img_size": 32}  # another grid: positions are resampled
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10, **kwargs)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    model = build_model(tiny_config(backbone_weights=str(tmp_path / "vit.pth")))
    assert torch.equal(model.backbone.vit.blocks[1].mlp.fc1.weight, vit.blocks[1].mlp.fc1.weight)
    assert model.backbone.vit.pos_embed.shape == (1, 65, 32)
    with pytest.raises(WeightsError, match=r"^backbone weights not found: .*absent.pth$"):
        build_model(tiny_config(backbone_weights=str(tmp_path / "absent.pth")))
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"^backbone weights in .*broken.pth cannot be read: "):
        build_model(tiny_config(backbone_weights=str(tmp_path / "broken.pth")))
    torch.save({k: v for k, v in vit.state_dict().items() if "blocks.1.mlp" not in k}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"missing     blocks.1.mlp.fc1.bias"):
        build_model(tiny_config(backbone_weights=str(tmp_path / "part.pth")))


def test_backbone_weights_of_the_package():
    packaged = timm.create_model(f"local-dir:{PACKAGED / 'sohes-micro'}", pretrained=True)
    vit = build_model(cpu().model).backbone.vit
    assert torch.equal(vit.blocks[5].mlp.fc2.weight, packaged.blocks[5].mlp.fc2.weight)
    assert torch.equal(vit.reg_token, packaged.reg_token)
    assert vit.pos_embed.shape[1] == 1 + 4 + 20 * 20  # class, registers, and positions resampled for 160 px


def test_the_trained_vit_opens_in_timm(segmenter, tmp_path):
    segmenter.save_backbone(tmp_path)
    vit = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    ours = segmenter.model.backbone.vit
    assert {key: value.shape for key, value in vit.state_dict().items()} == {
        key: value.shape for key, value in ours.state_dict().items()
    }
    images = torch.rand(1, 3, 40, 56)
    assert torch.equal(vit.forward_features(images), ours.forward_features(images))


def test_only_a_vit_can_be_saved_on_its_own(tiny_config, tmp_path):
    config = tiny_config(backbone="resnet10t", backbone_kwargs={})
    segmenter = Segmenter(build_model(config).eval(), config, InferConfig())
    with pytest.raises(WeightsError, match=r"^only a plain ViT can be saved on its own, not 'resnet10t'$"):
        segmenter.save_backbone(tmp_path)
    assert not list(tmp_path.iterdir())


def test_eight_threads_share_one_segmenter(segmenter):
    pictures = [np.random.default_rng(seed).integers(0, 256, (40 + seed, 64, 3), dtype=np.uint8) for seed in range(8)]
    alone = [segmenter(picture)[0] for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda picture: segmenter(picture)[0], pictures * 2))
    for ours, theirs in zip(together, alone * 2, strict=True):
        assert torch.equal(ours.masks.words, theirs.masks.words)
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.parents, theirs.parents)


def test_a_device_that_is_not_there_is_one_line(saved, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match=r"device cuda: torch sees 0 CUDA devices"):
        Segmenter.from_pretrained(saved, device="cuda")
