# SPDX-License-Identifier: Apache-2.0
"""The parts above the operators on a CUDA device: model, losses, Segmenter, features, labels, and every phase.

Small enough for seconds each. Skipped with the reason where there is no CUDA device.
"""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micro import MICRO, micro_model

from sohes.configs.run import ExploreConfig, InferConfig, LossConfig
from sohes.data.scenes import draw_scene
from sohes.labels.features import build_extractor
from sohes.labels.pipeline import label_images
from sohes.losses.criterion import Criterion
from sohes.models.segmenter import Segmenter
from sohes.models.segmenter_model import build_model
from sohes.structures.masks import mask_iou
from sohes.structures.target import Target

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cuda"
QUERIES = ("learned", "seeds")


def both(query_init):
    """The same random model on the CPU and on the GPU, and a batch of two images."""
    torch.manual_seed(0)
    here = build_model(micro_model(query_init=query_init)).eval()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    return here, copy.deepcopy(here).to(DEVICE), images


@pytest.mark.parametrize("query_init", QUERIES)
def test_forward_equals_the_cpu(query_init):
    here, there, images = both(query_init)
    with torch.no_grad():
        expected, got = here(images), there(images.to(DEVICE))
    for name in ("class_logits", "mask_logits"):
        # Float32 in another order of summation, through some twenty layers.
        torch.testing.assert_close(getattr(got, name).cpu(), getattr(expected, name), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("query_init", QUERIES)
def test_a_step_has_finite_gradients_everywhere(query_init, precision):
    _, model, images = both(query_init)
    model.train()
    masks = torch.stack([torch.arange(96) // 24 == k for k in range(4)])[:, None].expand(4, 64, 96).to(DEVICE)
    ancestors = torch.zeros(4, 4, dtype=torch.bool, device=DEVICE)
    targets = [Target(masks, ancestors, torch.ones(4, device=DEVICE))] * 2
    with torch.autocast("cuda", precision, enabled=precision != torch.float32):
        outputs = model(images.to(DEVICE))
    losses = Criterion(LossConfig(num_points=64, num_match_points=64))(outputs, targets)
    losses["loss"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 0.9 * len(list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_segmenter_gives_the_masks_of_the_cpu():
    here, there, _ = both("seeds")
    config = micro_model(query_init="seeds")
    photos = [draw_scene(k, side).image for k, side in ((0, 64), (1, 90), (2, 64))]
    settings = InferConfig(size=64, batch_size=2)
    expected, got = (Segmenter(model, config, settings)(photos) for model in (here, there))
    for one, other in zip(expected, got, strict=True):
        assert abs(len(one) - len(other)) <= 0.05 * len(one) + 1
        best = mask_iou(one.masks, other.masks.to("cpu")).max(1).values
        assert best.mean() > 0.98


@pytest.mark.parametrize("facet", ["key", "output"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_equal_those_of_the_cpu(facet, precision, monkeypatch):
    network = {"features": "vit_tiny_patch16_224", "weights": "random"}
    config = ExploreConfig(**network, side=128, facet=facet, precision=precision)
    torch.manual_seed(0)
    there = build_extractor(config)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        here = build_extractor(replace(config, precision="fp32"))
    views = [here.view(draw_scene(k, 128).image) for k in range(3)]
    assert next(there.vit.parameters()).device.type == DEVICE
    for got, expected in zip(there(views), here(views), strict=True):
        cosine = torch.cosine_similarity(got.cpu().flatten(0, 1), expected.flatten(0, 1))
        assert cosine.min() > (0.9999 if precision == "fp32" else 0.98)


@pytest.mark.parametrize("start", ["patches", "basins"])
def test_labels_of_photos(start):
    config = ExploreConfig(features="vit_tiny_patch16_224", weights="random", side=128, start=start)
    forests = label_images([draw_scene(k, 128).image for k in range(2)], build_extractor(config), config)
    assert all(len(forest) > 0 for forest in forests)


@pytest.mark.parametrize("options", [("fp32",), ("bf16", "--engine.async-checkpoints"), ("fp16",)], ids=lambda o: o[0])
def test_all_phases(tmp_path, options):
    pytest.importorskip("pycocotools")
    from sohes.train import main

    precision, *more = options
    arguments = [*MICRO, "--preset", "micro", "--device", "cuda", "--optim.precision", precision, *more]
    assert main([*arguments, "--out", str(tmp_path / "run")]) in (0, None)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) >= 6  # of 8; fp16 may skip steps while it finds its scale
    assert all(row["memory_gb"] > 0 for row in rows)


def test_one_process_with_nccl(tmp_path):
    pytest.importorskip("pycocotools")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    job = [*MICRO, "--preset", "micro", "--device", "cuda", "--phases", "explore", "instruct"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "sohes.train", *job, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "results.json").is_file()
