# SPDX-License-Identifier: Apache-2.0
"""The merge trees of a report: the data for the script of the page equals the tree."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
import torch

from sohes.configs.run import ExploreConfig, to_dict
from sohes.data.scenes import draw_scene, write_scenes
from sohes.labels.features import build_extractor
from sohes.labels.photo_regions import photo_tree
from sohes.ops.merge_regions import merge_regions
from sohes.phases.explore import explore
from sohes.report import write_report
from sohes.report.photos import choose_evenly, missed_masks
from sohes.report.trees import draw_tree, layout_boundaries, spread_cuts, unrefined
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks
from sohes.utils.console import RunLog
from sohes.utils.errors import SohesError

CONFIG = ExploreConfig(start="patches", patch=4)


def inflate(text):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u2")


def same_partition(a, b):
    """Whether two label maps have equal regions under any labels."""
    pairs = {(x, y) for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)}
    return len(pairs) == len(set(a.ravel().tolist())) == len(set(b.ravel().tolist()))


@pytest.mark.parametrize("stop", [-np.inf, 0.4])
def test_boundaries_give_every_cut_of_the_tree(stop):
    features = torch.rand(7, 9, 5, generator=torch.Generator().manual_seed(1)) - 0.3
    (tree,) = merge_regions(features, min_similarity=stop)
    order, joined = layout_boundaries(tree)
    assert sorted(order.tolist()) == list(range(63))
    assert len(joined) == 62
    for threshold, merges, regions in spread_cuts(tree, 20):
        labels = np.empty(63, int)
        labels[order] = np.concatenate([[0], np.cumsum(joined >= merges)])
        assert labels.max() + 1 == regions == 63 - merges
        if merges:
            assert tree.num_merges(threshold) == merges
            assert same_partition(labels, tree.cut(threshold).numpy())


def test_cuts_go_from_all_patches_to_one_region():
    (tree,) = merge_regions(torch.rand(8, 8, 4, generator=torch.Generator().manual_seed(2)))
    cuts = spread_cuts(tree, 12)
    assert cuts[0] == (1.0, 0, 64)
    assert [regions for _, _, regions in cuts] == sorted({regions for _, _, regions in cuts}, reverse=True)
    assert 1 <= cuts[-1][2] <= 4
    single = merge_regions(torch.ones(1, 1, 4))[0]
    assert spread_cuts(single, 12) == [(1.0, 0, 1)]
    assert [len(part) for part in layout_boundaries(single)] == [1, 0]


def test_a_tree_of_a_photo():
    image = draw_scene(3, 96).image
    extractor = build_extractor(CONFIG)
    picture = draw_tree(image, "a.png", extractor, build_extractor(unrefined(CONFIG)), CONFIG)
    height, width = picture.size
    places, joined = inflate(picture.places), inflate(picture.joined)
    assert (len(places), len(joined)) == (height * width, 24 * 24 - 1)
    assert sorted(set(places.tolist())) == list(range(24 * 24))
    # The regions of a cut, made as the script makes them, are the tree's own at every pixel.
    view = extractor.view(image)
    (tree,) = merge_regions(extractor([view])[0])
    threshold, merges, _ = picture.cuts[len(picture.cuts) // 2]
    shown = np.concatenate([[0], np.cumsum(joined >= merges)])[places].reshape(height, width)
    scale = height // 96
    true = tree.cut(threshold).flatten()[view.at_photo_size(view.patches)].numpy()
    assert same_partition(shown[scale // 2 :: scale, scale // 2 :: scale], true)
    assert picture.closeup is not None
    assert 0 < picture.closeup.iou <= 1
    assert picture.closeup.before != picture.closeup.after
    square = unrefined(CONFIG)
    assert draw_tree(image, "a.png", extractor, extractor, square).closeup is None


def test_too_many_patches_are_an_error():
    config = ExploreConfig(start="patches", patch=1, snap_rounds=0, diffusion_steps=0)
    extractor = build_extractor(config)
    with pytest.raises(SohesError, match=r"^b\.png: 66049 patches are too many"):
        draw_tree(torch.zeros(3, 257, 257, dtype=torch.uint8), "b.png", extractor, extractor, config)


def test_page_of_a_run_carries_its_trees(tmp_path):
    write_scenes(tmp_path / "scenes" / "train", 5, 48, 0)
    config = ExploreConfig(start="patches", patch=4, max_masks=10)
    explore(tmp_path / "scenes/train/images", tmp_path, config, log=RunLog(console=False))
    (tmp_path / "config.json").write_text(json.dumps({"explore": to_dict(config)}))
    html = write_report(tmp_path, num_photos=4).read_text()
    assert "<h2>Merge trees</h2>" in html
    data = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html)]
    assert len(data) == 2
    for one in data:
        assert len(inflate(one["places"])) == one["size"][0] * one["size"][1]
        assert all(merges + regions == 144 for _, merges, regions in one["cuts"])
    assert html.count("refined</b>") == 2
    assert "Close up, one mask" in html
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest|@import", html)
    (tmp_path / "config.json").write_text(json.dumps({"explore": {"features": "vit_nowhere"}}))
    assert "no merge trees: " in write_report(tmp_path).read_text()


def test_a_close_up_is_announced_only_where_there_is_one(tmp_path):
    write_scenes(tmp_path / "scenes" / "train", 2, 48, 0)
    config = unrefined(ExploreConfig(patch=4, max_masks=10))  # square patches, as in the presets tiny and micro
    explore(tmp_path / "scenes/train/images", tmp_path, config, log=RunLog(console=False))
    (tmp_path / "config.json").write_text(json.dumps({"explore": to_dict(config)}))
    html = write_report(tmp_path).read_text()
    assert "<h2>Merge trees</h2>" in html
    assert 'class="closeup"' not in html
    assert "Close up" not in html


def test_missed_masks():
    dense = torch.zeros(4, 8, 8, dtype=torch.bool)
    dense[0, :4], dense[1, 4:, :4], dense[2, 4:, 4:], dense[3, :, :] = True, True, True, True
    masks = PackedMasks.from_dense(dense)
    truth = Forest(masks, torch.ones(4), torch.tensor([3, 3, 3, -1]))
    found = Forest(masks[torch.tensor([0, 2])], torch.ones(2), torch.tensor([-1, -1]))
    assert missed_masks(found, truth).masks.areas.tolist() == [16]  # the whole is matched by its upper half, IoU 0.5
    assert len(missed_masks(truth, truth)) == 0
    assert len(missed_masks(found.select(torch.zeros(2, dtype=torch.bool)), truth)) == 4


def test_choose_evenly():
    assert choose_evenly(range(10), 3) == [1, 5, 8]
    assert choose_evenly([4, 5], 7) == [4, 5]
    assert choose_evenly([], 3) == []


def test_a_tree_of_basins():
    image = draw_scene(3, 96).image
    config = ExploreConfig(max_masks=10)
    extractor = build_extractor(config)
    picture = draw_tree(image, "a.png", extractor, build_extractor(unrefined(config)), config)
    tree, leaves = photo_tree(image, extractor)
    places, joined = inflate(picture.places), inflate(picture.joined)
    assert len(joined) == tree.num_leaves - 1
    threshold, merges, _ = picture.cuts[len(picture.cuts) // 2]
    height, width = picture.size
    shown = np.concatenate([[0], np.cumsum(joined >= merges)])[places].reshape(height, width)
    scale = height // 96
    true = tree.cut(threshold)[leaves].numpy()
    assert same_partition(shown[scale // 2 :: scale, scale // 2 :: scale], true)
