# SPDX-License-Identifier: Apache-2.0
"""The device that is chosen, on simulated machines."""

import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sohes.configs.run import ExploreConfig
from sohes.data.scenes import draw_scene
from sohes.labels import refine
from sohes.labels.features import build_extractor
from sohes.phases.explore import explore, prepare
from sohes.utils.devices import DeviceError, pick_device


@pytest.fixture
def two_gpus(monkeypatch):
    """Simulates two GPUs, of which the second is current; returns the list of GPUs made current."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_has_its_index(two_gpus, name):
    assert pick_device(name) == torch.device("cuda", 1)
    assert two_gpus == []
    assert [pick_device(name, rank) for rank in range(2)] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert two_gpus == [0, 1]
    with pytest.raises(DeviceError, match="process 2 of this machine has no GPU: torch sees 2"):
        pick_device(name, 2)


@pytest.mark.parametrize("variable", [("SLURM_GPUS_PER_TASK", "1"), ("SLURM_TRES_PER_TASK", "cpu=4,gres/gpu=1")])
def test_processes_that_see_only_their_own_gpu_take_it(two_gpus, monkeypatch, variable):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="process 3 of this machine has no GPU: torch sees 1"):
        pick_device("cuda", 3)
    monkeypatch.setenv(*variable)
    assert pick_device("cuda", 3) == torch.device("cuda", 0)
    assert two_gpus == [0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto", 1) == torch.device("cuda", 1)


def test_the_cpu_is_chosen_beside_gpus(two_gpus):
    assert pick_device("cpu") == pick_device("cpu", 5) == torch.device("cpu")
    assert two_gpus == []


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == pick_device("auto", 3) == torch.device("cpu")
    with pytest.raises(DeviceError, match="--device cuda: torch sees no CUDA device"):
        pick_device("cuda")


def test_an_extractor_is_on_the_given_device(two_gpus, monkeypatch):
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device, dtype=None: moved.append(device) or module)
    config = ExploreConfig(features="vit_tiny_patch16_224", weights="random")
    assert build_extractor(config).device == torch.device("cuda", 1)
    assert build_extractor(config, torch.device("cpu")).device == torch.device("cpu")
    assert moved[0] == torch.device("cuda", 1)
    assert moved[-1] == torch.device("cpu")
    assert build_extractor(ExploreConfig()).device == torch.device("cuda", 1)


@pytest.mark.parametrize(("given", "device"), [("cpu", "cpu"), ("auto", "cuda:0"), ("cuda", "cuda:0")])
def test_the_device_of_the_command_is_that_of_phase_1(given, device, two_gpus, monkeypatch, tmp_path):
    """--device reaches the refiner's network, in the threads that label photos, and the feature extractor."""
    seen = []

    class Refiner:
        def __init__(self, device):
            seen.append(device)

        def refine(self, image, mask, fast):
            return mask

    monkeypatch.setitem(sys.modules, "segmentation_refinement", SimpleNamespace(Refiner=Refiner))
    refine.load_cascadepsp.cache_clear()
    config = ExploreConfig(refiner="cascadepsp", max_masks=5)
    Image.fromarray(draw_scene(0, 48).image.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    extractor = prepare(config, pick_device(given, 0))
    explore([tmp_path], tmp_path / "out", config, extractor=extractor)
    refine.load_cascadepsp.cache_clear()
    assert str(extractor.device) == device
    assert seen == [device]
