# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.random import PCG64, Generator

from sohes.data.coco import LabelSet
from sohes.data.errors import DataError
from sohes.data.images import read_image
from sohes.data.scene_objects import FAMILIES, Part
from sohes.data.scenes import MIN_FRAGMENT, SAME_AS_PARENT, draw_scene, write_scenes
from sohes.data.sources import list_images
from sohes.structures.masks import mask_coverage

SEEDS = range(24)


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed, 96) for seed in SEEDS]


def walk(part: Part):
    yield part
    for child in part.children:
        yield from walk(child)


class TestDrawScene:
    def test_types(self, scenes):
        for scene in scenes:
            assert scene.image.shape == (3, 96, 96)
            assert scene.image.dtype == torch.uint8
            assert scene.forest.masks.size == (96, 96)
            assert scene.forest.scores.tolist() == [1.0] * len(scene.forest)

    def test_equal_seeds_give_equal_bytes_in_another_process(self, scenes):
        program = (
            "import hashlib; from sohes.data.scenes import draw_scene; s = draw_scene(3, 96);"
            "print(hashlib.sha256(s.image.numpy().tobytes() + s.forest.masks.words.numpy().tobytes()).hexdigest())"
        )
        there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        scene = scenes[3]
        here = hashlib.sha256(scene.image.numpy().tobytes() + scene.forest.masks.words.numpy().tobytes())
        assert there.strip() == here.hexdigest()

    def test_seeds_differ(self, scenes):
        assert len({scene.image.numpy().tobytes() for scene in scenes}) == len(scenes)

    def test_children_lie_inside_their_parents_and_differ_from_them(self, scenes):
        for scene in scenes:
            forest = scene.forest
            child = (forest.parents >= 0).nonzero().flatten()
            parent = forest.parents[child]
            cover = mask_coverage(forest.masks[child], forest.masks[parent]).diagonal()
            assert (cover == 1).all()
            assert (forest.masks.areas[child] <= SAME_AS_PARENT * forest.masks.areas[parent]).all()

    def test_only_ancestors_and_descendants_overlap(self, scenes):
        for scene in scenes:
            dense = scene.forest.masks.to_dense().flatten(1).float()
            related = scene.forest.ancestors() | scene.forest.ancestors().T | torch.eye(len(dense), dtype=torch.bool)
            assert torch.equal((dense @ dense.T) > 0, related)

    def test_no_small_masks(self, scenes):
        assert min(int(scene.forest.masks.areas.min()) for scene in scenes) >= MIN_FRAGMENT

    def test_variety(self, scenes):
        levels = torch.cat([scene.forest.levels for scene in scenes])
        areas = torch.cat([scene.forest.masks.areas for scene in scenes])
        assert set(levels.tolist()) >= {0, 1, 2, 3}
        assert areas.min() < 40
        assert areas.max() > 0.4 * 96 * 96
        roots = [int((scene.forest.parents < 0).sum()) for scene in scenes]
        assert min(roots) >= 2
        assert max(roots) <= 9

    def test_two_surfaces_are_entities_and_one_is_none(self, scenes):
        shares = [float(scene.forest.masks.to_dense().any(0).float().mean()) for scene in scenes]
        two = [share > 0.98 for share in shares]
        assert 0 < sum(two) < len(two)
        assert all(share < 0.9 for share, is_two in zip(shares, two, strict=True) if not is_two)

    def test_parts_can_be_told_apart(self, scenes):
        """Neighbouring leaves differ in mean colour by far more than the noise."""
        gaps = []
        for scene in scenes:
            forest = scene.forest
            labels = forest.to_label_map().numpy()
            image = scene.image.numpy().astype(np.float32)
            means = {k: image[:, labels == k].mean(axis=1) for k in np.unique(labels[labels >= 0])}
            gaps += [
                np.linalg.norm(means[k] - means[int(forest.parents[k])])
                for k in means
                if int(forest.parents[k]) in means
            ]
        assert np.median(gaps) > 50
        assert np.mean(np.array(gaps) < 20) < 0.1

    @pytest.mark.parametrize("size", [32, 65, 200])
    def test_sizes(self, size):
        assert draw_scene(1, size).image.shape == (3, size, size)

    @pytest.mark.parametrize(("seed", "size"), [(-1, 64), (0, 31)])
    def test_errors(self, seed, size):
        with pytest.raises(ValueError) as error:
            draw_scene(seed, size)
        assert str(error.value) == (f"draw_scene: expected seed >= 0 and size >= 32, got seed {seed} and size {size}")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_families_fill_their_frame_and_have_parts(family):
    for seed in range(5):
        parts = list(walk(family(Generator(PCG64(seed)))))
        points = np.concatenate([part.outline for part in parts if part.outline is not None])
        assert len(parts) >= 2
        assert np.abs(points).max() <= 1.35
        assert np.ptp(points, axis=0).max() >= 1.1


class TestWriteScenes:
    def test_files_hold_the_scenes(self, tmp_path):
        folder = write_scenes(str(tmp_path / "new/scenes"), num=3, size=48, seed=7)
        assert folder == tmp_path / "new/scenes"
        path = folder / "annotations.json"
        labels = LabelSet(folder)
        assert [item.path for item in labels] == list(list_images(path.parent / "images"))
        for index, item in enumerate(labels):
            scene = draw_scene(7_000_000 + index, 48)
            assert torch.equal(read_image(item.path), scene.image)
            assert torch.equal(item.forest.masks.words, scene.forest.masks.words)
            assert torch.equal(item.forest.parents, scene.forest.parents)
        content = json.loads(path.read_text())
        ids = [annotation["id"] for annotation in content["annotations"]]
        assert ids == list(range(1, len(ids) + 1))
        assert {"level", "parent", "score", "bbox", "area"} <= set(content["annotations"][0])
        assert content["categories"] == [{"id": 1, "name": "entity"}]

    def test_same_request_is_reused_and_another_replaces(self, tmp_path):
        folder = tmp_path / "scenes"
        path = write_scenes(folder, num=3, size=32, seed=0) / "annotations.json"
        before = path.stat().st_mtime_ns
        content = path.read_bytes()
        write_scenes(folder, num=3, size=32, seed=0)
        assert path.stat().st_mtime_ns == before
        write_scenes(folder, num=2, size=32, seed=0)
        assert len(list_images(folder)) == 2
        write_scenes(folder, num=3, size=32, seed=0)
        assert path.read_bytes() == content
        assert [p.name for p in tmp_path.iterdir()] == ["scenes"]

    def test_failure_leaves_nothing(self, tmp_path):
        with pytest.raises(ValueError, match="size >= 32"):
            write_scenes(tmp_path / "scenes", num=3, size=8, seed=0)
        assert list(tmp_path.iterdir()) == []

    def test_other_folders_are_left_alone(self, tmp_path):
        (tmp_path / "holiday.jpg").write_bytes(b"x")
        with pytest.raises(DataError, match="holds no drawn scenes"):
            write_scenes(tmp_path, num=1, size=32, seed=0)
        assert (tmp_path / "holiday.jpg").exists()

    def test_num_is_checked(self, tmp_path):
        with pytest.raises(ValueError, match="expected num from 1 to 1000000, got 0"):
            write_scenes(tmp_path / "scenes", num=0, size=32, seed=0)
