# SPDX-License-Identifier: Apache-2.0
"""The operators alone; which masks they keep and relate is tested in tests/structures/."""

import pytest
import torch
from mask_cases import SIZES, mixed

from sohes.ops._binary import find_binary
from sohes.ops.mask_select import mask_nms, mask_parents
from sohes.structures.masks import PackedMasks

needs_binary = pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason)
OPERATORS = [mask_nms, mask_parents]


def inputs(size, value, each=6):
    masks = PackedMasks.from_dense(mixed(0, *size, each))
    masks = PackedMasks.cat([masks, masks[1::2]])  # with duplicates
    return masks.words, masks.areas, masks.boxes, masks.areas.argsort(stable=True), value, size[0]


@needs_binary
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [0.2, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("operator", OPERATORS)
def test_forward(operator, value, size):
    args = inputs(size, value)
    assert torch.equal(operator(*args, "cpp"), operator(*args, "reference"))


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_binary)])
@pytest.mark.parametrize("size", SIZES)
def test_nms_of_some(size, backend):
    """Masks that are not in the order count for nothing: as if they were not in the set."""
    words, areas, boxes, order, *rest = inputs(size, 0.5)
    some = order[::3]
    keep = mask_nms(words, areas, boxes, some, *rest, backend)
    alone = mask_nms(words[some], areas[some], boxes[some], torch.arange(len(some)), *rest, backend)
    assert torch.equal(keep[some], alone)
    assert int(keep.sum()) == int(alone.sum()) > 0


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_binary)])
@pytest.mark.parametrize("operator", OPERATORS)
def test_opcheck(operator, backend):
    function = getattr(torch.ops.sohes, operator.__name__).default
    args = (*inputs((9, 8), 0.7, each=1), backend)
    torch.library.opcheck(function, args, test_utils=("test_schema", "test_faketensor"))


@needs_binary
@pytest.mark.parametrize("operator", OPERATORS)
def test_same_for_any_number_of_threads(operator):
    args = inputs((65, 70), 0.7)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(operator(*args, "cpp"))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
