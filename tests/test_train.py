# SPDX-License-Identifier: Apache-2.0
"""The whole job at the smallest scale: all phases, resuming after a kill, and wrong input."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from micro import MICRO
from PIL import Image
from safetensors.torch import load_file

from sohes.configs.presets import get_preset
from sohes.configs.run import Config, ConfigError, ModelConfig
from sohes.data.scenes import draw_scene
from sohes.labels.refine import load_cascadepsp
from sohes.models.segmenter import Segmenter
from sohes.models.segmenter_model import build_model
from sohes.phases.checks import check_needs
from sohes.phases.pipeline import segmenter_of
from sohes.segment import main as segment_main
from sohes.train import main

ROOT = Path(__file__).resolve().parents[1]


def run_main(*arguments):
    """Exit code of the command run in this process."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished micro run on drawn scenes."""
    out = tmp_path_factory.mktemp("train") / "run"
    assert run_main(*MICRO, "--out", out) == 0
    return out


def test_a_run_writes_all_its_files(finished):
    results = json.loads((finished / "results.json").read_text())
    assert list(results) == ["explore", "instruct", "correct"]
    for scores in results.values():
        assert scores["num_images"] == 2
        assert 0 <= scores["AR@1000"] <= 1
        assert {"AR@10", "AR@100", "AR-small", "AR-medium", "AR-large", "AP", "parent_recall"} <= set(scores)
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(r["phase"], r["step"]) for r in rows] == [(p, s) for p in ("instruct", "correct") for s in range(4)]
    assert all(r["loss"] > 0 for r in rows)
    manifest = [json.loads(line) for line in (finished / "labels" / "manifest.jsonl").read_text().splitlines()]
    assert len(manifest) == 4
    for phase in ("explore", "instruct", "correct"):
        assert (finished / "predictions" / f"{phase}.json").is_file()
    assert (finished / "report.html").stat().st_size > 10_000
    assert json.loads((finished / "env.json").read_text())["operators"]


def test_finished_run_resumes_to_itself_and_is_not_overwritten(finished, capsys):
    before = {p: p.read_bytes() for p in finished.rglob("*.safetensors")}
    assert run_main("--out", finished, "--resume", "--device", "cpu") == 0
    assert before == {p: p.read_bytes() for p in finished.rglob("*.safetensors")}
    capsys.readouterr()
    assert run_main(*MICRO, "--out", finished) == 2
    assert capsys.readouterr().err == (
        f"sohes.train: error: {finished} already holds a run: continue it with --resume, or choose another --out\n"
    )
    assert run_main("--out", finished, "--resume", "--seed", "5") == 2
    assert "was started with other settings: seed" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_weights(finished, tmp_path):
    assert run_main(*MICRO, "--out", tmp_path / "again", "--phases", "explore", "instruct") == 0
    ours, theirs = (
        load_file(run / "weights" / "instruct" / "model.safetensors") for run in (finished, tmp_path / "again")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_killed_run_resumes_to_the_same_weights(finished, tmp_path):
    """SIGKILL at the first checkpoint of phase 3; the resumed run ends with the weights of an uninterrupted one."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sohes.train", *MICRO, "--engine.checkpoint-seconds", "0", "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints" / "correct").glob("step-*")):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert run_main("--out", out, "--resume", "--device", "cpu") == 0
    for phase in ("instruct", "correct"):
        ours, theirs = (load_file(run / "weights" / phase / "model.safetensors") for run in (finished, out))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), (phase, key)


def test_segment_with_the_weights_of_a_run(finished, tmp_path):
    photos = tmp_path / "my photos"
    photos.mkdir()
    Image.fromarray(draw_scene(9, 96).image.permute(1, 2, 0).numpy()).save(photos / "a b.png")
    assert segment_main([str(photos), "--weights", str(finished), "--out", str(tmp_path / "segments")]) == 0
    coco = json.loads((tmp_path / "segments" / "segments.json").read_text())
    assert [i["file_name"] for i in coco["images"]] == [str(photos / "a b.png")]


def test_odd_names_formats_and_archives(tmp_path):
    """A nested folder with odd names, sizes, modes and archives; broken photos are listed in the manifest."""
    photos = tmp_path / "Fotos für alle" / "2026 (neu)"
    photos.mkdir(parents=True)
    scene = Image.fromarray(draw_scene(1, 96).image.permute(1, 2, 0).numpy())
    scene.save(photos / "eins.JPG", "JPEG")
    scene.convert("L").resize((120, 50)).save(photos / "grau.png")
    scene.convert("CMYK").save(photos / "druck.tif")
    scene.resize((33, 70)).save(photos / "写真 1.webp")
    (photos / "kaputt.jpg").write_bytes((photos / "eins.JPG").read_bytes()[:300])
    with tarfile.open(tmp_path / "Fotos für alle" / "sa_000000.tar", "w") as tar:
        tar.add(photos / "eins.JPG", "./sa_1.jpg")
        tar.addfile(tarfile.TarInfo("./sa_1.json"))  # empty: it is not read
    (tmp_path / "Fotos für alle" / "sa_000001.tar").write_bytes(b"\0" * 300)
    extra = tmp_path / "extra.tar"
    with tarfile.open(extra, "w") as tar:
        tar.add(photos / "grau.png", "grau.png")
    out = tmp_path / "run"
    assert run_main(*MICRO, "--images", tmp_path / "Fotos für alle", extra, "--out", out) == 0
    rows = [json.loads(line) for line in (out / "labels" / "manifest.jsonl").read_text().splitlines()]
    status = {row["file_name"].removeprefix("Fotos für alle/"): row["status"] for row in rows}
    failed = {name: value for name, value in status.items() if value.startswith("failed: ")}
    assert set(failed) == {"2026 (neu)/kaputt.jpg", "sa_000001.tar"}
    assert "cut short" in failed["sa_000001.tar"]
    good = {"eins.JPG", "grau.png", "druck.tif", "写真 1.webp"}
    assert set(status) - set(failed) == {f"2026 (neu)/{n}" for n in good} | {
        "sa_000000.tar/sa_1.jpg",
        "extra.tar/grau.png",
    }
    assert status["2026 (neu)/eins.JPG"] == status["sa_000000.tar/sa_1.jpg"] == "ok"
    assert not (out / "results.json").exists()  # there was nothing to score on
    assert (out / "weights" / "correct" / "model.safetensors").is_file()
    assert "<h2>Merge trees</h2>" in (out / "report.html").read_text()


def test_too_many_failures_are_an_error_until_a_resume_allows_them(tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    Image.fromarray(draw_scene(1, 64).image.permute(1, 2, 0).numpy()).save(photos / "a.png")
    (photos / "b.png").write_bytes(b"no picture")
    command = ["--images", photos, "--phases", "explore", "--device", "cpu", "--out", out]
    assert run_main(*command, "--explore.max-failures", "0") == 1
    assert "1 of 2 images could not be used, more than max_failures = 0; the first: b.png" in capsys.readouterr().err
    labels = {p.name: p.read_bytes() for p in (out / "labels").iterdir()}
    assert set(labels) == {"shard-00000.json", "manifest.jsonl"}
    assert run_main("--out", out, "--resume", "--explore.max-failures", "1", "--device", "cpu") == 0
    assert labels == {p.name: p.read_bytes() for p in (out / "labels").iterdir()}


@pytest.mark.parametrize("phases", [["explore"], ["explore", "instruct"]])
def test_train_and_segment_fail_if_no_photo_can_be_read(tmp_path, capsys, phases):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.jpg"):
        (photos / name).write_bytes(b"no picture")
    out = tmp_path / "run"
    assert run_main("--images", photos, "--phases", *phases, "--device", "cpu", "--out", out) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    reason = re.search(r"none of 2 images could be used; the first: a.png, failed: .+; all are in (.+)$", message)
    assert len(Path(reason.group(1)).read_text().splitlines()) == 2
    assert segment_main([str(photos), "--out", str(tmp_path / "segments")]) == 1


# Wrong settings and their messages; each is found before the run folder is created.
WRONG = {
    "features": (["--explore.features", "vit_smal_patch16_224"], "features 'vit_smal_patch16_224': expected"),
    "weights": (
        ["--explore.features", "vit_tiny_patch16_224", "--explore.weights", "{tmp}/none.pth"],
        "backbone weights not found: {tmp}/none.pth",
    ),
    "backbone": (["--model.backbone-weights", "{tmp}/none.pth"], "backbone weights not found: {tmp}/none.pth"),
    "plug-in": (["--explore.refiner", "cascadepsp"], "needs the package segmentation-refinement"),
    "tensorboard": (["--engine.tensorboard"], "engine.tensorboard needs a package that is not installed"),
    "truth": (["--eval", "{tmp}/other.json"], "{tmp}/other.json"),
    "photos of the truth": (["--eval", "{tmp}/truth.json"], "2 of 2 photos are missing, the first {tmp}/a.jpg"),
    "range": (["--infer.min-score", "7"], "infer.min_score = 7.0, expected 0 to 1"),
    "typo": (["--instruct.num-step", "4"], "--instruct.num-steps"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_setting_is_found_before_the_run_folder_is_made(wrong, tmp_path, capsys, monkeypatch):
    for package in ("torch.utils.tensorboard", "segmentation_refinement"):
        monkeypatch.setitem(sys.modules, package, None)
    load_cascadepsp.cache_clear()
    (tmp_path / "other.json").write_text('{"images": 3}')
    images = [{"id": k, "file_name": f"{name}.jpg", "width": 9, "height": 9} for k, name in enumerate("ab")]
    (tmp_path / "truth.json").write_text(json.dumps({"images": images, "annotations": []}))
    given, message = WRONG[wrong]
    out = tmp_path / "run"
    assert run_main(*MICRO, *[one.format(tmp=tmp_path) for one in given], "--out", out) == 2
    error = capsys.readouterr().err
    assert message.format(tmp=tmp_path) in error
    assert "Traceback" not in error
    assert not out.exists()


def test_local_weights_of_a_backbone_that_takes_none(tmp_path):
    model = ModelConfig(backbone="resnet18", backbone_kwargs={}, backbone_weights="x.pth")
    with pytest.raises(ConfigError, match=r"^model: local backbone weights are for plain ViTs"):
        check_needs(tmp_path / "run", Config(model=model))


def test_after_a_start_that_failed_the_corrected_command_works(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"

    def fail(*_):
        raise OSError(28, "No space left on device", "somewhere")

    with monkeypatch.context() as patch:
        patch.setattr("sohes.phases.pipeline.draw_scenes", fail)
        assert run_main(*MICRO, "--out", out, "--phases", "explore") == 2
    assert "somewhere: No space left on device" in capsys.readouterr().err
    assert run_main(*MICRO, "--out", out, "--phases", "explore", "--seed", "3") == 0
    assert json.loads((out / "config.json").read_text())["seed"] == 3


@pytest.mark.parametrize("out", ["{tmp}/file", "{tmp}/file/run", "/proc/run"])
def test_an_impossible_out_is_a_one_line_error(out, tmp_path, capsys):
    (tmp_path / "file").write_text("content")
    out = out.format(tmp=tmp_path)
    assert run_main(*MICRO, "--out", out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sohes.train: error: ")
    assert out in line
    assert (tmp_path / "file").read_text() == "content"


def test_names_that_are_not_utf8(tmp_path, capsysbinary):
    """From the photo's name to labels, log and page."""
    photos = os.fsencode(tmp_path / "photos")
    os.mkdir(photos)
    scene = Image.fromarray(draw_scene(1, 64).image.permute(1, 2, 0).numpy())
    scene.save(tmp_path / "a.png")
    os.rename(os.fsencode(tmp_path / "a.png"), photos + b"/Jos\xe9 <u1>.png")
    Path(os.fsdecode(photos + b"/caf\xe9.jpg")).write_bytes(b"no picture")
    out = tmp_path / "run"
    assert run_main(*MICRO, "--images", tmp_path / "photos", "--out", out) == 0
    rows = [json.loads(line) for line in (out / "labels" / "manifest.jsonl").read_text().splitlines()]
    assert {os.fsencode(row["file_name"]) for row in rows} == {b"Jos\xe9 <u1>.png", b"caf\xe9.jpg"}
    assert "caf\\udce9.jpg: failed" in (out / "log.txt").read_text()
    page = (out / "report.html").read_text()
    assert "Jos\\udce9 &lt;u1&gt;.png" in page
    assert "<u1>" not in page
    assert b"caf\\udce9.jpg: failed" in capsysbinary.readouterr().err
    bad = tmp_path / os.fsdecode(b"r\xe9sultat")
    assert run_main(*MICRO, "--images", tmp_path / "photos", "--out", bad) == 2
    assert b"r\\udce9sultat: expected a path in UTF-8" in capsysbinary.readouterr().err
    assert not bad.exists()


def test_labels_made_in_parts(finished, tmp_path, capsys):
    """Jobs that share only the folder, one after another; the last one finishes the phase."""
    photos = finished / "scenes" / "train" / "images"
    command = ["--images", photos, "--phases", "explore", "--explore.shard-size", "1", "--device", "cpu"]
    out = tmp_path / "run"
    for part in ("2", "0", "2"):  # a part that has been made may be asked for again
        assert run_main(*command, "--out", out, "--part", part, "3") == 0
        assert "parts of other jobs are still missing" in capsys.readouterr().err
        assert not (out / "labels" / "manifest.jsonl").exists()
    assert run_main(*command, "--out", out, "--part", "1", "3", "--explore.max-failures", "7") == 0
    assert len((out / "labels" / "manifest.jsonl").read_text().splitlines()) == 4
    assert (out / "report.html").is_file()
    assert run_main(*command, "--out", tmp_path / "whole") == 0
    ours, theirs = ({p.name: p.read_bytes() for p in (run / "labels").iterdir()} for run in (out, tmp_path / "whole"))
    assert ours == theirs
    capsys.readouterr()
    assert run_main(*command, "--out", out, "--part", "1", "3", "--explore.max-masks", "7") == 2
    assert "was started with other settings: explore.max_masks" in capsys.readouterr().err
    assert run_main(*command, "--out", out, "--part", "3", "3") == 2
    assert "--part 3 3: expected the first from 0 to one below the second" in capsys.readouterr().err
    assert run_main("--out", out, "--part", "0", "3") == 2
    assert "--part: expected --phases explore" in capsys.readouterr().err


def test_phases_are_scored_on_a_data_set_by_name(finished, tmp_path):
    out = tmp_path / "run"
    given = ["--eval", finished / "scenes" / "eval", "--eval-dataset", "plain", "--eval-num-images", "1"]
    assert run_main(*MICRO, "--out", out, "--phases", "explore", *given) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["explore"]["num_images"] == 1
    truth = json.loads((out / "eval" / "plain.json").read_text())
    whole = json.loads((finished / "scenes" / "eval" / "annotations.json").read_text())
    assert [image["file_name"] for image in truth["images"]] == [whole["images"][0]["file_name"]]
    assert not (out / "scenes" / "eval").exists()
    assert "could not" not in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "{tmp}/absent"], r"{tmp}/absent"),
        (["--images", "{tmp}/empty"], r"no images in {tmp}/empty \(searched recursively for .*jpg"),
        (["--eval", "{tmp}/empty"], r"--eval {tmp}/empty: no ground truth there \(expected .*annotations.json"),
        (["--eval-dataset", "coco"], "--eval-dataset coco goes with --eval, the folder it lies in"),
        (["--eval", "{tmp}/empty", "--eval-dataset", "coco"], "empty/annotations/instances_val2017.json is missing"),
        (["--eval-num-images", "3"], "--eval-num-images 3 goes with --eval-dataset NAME"),
        (["--preset", "tinny"], r"unknown preset 'tinny': did you mean 'tiny'"),
        (["--resume"], r"run/config.json does not exist"),
        (["--phases", "correct"], r"has no labels yet: add explore to --phases"),
        (["--phases"], r"--phases: expected at least one of correct, explore, instruct"),
    ],
)
def test_bad_input_is_a_one_line_error(arguments, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = [a.format(tmp=tmp_path) for a in arguments]
    code = run_main(*arguments, "--out", tmp_path / "run")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2, error
    assert re.search(message.format(tmp=re.escape(str(tmp_path))), error), error


def test_correct_needs_instruct(tmp_path, capsys):
    out = tmp_path / "run"
    assert run_main(*MICRO, "--out", out, "--phases", "explore", "correct") == 2
    message = (
        f"sohes.train: error: {out} has no weights of instruct, from which correct starts: add instruct to --phases"
    )
    assert capsys.readouterr().err.splitlines() == [message]
    assert not out.exists()
    assert run_main(*MICRO, "--out", out, "--phases", "explore") == 0
    assert run_main("--out", out, "--resume", "--phases", "instruct", "correct", "--device", "cpu") == 0
    assert set(json.loads((out / "results.json").read_text())) == {"explore", "instruct", "correct"}


def test_unknown_option_names_the_nearest(capsys):
    assert run_main("--instruct.num-step", "3") == 2
    assert "--instruct.num-steps" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_a_one_line_error(tmp_path, capsys):
    assert run_main("--device", "cuda", "--out", tmp_path / "run") == 2
    assert capsys.readouterr().err == "sohes.train: error: --device cuda: torch sees no CUDA device\n"
    assert not (tmp_path / "run").exists()


def test_phases_are_scored_with_all_masks(tmp_path):
    """Masks below `min_score` are not shown, but average recall counts them."""
    torch.manual_seed(0)
    config = get_preset("micro")
    model = build_model(config.model)
    with torch.no_grad():
        model.mask_decoder.class_predictor.bias.copy_(torch.tensor([-6.0, 0.0]))  # all but certain: no entity
    Segmenter(model, config.model, config.infer).save_pretrained(tmp_path)
    run = SimpleNamespace(weights=lambda phase: tmp_path)
    image = draw_scene(0, 64).image
    forest = segmenter_of(run, "instruct", config, None, torch.device("cpu"))(image)
    assert len(forest) > 50
    assert forest.scores.max() < config.infer.min_score
    assert len(Segmenter.from_pretrained(tmp_path)(image)[0]) == 0
