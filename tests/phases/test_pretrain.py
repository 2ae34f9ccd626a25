# SPDX-License-Identifier: Apache-2.0
"""Self-supervised training of a backbone: the command, its resume, and the folder it leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from sohes import pretrain as command
from sohes.configs.pretrain import (
    PRESETS,
    CropConfig,
    DistillConfig,
    DistortConfig,
    PretrainConfig,
    VitConfig,
    get_preset,
)
from sohes.configs.pretrain_checks import check_pretrain_config
from sohes.configs.run import ConfigError
from sohes.data.images import read_image
from sohes.data.photos import PhotoSet, photo_batches, photo_canvas
from sohes.data.scenes import draw_scene
from sohes.data.sources import list_images
from sohes.engine.checkpoint import list_checkpoints
from sohes.engine.ema import make_teacher
from sohes.models.distillation import build_distillation_model
from sohes.phases import pretrain_pipeline
from sohes.phases.pretrain import draw_views

SMALL = [
    *("--vit.width", "32", "--vit.depth", "2", "--vit.heads", "2"),
    *("--crops.photo-side", "48", "--crops.global-size", "32", "--crops.local-size", "16", "--crops.num-locals", "2"),
    *("--distill.prototypes", "32", "--distill.head-hidden", "16", "--distill.head-bottleneck", "8"),
    *("--distill.region-counts", "3", "6"),
    *("--batch-size", "4", "--optim.warmup-steps", "2", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(6):
        picture = draw_scene(seed, 64).image[:, : 40 + 4 * seed]
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{seed}.png")
    return folder


def run(out: Path, photos: Path, *options: str) -> dict[str, torch.Tensor]:
    assert command.main(["--images", str(photos), "--out", str(out), *SMALL, *options]) == 0
    dcp_to_torch_save(list_checkpoints(out / "checkpoints" / "pretrain")[-1], out / "state.pt")
    return torch.load(out / "state.pt", weights_only=True)


def test_resumed_run_equals_an_uninterrupted_one(photos, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", photos, "--num-steps", "6", "--engine.checkpoint-seconds", "0")

    class Stopped(Exception):
        pass

    real = pretrain_pipeline.pretrain

    def stopping(run_, config, photo_set, device, world):
        def batches(*args):
            for step, batch in photo_batches(*args):
                if step == 3:
                    raise Stopped
                yield step, batch

        with monkeypatch.context() as patch:
            patch.setattr("sohes.phases.pretrain.photo_batches", batches)
            real(run_, config, photo_set, device, world)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_pipeline, "pretrain", stopping)
        with pytest.raises(Stopped):
            run(tmp_path / "parts", photos, "--num-steps", "6", "--engine.checkpoint-seconds", "0")
    assert not (tmp_path / "parts" / "weights").exists()
    resumed = run(tmp_path / "parts", photos, "--num-steps", "6", "--engine.checkpoint-seconds", "0", "--resume")
    assert resumed["step"] == whole["step"] == 6
    for module in ("model", "teacher"):
        assert all(torch.equal(whole[module][key], resumed[module][key]) for key in whole[module])


def test_two_processes_share_the_work(photos, tmp_path):
    command_line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--images", str(photos), "--out", str(tmp_path), *SMALL, "--num-steps", "2"]
    done = subprocess.run([*command_line, "-m", "sohes.pretrain", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert timm.create_model(f"local-dir:{tmp_path / 'weights' / 'pretrain'}", pretrained=True).embed_dim == 32


def test_backbone_opens_in_timm(photos, tmp_path):
    state = run(tmp_path, photos, "--num-steps", "2")
    report = (tmp_path / "report.html").read_text()
    assert report.count('<figure class="pair">') == 6
    assert "total loss" in report
    vit = timm.create_model(f"local-dir:{tmp_path / 'weights' / 'pretrain'}", pretrained=True)
    assert vit.patch_embed.patch_size == (8, 8)
    assert vit.num_prefix_tokens == 5
    assert vit.num_classes == 0
    for key, value in vit.state_dict().items():
        assert torch.equal(value, state["teacher"][f"vit.{key}"])
    assert vit.forward_features(torch.rand(1, 3, 40, 56)).shape == (1, 5 + 5 * 7, 32)


def test_only_masked_patches_differ_for_the_student():
    torch.manual_seed(0)
    model = build_distillation_model(VitConfig(width=32, depth=1, heads=2, drop_path=0), DistillConfig(), 32).eval()
    torch.nn.init.normal_(model.mask_token)
    crops, chosen = torch.randn(2, 3, 32, 32), torch.zeros(2, 4, 4, dtype=torch.bool)
    chosen[0, 1, 2] = chosen[0, 3, 3] = chosen[1, 0, 0] = True
    seen, hidden = model(crops, chosen), model(crops, chosen, is_student=True)
    assert seen.patch_logits.shape == hidden.patch_logits.shape == (3, DistillConfig().prototypes)
    changed = crops.clone()
    changed[0, :, 8:16, 16:24] = 9.0  # the masked patch at (1, 2), which the student does not see
    torch.testing.assert_close(model(changed, chosen, is_student=True).patch_logits, hidden.patch_logits)
    assert not torch.allclose(model(changed, chosen).patch_logits, seen.patch_logits)
    assert seen.class_logits.abs().max() <= 1 + 1e-5  # cosines


def test_losses_fall_and_the_teacher_follows(photos, tmp_path):
    state = run(tmp_path, photos, "--num-steps", "30", "--optim.learning-rate", "3e-3")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss_patch", "loss_region"):
        first, last = (sum(row[name] for row in part) / 5 for part in (rows[:5], rows[-5:]))
        assert last < first
    torch.manual_seed(0)
    start = make_teacher(build_distillation_model(VitConfig(width=32, depth=2, heads=2), DistillConfig(), 32))
    assert not torch.equal(state["teacher"]["vit.norm.weight"], start.vit.norm.weight)
    assert not torch.equal(state["teacher"]["vit.norm.weight"], state["model"]["vit.norm.weight"])


def test_without_their_weight_there_are_no_regions_and_half_weights_are_half(photos, tmp_path):
    state = run(tmp_path, photos, "--num-steps", "1", "--distill.region-weight", "0", "--half-weights")
    stored = load_file(tmp_path / "weights" / "pretrain" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert not any("region" in name for name in state["model"])
    assert "loss_region" not in (tmp_path / "metrics.jsonl").read_text()


def test_regions_lie_where_the_crops_are(photos):
    config = PretrainConfig(crops=CropConfig(photo_side=48, global_size=32, local_size=16, num_locals=1))
    photo_set = PhotoSet(list_images(photos), 48, 1, 1.0)
    # The number of a region is the red of its pixels: crops must agree with it, wherever they were cut.
    photo_set.images[:] = (torch.arange(48) // 6 * 30)[None, None, None]
    photo_set.regions = photo_set.images[:, :1, ::2, ::2]
    plain = DistortConfig(0, 0, 0, 0, 0, 0, (0.1, 1.2), (0, 0, 0), 0)
    config = replace(config, distort=plain)
    large, small, regions = draw_views(photo_set.batch([0, 3, 5]), config, torch.Generator().manual_seed(0))
    assert large.shape == (6, 3, 32, 32)
    assert small.shape == (3, 3, 16, 16)
    assert regions.shape == (6, 4, 4)
    red = large[:, 0] * 255 * 0.229 + 255 * 0.485
    seen = torch.nn.functional.avg_pool2d(red[:, None], 8)[:, 0]
    assert (seen - regions).abs().mean() < 16
    assert (seen - regions).abs().max() < 46  # half of what a patch may span, and a neighbour


def test_pack_holds_the_resized_photos(photos, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "broken.png").write_bytes(b"no picture")
    pack = tmp_path / "pack.tar"
    arguments = ["--images", str(photos), str(tmp_path / "more"), "--crops.photo-side", "48"]
    assert command.main([*arguments, "--pack", str(pack)]) == 0
    printed = capsys.readouterr()
    assert "6 photos" in printed.out
    assert "broken.png" in printed.err
    with tarfile.open(pack) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    pictures = [read_image(path) for path in sorted((tmp_path / "out").iterdir())]
    assert [tuple(picture.shape) for picture in pictures[:2]] == [(3, 30, 48), (3, 33, 48)]
    canvas, _ = photo_canvas(read_image(photos / "0.png"), 48)
    assert (pictures[0].float() - canvas[:, :30].float()).abs().mean() < 12
    again = tmp_path / "again.tar"
    assert command.main([*arguments, "--pack", str(again)]) == 0
    assert again.read_bytes() == pack.read_bytes()


def test_a_pack_is_a_source_of_photos(photos, tmp_path):
    pack = tmp_path / "pack.tar"
    assert command.main(["--images", str(photos), "--pack", str(pack), "--crops.photo-side", "48"]) == 0
    state = run(tmp_path / "run", pack, "--num-steps", "1")
    assert state["step"] == 1
    assert "6 photos" in (tmp_path / "run" / "log.txt").read_text()


def test_canvas_repeats_the_photo_s_edge():
    image = torch.arange(3 * 4 * 6, dtype=torch.uint8).view(3, 4, 6)
    canvas, size = photo_canvas(image, 8)
    assert size == (4, 6)
    assert canvas.shape == (3, 8, 8)
    assert torch.equal(canvas[:, :4, :6], image)
    assert torch.equal(canvas[:, 7, :6], image[:, 3])
    assert torch.equal(canvas[:, :4, 7], image[:, :, 5])


def test_batches_of_ranks_make_the_global_batch(photos):
    photo_set = PhotoSet(list_images(photos), 16, 1, 1.0)
    whole = [batch.names for _, batch in photo_batches(photo_set, 4, 0, 2, 5)]
    parts = [[b.names for _, b in photo_batches(photo_set, 4, 0, 2, 5, rank, 2)] for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "nowhere"], "no such file or folder: nowhere"),
        ([], "--images: expected folders, tars or lists of photos to learn from"),
        (["--images", ".", "--crops.global-size", "30"], "crops.global_size 30 is not a multiple of vit.patch 8"),
        (["--images", ".", "--batch-size", "1"], "batch_size = 1, expected >= 2"),
        (["--images", ".", "--engine.accumulate", "2"], "engine.accumulate 2: pretraining compares the photos"),
        (["--images", ".", "--distill.region-counts", "300"], "distill.region_counts = 300, expected 1 to 255"),
        (["--images", ".", "--distill.region-samples", "1"], "distill.region_samples = 1, expected >= 2"),
        (["--images", ".", "--vit.heads", "5"], "vit.width 192 is not a multiple of vit.heads 5"),
        (["--preset", "tiny-h20"], "unknown preset 'tiny-h20': did you mean 'tiny-h200'?"),
    ],
)
def test_errors(options, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        command.main([*options, "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_set_too_large_for_memory_is_refused(photos, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "run", photos, "--cache-gb", "1e-5")
    assert "6 photos of 48 px need 4.15e-05 GB of memory, expected at most 1e-05 GB" in capsys.readouterr().err
    run(tmp_path / "run", photos, "--num-steps", "1")  # the corrected command works in the same folder


def test_a_second_start_needs_resume_unless_a_launcher_restarts_the_job(photos, tmp_path, capsys, monkeypatch):
    run(tmp_path, photos, "--num-steps", "2")
    weights = (tmp_path / "weights" / "pretrain" / "model.safetensors").read_bytes()
    for restarts in (None, "0"):
        if restarts is not None:
            monkeypatch.setenv("RANK", "0")
            monkeypatch.setenv("WORLD_SIZE", "1")
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        with pytest.raises(SystemExit) as stop:
            run(tmp_path, photos, "--num-steps", "2")
        assert stop.value.code == 2
        assert f"{tmp_path} already holds a run: continue it with --resume" in capsys.readouterr().err
    # A restart, as after one process of several was killed before the weights were written.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    shutil.rmtree(tmp_path / "weights")
    assert run(tmp_path, photos, "--num-steps", "2")["step"] == 2
    assert (tmp_path / "weights" / "pretrain" / "model.safetensors").read_bytes() == weights
    with pytest.raises(SystemExit):
        run(tmp_path, photos, "--num-steps", "2", "--seed", "5")
    assert "was started with other settings: seed" in capsys.readouterr().err


def test_missing_tensorboard_is_reported_before_the_run_folder_is_created(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit):
        run(tmp_path / "run", photos, "--engine.tensorboard")
    assert "pip install 'sohes[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_photos_none_of_which_can_be_read(tmp_path, capsys):
    photos, pack = tmp_path / "photos", tmp_path / "pack.tar"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"no picture")
    pack.write_bytes(b"an older pack")
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run", photos)
    assert stop.value.code == 2
    assert "none of 1 photos could be read; the first: " in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        command.main(["--images", str(photos), "--pack", str(pack)])
    assert stop.value.code == 2
    assert "none of 1 photos could be read; the first: " in capsys.readouterr().err
    assert pack.read_bytes() == b"an older pack"


def test_names_in_a_pack_fit_and_need_not_be_utf8(photos, tmp_path):
    folder = os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    for name in (b"x" * 251 + b".png", b"Jos\xe9.png"):
        shutil.copy(photos / "0.png", folder + b"/" + name)
    pack = tmp_path / "pack.tar"
    assert command.main(["--images", os.fsdecode(folder), "--pack", str(pack), "--crops.photo-side", "16"]) == 0
    with tarfile.open(pack) as tar:
        names = [os.fsencode(name) for name in tar.getnames()]
    assert names[0] == b"00000000-Jos\xe9.webp"
    assert len(names[1]) <= 255
    assert len(list_images(pack)) == 2


@pytest.mark.parametrize("pack", ["{tmp}/folder", "{tmp}/file/pack.tar", "/proc/pack.tar"])
def test_a_pack_that_cannot_be_written_is_a_one_line_error(pack, photos, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    pack = pack.format(tmp=tmp_path)
    with pytest.raises(SystemExit) as stop:
        command.main(["--images", str(photos), "--pack", pack])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sohes.pretrain: error: {pack}: ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vit.depth", 0, "vit.depth = 0, expected >= 1"),
        ("vit.register_tokens", -1, "vit.register_tokens = -1, expected >= 0"),
        ("num_steps", 0, "num_steps = 0, expected >= 1"),
        ("distort.hue", 0.7, "distort.hue = 0.7, expected 0 to 0.5"),
        ("distill.mask_share", (0.5, 1.5), "distill.mask_share = 0.5 1.5, expected 0 to 1"),
        ("distort.blur_sigma", (0.0, 1.0), "distort.blur_sigma = 0.0 1.0, expected > 0"),
        ("optim.layer_decay", 0.0, "optim.layer_decay = 0.0, expected > 0 to 1"),
        ("crops.global_scale", (0.8, 0.2), "crops.global_scale = 0.8 0.2, expected low <= high"),
        ("vit.width", 100, "vit.width 100 is not a multiple of vit.heads 3"),
    ],
)
def test_wrong_settings_are_named(name, value, message):
    config = get_preset("tiny-cpu")
    group, _, field = name.rpartition(".")
    setattr(getattr(config, group) if group else config, field, value)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_pretrain_config(config)


def test_presets_are_valid():
    for name in PRESETS:
        config: PretrainConfig = get_preset(name)
        check_pretrain_config(config)
        assert config.preset == name
    config = get_preset("tiny-h200")
    model = build_distillation_model(config.vit, config.distill, config.crops.global_size)
    assert 5e6 < sum(p.numel() for p in model.vit.parameters()) < 6e6
    # Weights of student and teacher and two moments, two bytes each, beside what training leaves out of the teacher.
    assert config.engine.half_checkpoints
    assert 4 * 2 * sum(p.numel() for p in model.parameters()) < 60e6
