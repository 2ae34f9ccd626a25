# SPDX-License-Identifier: Apache-2.0
"""Baselines and the oracle on drawn images, and the command that applies them."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.baselines import classical
from sohes.baselines.classical import box_grid_forest, felzenszwalb_forest, largest_first, slic_tree_forest
from sohes.baselines.tree_oracle import assign_nodes, node_ious, tree_oracle_forest
from sohes.configs.evaluate import BaselineConfig
from sohes.configs.run import ExploreConfig
from sohes.evaluate import main
from sohes.labels.draw import draw_nodes
from sohes.labels.features import build_extractor
from sohes.labels.photo_regions import photo_tree
from sohes.structures.masks import PackedMasks, mask_iou


def two_squares(size=64):
    """(photo uint8 [3, size, size], bool [2, size, size]): a red square on grey, and a blue one inside it."""
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    masks[0, 8:48, 8:48] = True
    masks[1, 16:32, 16:32] = True
    photo = torch.full((3, size, size), 128, dtype=torch.uint8)
    photo[:, masks[0]] = torch.tensor([200, 30, 30], dtype=torch.uint8)[:, None]
    photo[:, masks[1]] = torch.tensor([30, 30, 200], dtype=torch.uint8)[:, None]
    return photo, masks


@pytest.mark.parametrize("segment", [felzenszwalb_forest, slic_tree_forest])
def test_classical_segmenters_find_flat_squares(segment):
    pytest.importorskip("skimage")
    photo, masks = two_squares()
    config = BaselineConfig(slic_segments=60, felzenszwalb_sigma=0.3)  # less blur than photos need
    forest = segment(photo, config)
    ring_or_whole = PackedMasks.from_dense(torch.stack([masks[0], masks[0] & ~masks[1], masks[1]]))
    best = mask_iou(ring_or_whole, forest.masks).max(1).values
    assert best[:2].max() > 0.8  # the outer square, or what the inner one leaves of it
    assert best[2] > 0.8
    assert (forest.scores.diff() <= 0).all()
    assert (forest.masks.areas >= config.min_pixels).all()


def test_box_grid_by_hand():
    config = BaselineConfig(box_grid_sides=(1, 2), min_pixels=1)
    forest = box_grid_forest(torch.zeros(3, 4, 8, dtype=torch.uint8), config)
    # The whole; four quarters; two shifted sideways, two down, one both: 1 + 1 * 2 + 2 * 1 + 1.
    boxes = {tuple(box) for box in forest.masks.boxes.tolist()}
    quarters = {(x, y, x + 4, y + 2) for x in (0, 2, 4) for y in (0, 1, 2)}
    assert boxes == {(0, 0, 8, 4)} | quarters
    assert forest.masks.areas.tolist() == [32] + [8] * 9
    assert forest.parents.tolist() == [-1] + [0] * 9


def test_boxes_tile_odd_sizes_without_gaps():
    config = BaselineConfig(box_grid_sides=(3,), min_pixels=1, nms_iou=1.0)
    forest = box_grid_forest(torch.zeros(3, 7, 11, dtype=torch.uint8), config)
    assert len(forest) == 9 + 6 + 6 + 4
    assert forest.masks.to_dense().any(0).all()


def test_largest_first_keeps_the_limit_and_drops_tiny_and_repeated_masks():
    masks = torch.zeros(4, 20, 20, dtype=torch.bool)
    masks[0, :2, :2] = True
    masks[1, :10] = True
    masks[2] = True
    masks[3, :10] = True
    forest = largest_first(PackedMasks.from_dense(masks), BaselineConfig(min_pixels=10))
    assert forest.scores.tolist() == [1.0, 0.5]
    assert len(largest_first(PackedMasks.from_dense(masks), BaselineConfig(min_pixels=1, max_masks=2))) == 2


@pytest.fixture(scope="module")
def tree():
    photo, masks = two_squares()
    merged, leaves = photo_tree(photo, build_extractor(ExploreConfig()))
    return merged, leaves, PackedMasks.from_dense(masks)


def test_node_ious_are_those_of_the_drawn_masks(tree):
    merged, patches, masks = tree
    drawn = draw_nodes(merged, torch.arange(merged.num_nodes), patches)
    np.testing.assert_allclose(node_ious(merged, patches, masks), mask_iou(drawn, masks).numpy(), atol=1e-6)


def test_assignment_gives_different_nodes_and_prefers_thresholds():
    # Node 0 is best for both; the sum of thresholds reached is highest when mask 0 takes node 1.
    ious = np.array([[0.9, 0.8], [0.86, 0.3], [0.4, 0.45]])
    assert sorted(assign_nodes(ious)) == [(0, 0.8), (1, 0.86)]
    assert assign_nodes(np.array([[0.49]])) == []
    assert assign_nodes(np.zeros((3, 0))) == []


def test_oracle_beats_every_node_it_could_choose(tree):
    merged, patches, masks = tree
    photo, _ = two_squares()
    forest = tree_oracle_forest(photo, [masks, masks[:1]], build_extractor(ExploreConfig()), 1000)
    best = node_ious(merged, patches, masks).max(0)
    np.testing.assert_allclose(mask_iou(masks, forest.masks).max(1).values.numpy(), best, atol=1e-6)
    assert len(forest) == 2
    assert len(tree_oracle_forest(photo, [masks], build_extractor(ExploreConfig()), 1)) == 1


@pytest.fixture
def folder(tmp_path):
    """Two photos in a plain COCO folder, with a parent, a crowd that the oracle must ignore, and an empty photo."""
    photo, masks = two_squares()
    (tmp_path / "set" / "images").mkdir(parents=True)
    for name in "ab":
        Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "set" / "images" / f"{name}.png")
    images = [{"id": i, "file_name": f"{n}.png", "width": 64, "height": 64} for i, n in ((7, "a"), (9, "b"))]
    rles = PackedMasks.from_dense(masks).to_rle()
    annotations = [
        {"id": 5, "image_id": 7, "segmentation": rles[0], "parent": None},
        {"id": 6, "image_id": 7, "segmentation": rles[1], "parent": 5},
        {"id": 8, "image_id": 7, "segmentation": rles[0], "iscrowd": 1, "parent": None},
    ]
    (tmp_path / "set" / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return tmp_path


def run(folder, *options):
    arguments = ["--dataset", "plain", "--root", str(folder / "set"), "--pred", str(folder / "p.json")]
    return main([*arguments, "--out", str(folder / "scores.json"), *options])


def test_command_writes_predictions_and_scores(folder, capsys):
    assert run(folder, "--baseline", "tree-oracle") == 0
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["num_images"] == 2
    assert scores["masks_per_image"] == 1.0
    assert scores["AR@1000"] > 0.8
    assert scores["parent_recall"] == 1.0
    pred = json.loads((folder / "p.json").read_text())
    assert [image["id"] for image in pred["images"]] == [7, 9]
    assert run(folder, "--baseline", "box-grid") == 0  # replaces a baseline's predictions
    below = json.loads((folder / "scores.json").read_text())
    assert below["AR@1000"] < scores["AR@1000"]
    assert run(folder, "--baseline", "box-grid", "--num-images", "1") == 0
    assert json.loads((folder / "scores.json").read_text())["num_images"] == 1


def refused(folder, capsys, *options):
    with pytest.raises(SystemExit) as stop:
        run(folder, *options)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_other_predictions_are_not_replaced(folder, capsys):
    (folder / "p.json").write_text("[]")
    assert "holds no predictions of a baseline" in refused(folder, capsys, "--baseline", "box-grid")
    assert (folder / "p.json").read_text() == "[]"


def test_photo_of_another_size_is_refused(folder, capsys):
    Image.new("RGB", (32, 64)).save(folder / "set" / "images" / "b.png")
    assert "b.png is 64 x 32 pixels, its annotations say 64 x 64" in refused(folder, capsys, "--baseline", "box-grid")
    assert not (folder / "p.json").exists()


def test_missing_scikit_image_is_one_line(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert "pip install scikit-image" in refused(folder, capsys, "--baseline", "slic-tree")
    with pytest.raises(classical.MissingDependency):
        classical.import_segmentation()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "p.json: no such file"),
        (["--baseline", "box-grid", "--num-images", "0"], "--num-images 0: expected >= 1"),
        (["--baseline", "box-grid", "--explore", "x"], "--explore goes with --baseline tree-oracle"),
        (["--gt", "x.json"], "expected either --gt FILE or --dataset NAME --root FOLDER"),
    ],
)
def test_options_that_do_not_fit(folder, options, message, capsys):
    assert message in refused(folder, capsys, *options)
