# SPDX-License-Identifier: Apache-2.0
"""Public names of `sohes.ops`: the functions in the table of the README, for any order of imports."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mask_cases import mixed

import sohes.ops
from sohes.ops import (
    mask_boundary,
    mask_components,
    mask_fill_holes,
    mask_largest_component,
    mask_overlap,
    mask_resize,
    merge_regions,
    merge_rounds,
)
from sohes.ops._library import OPERATORS
from sohes.structures.masks import PackedMasks

README = Path(__file__).resolve().parents[2] / "README.md"
NOT_OPERATORS = {"BackendUnavailable", "MergeTree"}


def table():
    """Cells of each operator in the table of the README: reference, C++, CUDA, Triton."""
    blocks = README.read_text().split("\n\n")
    (block,) = [block for block in blocks if block.startswith("| operator |")]
    operators = {}
    for row in block.splitlines()[2:]:
        names, _, *cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
        operators |= {name: cells for name in re.findall(r"`(\w+)`", names)}
    return operators


def test_the_readme_lists_exactly_the_public_operators():
    assert set(table()) == set(sohes.ops.__all__) - NOT_OPERATORS


@pytest.mark.parametrize("name", table())
def test_the_readme_lists_the_backends(name):
    cells = table()[name]
    operator = OPERATORS.get({"merge_regions_graph": "merge_regions"}.get(name, name))
    if operator is None:
        assert name in ("encode_rle", "decode_rle", "mask_components")  # not torch operators
        return
    found = {backend.name for backend in operator.backends}
    wanted = {key for key, cell in zip(("reference", "cpp", "cuda", "triton"), cells, strict=True) if cell}
    assert found == wanted


@pytest.mark.parametrize("name", sorted(set(sohes.ops.__all__) - NOT_OPERATORS))
def test_every_name_is_a_documented_function(name):
    function = getattr(sohes.ops, name)
    assert callable(function)
    assert len(function.__doc__) > 40


@pytest.mark.parametrize(
    "before",
    [
        "import sohes.ops.mask_overlap, sohes.ops.ms_deform_attn, sohes.ops.mask_pack",
        "import sohes.structures.masks, sohes.models.segmenter",
        "from sohes.ops.reference import mask_overlap, mask_pack",
    ],
)
def test_functions_and_modules_for_any_order_of_imports(before):
    code = (
        f"{before}\n"
        "from sohes.ops import mask_overlap, mask_pack, merge_borders, ms_deform_attn, ms_deform_attn_fused\n"
        "from sohes.ops.ms_deform_attn import ms_deform_attn as again\n"
        "from sohes.ops.mask_overlap import mask_overlap as overlap\n"
        "import types\n"
        "assert again is ms_deform_attn and overlap is mask_overlap\n"
        "assert all(isinstance(f, types.FunctionType) for f in (mask_pack, merge_borders, ms_deform_attn_fused))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_it_registers_every_operator():
    code = "import sohes.ops; from sohes.ops._library import OPERATORS; print(*sorted(OPERATORS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    for path in (Path(sohes.ops.__file__).parent).glob("m*.py"):
        importlib.import_module(f"sohes.ops.{path.stem}")
    assert done.stdout.split() == sorted(OPERATORS)


def test_masks_in_masks_out():
    masks = PackedMasks.from_dense(mixed(0, 21, 34))
    for function in (mask_fill_holes, mask_largest_component, mask_boundary):
        changed = function(masks)
        assert isinstance(changed, PackedMasks)
        assert changed.size == (21, 34)
        assert torch.equal(changed.words, function(masks.words, (21, 34)))
        assert changed.areas.tolist() == changed.to_dense().sum((1, 2)).tolist()  # not those of `masks`
    half = mask_resize(masks, (10, 17))
    assert (half.size, len(half)) == ((10, 17), len(masks))
    assert torch.equal(half.words, mask_resize(masks.words, masks.size, (10, 17)))
    parts, owners = mask_components(masks)
    assert torch.equal(parts.words, mask_components(masks.words, masks.size)[0])
    assert owners.bincount(minlength=len(masks)).tolist() == [len(masks[i].components()[0]) for i in range(len(masks))]
    assert torch.equal(mask_overlap(masks, masks[3:5]), mask_overlap(masks, masks)[:, 3:5])


@pytest.mark.parametrize("function", [mask_fill_holes, mask_components, mask_boundary])
def test_what_is_no_set_of_masks(function):
    words = PackedMasks.from_dense(mixed(0, 8, 9)).words
    with pytest.raises(TypeError, match=rf"^{function.__name__}: expected a size \(H, W\) with words$"):
        function(words)
    with pytest.raises(TypeError, match=r"expected PackedMasks, or words int64 \[N, V\] with a size, got list$"):
        function([[1, 0], [0, 1]])
    with pytest.raises(ValueError, match=r"expected int64 words \[N, 4\] for \[16, 16\], got torch.int64 \[24, 2\]$"):
        function(words, (16, 16))


@pytest.mark.parametrize("other", [None, torch.zeros(2, 1, dtype=torch.int64)])
def test_overlap_of_what_is_no_set_of_masks(other):
    masks = PackedMasks.from_dense(mixed(0, 8, 9))
    with pytest.raises(TypeError, match=r"^mask_overlap: expected PackedMasks, got (NoneType|Tensor)$"):
        mask_overlap(masks, other)


def test_rounds_are_a_schedule_of_merge_regions():
    features = torch.randn(2, 9, 7, 5)
    for got, expected in zip(merge_rounds(features), merge_regions(features, schedule="rounds"), strict=True):
        assert torch.equal(got.merges, expected.merges)
        assert torch.equal(got.similarity, expected.similarity)
    mask = torch.rand(9, 7) > 0.3
    (tree,) = merge_rounds(features[0], min_similarity=0.2, region_mask=mask)
    assert tree.similarity.min() >= 0.2
    assert (tree.cut(0.5).flatten() >= 0).tolist() == mask.flatten().tolist()
