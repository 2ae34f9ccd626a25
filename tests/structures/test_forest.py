# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_cases import mixed, object_logits

from sohes.data.coco import labelled_image
from sohes.ops._binary import find_binary
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, mask_coverage, nms_masks


@st.composite
def mask_sets(draw):
    """Up to 12 rectangles with some pixels removed, many of them nested, equal or empty."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    masks = np.zeros((draw(st.integers(0, 12)), height, width), bool)
    for mask in masks:
        y = sorted(draw(st.tuples(st.integers(0, height), st.integers(0, height))))
        x = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
        mask[slice(*y), slice(*x)] = True
        for _ in range(draw(st.integers(0, 3))):
            mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] ^= True
    return PackedMasks.from_dense(masks)


thetas = st.sampled_from([0.5, 0.75, 0.9, 1.0])
forests_of_ten = st.lists(st.integers(-1, 9), min_size=10, max_size=10).map(
    lambda wanted: [parent if parent < child else -1 for child, parent in enumerate(wanted)]
)


def nested():
    """A whole of 16 pixels, its left half, a pixel of that, a pixel of the right half, and a mask without pixels."""
    dense = torch.zeros(5, 4, 4, dtype=torch.bool)
    dense[0] = dense[1, :, :2] = dense[2, 1, 1] = dense[3, 2, 3] = True
    masks = PackedMasks.from_dense(dense)
    return Forest(masks, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), build_forest(masks))


def grown(parents):
    """A forest with these parents over arbitrary masks."""
    masks = PackedMasks.from_dense(mixed(0, 9, 9, each=2)[: len(parents)])
    return Forest(masks, torch.linspace(0, 1, len(parents)), torch.tensor(parents, dtype=torch.int64))


# --- build_forest ---


@settings(max_examples=150, deadline=None)
@given(mask_sets(), thetas, st.sampled_from(["auto", "reference"]))
def test_parent_is_the_smallest_that_covers(masks, theta, backend):
    parents = build_forest(masks, theta, backend)
    forest = Forest(masks, torch.ones(len(masks)), parents)  # refuses cycles
    dense = masks.to_dense().double().flatten(1)
    overlap, areas = dense @ dense.T, masks.areas.tolist()
    for child, parent in enumerate(parents.tolist()):
        inside = [
            (areas[other], other)
            for other in range(len(masks))
            if areas[child]
            and overlap[child, other] >= theta * areas[child]
            and overlap[child, other] < theta * areas[other]
        ]
        assert parent == (min(inside)[1] if inside else -1)
        assert forest.levels[child] == (0 if parent < 0 else forest.levels[parent] + 1)
        if parent >= 0:
            assert areas[parent] > areas[child]
            assert mask_coverage(masks[child], masks[parent]) >= np.float32(theta)


@settings(max_examples=100, deadline=None)
@given(mask_sets(), thetas, st.randoms())
def test_order_matters_only_among_equals(masks, theta, random):
    order = list(range(len(masks)))
    random.shuffle(order)
    order = torch.tensor(order, dtype=torch.int64)
    parents, shuffled = build_forest(masks, theta), build_forest(masks[order], theta)
    for place, child in enumerate(order.tolist()):
        old, new = int(parents[child]), int(shuffled[place])
        assert (old < 0) == (new < 0)
        if old >= 0:
            assert masks.areas[order[new]] == masks.areas[old]


def test_pinned():
    assert build_forest(PackedMasks.empty((3, 3))).tolist() == []
    assert nested().parents.tolist() == [-1, 0, 1, 0, -1]
    equal = PackedMasks.from_dense(torch.ones(2, 3, 3, dtype=torch.bool))
    assert build_forest(equal).tolist() == [-1, -1]  # they cover each other: neither is the parent


def test_coverage_of_exactly_theta_is_inside():
    dense = torch.zeros(2, 5, 8, dtype=torch.bool)
    dense[0, 0] = dense[1] = True
    dense[1, 0, 0] = dense[1, 0, 1] = False  # 6 of 8 pixels
    assert build_forest(PackedMasks.from_dense(dense), 0.75).tolist() == [1, -1]
    assert build_forest(PackedMasks.from_dense(dense), 0.76).tolist() == [-1, -1]


@pytest.mark.parametrize("theta", [0.0, -1.0, 1.1, float("nan")])
def test_theta_out_of_range(theta):
    with pytest.raises(ValueError, match=r"^build_forest: expected theta_cover in \(0, 1\], got "):
        build_forest(PackedMasks.empty((3, 3)), theta)


# --- Forest ---


@settings(max_examples=50, deadline=None)
@given(forests_of_ten)
def test_levels_and_ancestors(parents):
    forest = grown(parents)
    ancestors = forest.ancestors()
    for child in range(10):
        above = []
        while (parents[above[-1]] if above else parents[child]) >= 0:
            above.append(parents[above[-1]] if above else parents[child])
        assert forest.levels[child] == len(above)
        assert ancestors[:, child].nonzero().flatten().tolist() == sorted(above)


@settings(max_examples=50, deadline=None)
@given(forests_of_ten, st.permutations(range(10)), st.integers(0, 10))
def test_select(parents, order, count):
    forest = grown(parents)
    kept = order[:count]
    part = forest.select(torch.tensor(kept, dtype=torch.int64))
    indices = torch.tensor(kept, dtype=torch.int64)
    assert torch.equal(part.ancestors(), forest.ancestors()[indices][:, indices])
    assert torch.equal(part.scores, forest.scores[indices])
    assert torch.equal(part.masks.words, forest.masks.words[indices])


def test_select_by_bool_and_repeats():
    forest = nested()
    part = forest.select(torch.tensor([True, False, True, False, False]))
    assert part.parents.tolist() == [-1, 0]
    with pytest.raises(ValueError, match=r"^Forest.select: expected indices without repeats$"):
        forest.select(torch.tensor([1, 1]))


def test_coco_and_back():
    forest = nested()
    annotations = json.loads(json.dumps(forest.to_coco(image_id=7, first_id=100)))
    assert annotations[2] == {
        "id": 102,
        "image_id": 7,
        "category_id": 1,
        "segmentation": {"size": [4, 4], "counts": "51:"},
        "area": 1,
        "bbox": [1, 1, 1, 1],
        "iscrowd": 0,
        "score": pytest.approx(0.7),
        "level": 2,
        "parent": 101,
    }
    assert [annotation["parent"] for annotation in annotations] == [None, 100, 101, 100, None]
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    assert coco.area([annotation["segmentation"] for annotation in annotations]).tolist() == [16, 8, 1, 1, 0]
    again = Forest.from_coco(annotations, (4, 4))
    assert torch.equal(again.masks.words, forest.masks.words)
    assert torch.equal(again.scores, forest.scores)
    assert torch.equal(again.parents, forest.parents)


def test_votes_travel():
    """Votes are kept by select, written to COCO records and read back; nothing is written without them."""
    plain = nested()
    forest = Forest(plain.masks, plain.scores, plain.parents, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.25]))
    torch.testing.assert_close(forest.select([3, 0]).votes, torch.tensor([0.4, 1.0]))
    records = json.loads(json.dumps(forest.to_coco(1)))
    torch.testing.assert_close(Forest.from_coco(records, forest.masks.size).votes, forest.votes)
    labelled = labelled_image({"id": 1, "height": 4, "width": 4, "file_name": "a.jpg"}, records, Path("a.jpg"))
    torch.testing.assert_close(labelled.forest.votes, forest.votes)
    assert plain.votes is None
    assert plain.select([0]).votes is None
    assert "votes" not in plain.to_coco(1)[0]
    del records[2]["votes"]
    assert Forest.from_coco(records, forest.masks.size).votes is None
    records[0]["votes"] = 1.5
    with pytest.raises(ValueError, match="expected a number from 0 to 1 as votes"):
        labelled_image({"id": 1, "height": 4, "width": 4, "file_name": "a.jpg"}, records, Path("a.jpg"))


def test_wrong_votes():
    plain = nested()
    with pytest.raises(ValueError, match=r"Forest: expected votes torch.float32 \[5\], got torch.float64 \[5\]"):
        Forest(plain.masks, plain.scores, plain.parents, torch.ones(5, dtype=torch.float64))


def test_plain_coco():
    """Annotations without scores, without parents, or with a parent that does not exist."""
    rle = {"size": [1, 2], "counts": "02"}
    forest = Forest.from_coco([{"segmentation": rle}, {"id": 3, "segmentation": rle, "parent": 99}], (1, 2))
    assert forest.parents.tolist() == [-1, -1]
    assert forest.scores.tolist() == [1.0, 1.0]
    assert len(Forest.from_coco([], (1, 2))) == 0
    assert Forest.from_coco([], (1, 2)).to_coco(1) == []


def test_label_map():
    forest = nested()
    assert forest.to_label_map().tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [1, 1, 0, 3], [1, 1, 0, 0]]
    assert forest.to_label_map(depth=0).tolist() == [[0] * 4] * 4
    assert forest.to_label_map(depth=1).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 3], [1, 1, 0, 0]]
    assert forest.select(torch.tensor([2])).to_label_map().unique().tolist() == [-1, 0]
    overlapping = torch.tensor([[[1, 1, 0]], [[0, 1, 1]], [[1, 1, 1]]]).bool()
    roots = Forest(PackedMasks.from_dense(overlapping), torch.ones(3), torch.tensor([-1, -1, -1]))
    assert roots.to_label_map().tolist() == [[0, 0, 1]]  # smaller over larger, of equals the lower index


def test_sam_records():
    records = nested().to_sam()
    assert [record["parent"] for record in records] == [None, 0, 1, 0, None]
    assert records[1]["bbox"] == [0, 0, 2, 4]
    assert records[1]["crop_box"] == [0, 0, 4, 4]
    assert records[1]["predicted_iou"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("scores", "parents", "message"),
    [
        (
            torch.ones(2),
            torch.tensor([-1, -1, -1]),
            r"^Forest: expected scores torch.float32 \[3\], got torch.float32 \[2\]$",
        ),
        (
            torch.ones(3),
            torch.tensor([-1.0, 0, 0]),
            r"^Forest: expected parents torch.int64 \[3\], got torch.float32 \[3\]$",
        ),
        (torch.ones(3), torch.tensor([-1, 0, 3]), r"^Forest: expected parents from -1 to 2, got \[-1, 0, 3\]$"),
        (torch.ones(3), torch.tensor([1, 2, 0]), r"^Forest: parents hold a cycle$"),
        (torch.ones(3), torch.tensor([-1, 1, 0]), r"^Forest: parents hold a cycle$"),
    ],
)
def test_messages(scores, parents, message):
    masks = PackedMasks.from_dense(torch.ones(3, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=message):
        Forest(masks, scores, parents)


def resident_megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


@pytest.mark.skipif(find_binary().module is None, reason="the references take most of a minute")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to reset the peak memory")
def test_the_whole_way_from_logits_to_labels_adds_less_than_200_megabytes():
    """1000 masks of 480 x 640: 38 MB packed, 307 MB as bool, 1.2 GB as upsampled logits."""
    logits = object_logits(1000, 120, 160)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest resident size so far
    before = resident_megabytes("VmRSS")
    masks = PackedMasks.from_logits(logits, (480, 640))
    masks = masks[nms_masks(masks, 0.9)]
    annotations = Forest(masks, torch.ones(len(masks)), build_forest(masks)).to_coco(image_id=1)
    assert resident_megabytes("VmHWM") - before < 200
    assert len(annotations) == len(masks) > 500
