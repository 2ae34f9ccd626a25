# SPDX-License-Identifier: Apache-2.0
"""Time of one training step of our model beside transformers' Mask2Former of equal size.

    OMP_NUM_THREADS=2 pytest benchmarks/bench_train.py
    OMP_NUM_THREADS=1 pytest benchmarks/bench_train.py     # a process of its own for each number of threads

Both train the same backbone from the same random weights on the same images and masks, with pixel and mask decoders of
the same sizes and as many points in matching and losses: forward, matching, losses, backward, fused AdamW. extra_info
holds images/s, the ratio, the peak memory of a step above that before it, and milliseconds by part. `small` has
the decoders of Mask2Former at half the width, `full` as published.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from peak_memory import peak_memory
from torch import nn

from sohes.configs.run import LossConfig, ModelConfig
from sohes.losses.criterion import Criterion
from sohes.models.segmenter_model import build_model
from sohes.structures.target import Target

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

BATCH, SIZE, NUM_MASKS, QUERIES = 2, 256, 20, 100
SIZES = {
    "small": {"dim": 128, "encoder_layers": 3, "encoder_ffn": 512, "decoder_layers": 6, "decoder_ffn": 1024},
    "full": {"dim": 256, "encoder_layers": 6, "encoder_ffn": 1024, "decoder_layers": 9, "decoder_ffn": 2048},
}
BACKBONES = {
    "convnext": {"backbone": "convnext_atto"},
    "vit-adapter": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_kwargs": {"img_size": SIZE},
        "adapter_heads": 6,
        "adapter_stem": 32,
    },
}
POINTS = 12544


class Stopwatch:
    """Seconds of the parts of each step, by name."""

    def __init__(self, device):
        self.device = device
        self.seconds = defaultdict(list)
        self.started = {}

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self, name):
        self.started[name] = self.now()

    def stop(self, name):
        self.seconds[name].append(self.now() - self.started[name])

    def watch(self, module, name):
        module.register_forward_pre_hook(lambda *_: self.start(name))
        module.register_forward_hook(lambda *_: self.stop(name))


class FeatureMaps(nn.Module):
    """Our backbone with the interface of the peer: four feature maps, finest first."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.channels = backbone.channels[-4:]

    def forward(self, pixel_values):
        return SimpleNamespace(feature_maps=self.backbone(pixel_values)[-4:])


def make_batch(device):
    """Images, and masks that are discs of many sizes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    place = torch.arange(SIZE)
    masks = []
    for _ in range(BATCH):
        x, y = SIZE * torch.rand(2, NUM_MASKS, 1, 1, generator=generator)
        radius = SIZE * (0.02 + 0.3 * torch.rand(NUM_MASKS, 1, 1, generator=generator) ** 2)
        discs = (place[None, :] - x).square() + (place[:, None] - y).square() < radius.square()
        masks.append(discs[discs.flatten(1).any(1)].to(device))
    return images.to(device), masks


def our_step(images, masks, size, backbone, device, precision):
    """(closure of one step, stopwatch, backbone)"""
    torch.manual_seed(0)
    config = ModelConfig(
        **BACKBONES[backbone],
        hidden_dim=size["dim"],
        mask_dim=size["dim"],
        encoder_layers=size["encoder_layers"],
        encoder_ffn_dim=size["encoder_ffn"],
        decoder_layers=size["decoder_layers"],
        decoder_ffn_dim=size["decoder_ffn"],
        num_queries=QUERIES,
        ancestor_head=False,
    )
    model = build_model(config).to(device).train()
    start = copy.deepcopy(model.backbone)
    criterion = Criterion(LossConfig(num_points=POINTS, num_match_points=POINTS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    targets = [
        Target(m, torch.zeros(len(m), len(m), dtype=torch.bool, device=device), torch.ones(len(m), device=device))
        for m in masks
    ]
    watch = Stopwatch(device)
    watch.watch(model.backbone, "backbone")
    watch.watch(model.pixel_decoder, "pixel decoder")
    watch.watch(model.mask_decoder, "mask decoder")
    match = criterion.match

    def timed_match(*args):
        watch.start("matching")
        result = match(*args)
        watch.stop("matching")
        return result

    criterion.match = timed_match

    def step():
        optimizer.zero_grad()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            outputs = model(images)
        watch.start("matching and loss")
        loss = criterion(outputs, targets)["loss"]
        watch.stop("matching and loss")
        finish(loss, optimizer, watch)

    return step, watch, start


def peer_step(images, masks, size, backbone, device, precision):
    """(closure of one step, stopwatch) of transformers' Mask2Former around a backbone of ours."""
    torch.manual_seed(0)
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=12, depths=[1] * 4, num_heads=[1] * 4, out_features=["stage1", "stage2", "stage3", "stage4"]
        ),  # replaced below
        feature_size=size["dim"],
        mask_feature_size=size["dim"],
        hidden_dim=size["dim"],
        encoder_feedforward_dim=size["encoder_ffn"],
        dim_feedforward=size["decoder_ffn"],
        encoder_layers=size["encoder_layers"],
        decoder_layers=size["decoder_layers"] + 1,  # counts the prediction before the first layer
        num_attention_heads=8,
        num_queries=QUERIES,
        num_labels=1,
        train_num_points=POINTS,
        dropout=0.0,
        use_auxiliary_loss=True,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    level = model.model.pixel_level_module
    level.encoder = FeatureMaps(backbone)
    level.decoder = type(level.decoder)(config, feature_channels=level.encoder.channels)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    labels = [m.float() for m in masks]
    classes = [torch.zeros(len(m), dtype=torch.int64, device=device) for m in masks]
    watch = Stopwatch(device)
    watch.watch(level.encoder, "backbone")
    watch.watch(level.decoder, "pixel decoder")
    watch.watch(model.model.transformer_module, "mask decoder")
    watch.watch(model.criterion.matcher, "matching")
    watch.watch(model.criterion, "matching and loss")

    def step():
        optimizer.zero_grad()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            loss = model(pixel_values=images, mask_labels=labels, class_labels=classes).loss
        finish(loss.squeeze(), optimizer, watch)

    return step, watch


def finish(loss, optimizer, watch):
    watch.start("backward")
    loss.backward()
    watch.stop("backward")
    watch.start("optimiser")
    optimizer.step()
    watch.stop("optimiser")


def parts(watch, steps):
    """Milliseconds per step by part, median over `steps` steps; a part may run several times per step."""
    seconds = {}
    for name, times in watch.seconds.items():
        per_step = len(times) // steps
        seconds[name] = statistics.median(sum(times[i * per_step : (i + 1) * per_step]) for i in range(steps))
    seconds["loss"] = seconds.pop("matching and loss") - seconds["matching"]
    return {name: round(1e3 * s, 1) for name, s in seconds.items()}


def measure(step, watch, device, rounds):
    """(median seconds, parts, peak bytes)"""
    peak = peak_memory(step, device)  # also the first of the warm-up steps
    step()
    watch.seconds.clear()
    times = []
    for _ in range(rounds):
        start = watch.now()
        step()
        times.append(watch.now() - start)
    return statistics.median(times), parts(watch, rounds), peak


def run_case(benchmark, name, backbone, device, precision, rounds):
    images, masks = make_batch(device)
    size = SIZES[name]
    benchmark.group = f"training step {name} {backbone} {device.type} {precision} x{torch.get_num_threads()}"
    step, watch, start = our_step(images, masks, size, backbone, device, precision)
    # Alternately, so that changes in the speed of the machine affect both.
    theirs_step, theirs_watch = peer_step(images, masks, size, start, device, precision)
    peer, peer_parts, peer_peak = measure(theirs_step, theirs_watch, device, rounds)
    del theirs_step, theirs_watch
    peak = peak_memory(step, device)
    step()
    watch.seconds.clear()
    benchmark.pedantic(lambda: (step(), watch.now()), rounds=rounds)
    ours = benchmark.stats.stats.median
    benchmark.extra_info.update(
        images_per_second=round(BATCH / ours, 2),
        peer_images_per_second=round(BATCH / peer, 2),
        times_faster=round(peer / ours, 2),
        milliseconds_by_part=parts(watch, rounds),
        peer_milliseconds_by_part=peer_parts,
        peak_megabytes=None if peak is None else round(peak / 1e6),
        peer_peak_megabytes=None if peer_peak is None else round(peer_peak / 1e6),
    )
    print(f"\n{benchmark.group}: {1e3 * ours:.0f} ms, {benchmark.extra_info}")


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", SIZES)
def test_training_step(benchmark, name, backbone):
    run_case(benchmark, name, backbone, torch.device("cpu"), torch.float32, rounds=3)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_step_on_a_gpu(benchmark, backbone, precision):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    run_case(benchmark, "full", backbone, torch.device("cuda"), precision, rounds=20)
