# SPDX-License-Identifier: Apache-2.0
"""A GPU machine may lack packages that only commands and files need: the parts of the network import without them."""

import subprocess
import sys

import pytest

ABSENT = ("pycocotools",)
BLOCKED = f"""
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("package", ABSENT)
def test_the_block_blocks(package):
    assert f"No module named '{package}'" in run(f"import {package}").stderr


def test_parts_of_the_network_import_without_pycocotools():
    """Every module below these, and what training is made of."""
    done = run(
        "for name in ('ops', 'models', 'losses', 'labels', 'data', 'engine'):\n"
        "    package = importlib.import_module(f'sohes.{name}')\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'sohes.{name}.'):\n"
        "        if not module.name.startswith('sohes.ops.triton.'):  # needs triton, which is optional\n"
        "            importlib.import_module(module.name)\n"
        "for name in ('correct', 'explore', 'instruct', 'pretrain'):\n"
        "    importlib.import_module(f'sohes.phases.{name}')\n"
        "importlib.import_module('sohes.configs.presets')\n"
        "print('imported', len(sys.modules))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("imported")


def test_masks_and_a_segmenter_work_without_them():
    done = run(
        "import torch\n"
        "from sohes import Forest, PackedMasks, Segmenter\n"
        "from sohes.models.segmenter_model import build_model\n"
        "from sohes.configs.presets import get_preset\n"
        "config = get_preset('micro')\n"
        "forest = Segmenter(build_model(config.model), config.model, config.infer)(torch.zeros(3, 40, 50).byte())[0]\n"
        "annotations = forest.to_coco(1)\n"
        "assert torch.equal(Forest.from_coco(annotations, (40, 50)).masks.words, forest.masks.words)\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_package_lists_its_classes_before_they_are_loaded():
    done = run(
        "import sohes\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(sohes.__all__) <= set(dir(sohes)), dir(sohes)\n"
        "assert 'torch' not in sys.modules\n"
        "from sohes import *\n"
        "assert Forest.__name__ == 'Forest'\n"
    )
    assert done.returncode == 0, done.stderr
