# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.configs.run import ViewConfig
from sohes.data.coco import LabelSet, write_coco
from sohes.data.dataset import Batch, LabelDataset, collate
from sohes.data.images import UnreadableImage
from sohes.data.sampling import batches, epoch_order, step_samples
from sohes.data.scenes import draw_scene, write_scenes
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks
from sohes.structures.target import Target

VIEWS = ViewConfig(size=48, scale=(0.6, 1.8), cache_mb=16)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return LabelSet(write_scenes(tmp_path_factory.mktemp("data") / "scenes", num=7, size=64, seed=0))


def same(a, b):
    """Whether two samples or batches are bit-identical."""
    pairs = [(a.valid, b.valid)]
    for x, y in zip(getattr(a, "targets", None) or [a.target], getattr(b, "targets", None) or [b.target], strict=True):
        pairs += [(x.masks, y.masks), (x.ancestors, y.ancestors), (x.scores, y.scores)]
    if isinstance(a, Batch):
        assert a.names == b.names
        pairs += [(a.images, b.images)]
    else:
        pairs += [(a.image, b.image)]
    return all(torch.equal(x, y) for x, y in pairs)


class TestSample:
    def test_shapes_and_a_closed_ancestor_matrix(self, labels):
        dataset = LabelDataset(labels, VIEWS, seed=0)
        assert len(dataset) == 7
        for index in range(7):
            for epoch in range(4):
                sample = dataset.sample(index, epoch)
                n = len(sample.target.masks)
                ancestors = sample.target.ancestors.float()
                assert sample.image.shape == (3, 48, 48)
                assert sample.strong is None
                assert sample.target.masks.shape == (n, 48, 48)
                assert sample.target.ancestors.shape == (n, n)
                assert sample.target.scores.shape == (n,)
                assert ((ancestors @ ancestors > 0) <= sample.target.ancestors).all()
                assert (sample.target.masks.flatten(1).sum(1) >= 8).all()
                assert not (sample.target.masks & ~sample.valid).any()

    def test_ancestors_contain_their_parts(self, labels):
        target = LabelDataset(labels, VIEWS, seed=0).sample(0, 0).target
        pairs = target.ancestors.nonzero()
        assert len(pairs) > 0
        for whole, part in pairs.tolist():
            assert not (target.masks[part] & ~target.masks[whole]).any()

    def test_small_masks_are_no_targets(self, labels):
        every = LabelDataset(labels, VIEWS, seed=0).sample(0, 0).target
        areas = every.masks.flatten(1).sum(1)
        limit = int(areas.median())
        large = LabelDataset(labels, replace(VIEWS, min_area=limit), seed=0).sample(0, 0).target
        assert 0 < len(large.masks) < len(every.masks)
        assert torch.equal(large.masks, every.masks[areas >= limit])

    def test_pure_function_of_seed_epoch_index(self, labels):
        cold = LabelDataset(labels, ViewConfig(size=48, scale=VIEWS.scale, cache_mb=0), seed=3)
        warm = LabelDataset(labels, VIEWS, seed=3)
        for index, epoch in [(5, 2), (0, 0), (5, 2), (5, 3)]:
            assert same(cold.sample(index, epoch), warm.sample(index, epoch))
        assert not same(warm.sample(5, 2), warm.sample(5, 3))
        assert not same(warm.sample(5, 2), LabelDataset(labels, VIEWS, seed=4).sample(5, 2))

    def test_pairs_share_the_crop_and_the_weak_view(self, labels):
        weak = LabelDataset(labels, VIEWS, seed=0).sample(1, 0)
        strong = LabelDataset(labels, VIEWS, seed=0, strong=True).sample(1, 0)
        pair = LabelDataset(labels, VIEWS, seed=0, pairs=True).sample(1, 0)
        assert same(weak, pair)
        assert torch.equal(pair.strong, strong.image)
        assert torch.equal(pair.target.masks, strong.target.masks)
        assert not torch.equal(weak.image, strong.image)

    def test_cache_respects_its_budget(self, labels):
        dataset = LabelDataset(labels, ViewConfig(size=48, scale=(1, 1), cache_mb=0), seed=0)
        dataset.sample(0, 0)
        assert len(dataset._cache) == 0
        dataset = LabelDataset(labels, VIEWS, seed=0)
        for _ in range(2):
            dataset.sample(0, 0)
        assert len(dataset._cache) == 1

    def test_options_are_checked(self, labels):
        with pytest.raises(ValueError, match="expected one of strong and pairs"):
            LabelDataset(labels, VIEWS, seed=0, strong=True, pairs=True)
        with pytest.raises(ValueError, match=r"expected a scale range 0 < low <= high, got \(2, 1\)"):
            LabelDataset(labels, ViewConfig(scale=(2, 1)), seed=0)


def one_photo(folder, size=(20, 30), annotations=(), name="a.png"):
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(folder / name)
    images = [{"id": 1, "file_name": name, "width": size[1], "height": size[0]}]
    write_coco(folder / "labels.json", images, annotations)
    return LabelDataset(LabelSet(folder / "labels.json"), VIEWS, seed=0)


class TestUnusualPhotos:
    def test_no_masks(self, tmp_path):
        dataset = one_photo(tmp_path)
        batch = collate([dataset.sample(0, 0), dataset.sample(0, 1)])
        assert [tuple(target.masks.shape) for target in batch.targets] == [(0, 48, 48)] * 2
        assert batch.targets[0].ancestors.shape == (0, 0)

    def test_crowds_are_no_targets(self, tmp_path):
        dense = np.zeros((3, 20, 30), bool)
        dense[0], dense[1, :10], dense[2, :5] = True, True, True
        forest = Forest(PackedMasks.from_dense(dense), torch.ones(3), torch.tensor([-1, 0, 1]))
        annotations = forest.to_coco(image_id=1)
        annotations[1]["iscrowd"] = 1
        dataset = one_photo(tmp_path, annotations=annotations)
        target = next(t for t in (dataset.sample(0, e).target for e in range(50)) if len(t.masks) == 2)
        assert target.ancestors.tolist() == [[False, True], [False, False]]

    def test_padding_is_zero_after_normalisation(self, tmp_path):
        batch = collate([one_photo(tmp_path).sample(0, 0)])
        assert not batch.valid.all()
        assert (batch.images.permute(0, 2, 3, 1)[~batch.valid] == 0).all()
        assert (batch.images.permute(0, 2, 3, 1)[batch.valid] != 0).all()

    def test_labels_of_another_size(self, tmp_path):
        dataset = one_photo(tmp_path, size=(30, 20))
        with pytest.raises(ValueError) as error:
            dataset.sample(0, 0)
        assert str(error.value) == (
            f"{tmp_path}/a.png has 30x20 pixels, but its labels in {tmp_path}/labels.json are for 20x30"
        )

    def test_unreadable_photo(self, tmp_path):
        dataset = one_photo(tmp_path)
        (tmp_path / "a.png").write_bytes(b"")
        with pytest.raises(UnreadableImage, match="empty"):
            dataset.sample(0, 0)


class TestBatch:
    def test_collate(self, labels):
        dataset = LabelDataset(labels, VIEWS, seed=0, pairs=True)
        batch = collate([dataset.sample(i, 0) for i in range(3)])
        assert batch.images.shape == batch.strong_images.shape == (3, 3, 48, 48)
        assert batch.images.dtype == batch.strong_images.dtype == torch.float32
        assert batch.valid.shape == (3, 48, 48)
        assert len(batch.targets) == 3
        assert batch.names == [str(labels[i].path) for i in range(3)]
        assert same(batch.to("cpu"), batch)
        assert collate([LabelDataset(labels, VIEWS, seed=0).sample(0, 0)]).strong_images is None

    def test_target_of_a_forest(self):
        forest = draw_scene(0, 48).forest
        target = Target.from_forest(forest)
        assert torch.equal(target.masks, forest.masks.to_dense())
        assert torch.equal(target.ancestors, forest.ancestors())
        assert torch.equal(target.scores, forest.scores)


class TestOrder:
    def test_epochs_are_permutations_that_differ(self):
        orders = [epoch_order(50, epoch, seed) for epoch in range(3) for seed in range(2)]
        assert all(sorted(order) == list(range(50)) for order in orders)
        assert len({tuple(order) for order in orders}) == 6
        assert (epoch_order(50, 2, 1) == orders[5]).all()

    @pytest.mark.parametrize(("num", "batch_size"), [(7, 3), (7, 7), (2, 5), (1, 4)])
    def test_steps_walk_through_epochs_without_gaps(self, num, batch_size):
        seen = [pair for step in range(20) for pair in step_samples(num, batch_size, step, seed=0)]
        for epoch in range(20 * batch_size // num):
            assert sorted(index for e, index in seen if e == epoch) == list(range(num))
        assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)

    @pytest.mark.parametrize("num", [1, 5, 1000])
    def test_the_order_is_numpys_permutation_of_seed_and_epoch(self, num):
        """Pinned: another order would change the results of every run, and the batches of a resumed one."""
        for epoch in (0, 3):
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, epoch])))
            assert (epoch_order(num, epoch, 7) == rng.permutation(num)).all()

    def test_the_samples_of_a_step_are_a_slice_of_its_epochs(self):
        whole = [(epoch, int(index)) for epoch in range(9) for index in epoch_order(10, epoch, 2)]
        for batch_size in (1, 4, 10, 25):
            for step in (3, 0, 2, 1):  # in any order: a step does not depend on those before
                expected = whole[step * batch_size : (step + 1) * batch_size]
                assert step_samples(10, batch_size, step, 2)[: len(expected)] == expected

    def test_an_epoch_is_put_in_order_once(self):
        epoch_order.cache_clear()
        for step in range(35):  # of 3 in 10 photos: 10.5 epochs
            step_samples(10, 3, step, seed=5)
        assert epoch_order.cache_info().misses == 11

    def test_an_order_takes_four_bytes_a_photo_and_cannot_be_written_to(self):
        order = epoch_order(1000, 0, 0)
        assert order.nbytes == 4000
        with pytest.raises(ValueError, match="read-only"):
            order[0] = 1


class TestBatches:
    def take(self, labels, start=0, stop=5, batch_size=4, **options):
        return list(batches(LabelDataset(labels, VIEWS, seed=1), batch_size, 1, start, stop, **options))

    def test_steps_and_sizes(self, labels):
        stream = self.take(labels)
        assert [step for step, _ in stream] == [0, 1, 2, 3, 4]
        assert all(len(batch.images) == 4 for _, batch in stream)
        assert self.take(labels, start=5) == []

    def test_endless_without_stop(self, labels):
        stream = batches(LabelDataset(labels, VIEWS, seed=1), 1, 1, start_step=1_000_000)
        assert [next(stream)[0] for _ in range(3)] == [1_000_000, 1_000_001, 1_000_002]

    def test_resumes_exactly(self, labels):
        whole, tail = self.take(labels), self.take(labels, start=3)
        assert all(i == j and same(a, b) for (i, a), (j, b) in zip(whole[3:], tail, strict=True))

    def test_ranks_share_out_the_global_batch(self, labels):
        whole = self.take(labels, stop=3)
        ranks = [self.take(labels, stop=3, rank=rank, world=2) for rank in range(2)]
        for step, batch in whole:
            parts = [rank[step][1] for rank in ranks]
            assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
            assert parts[0].names + parts[1].names == batch.names

    def test_workers_give_the_same_batches_and_leave_the_global_generator(self, labels):
        state = torch.get_rng_state()
        pairs = zip(self.take(labels, start=1, stop=4), self.take(labels, 1, 4, num_workers=2), strict=True)
        assert all(i == j and same(a, b) for (i, a), (j, b) in pairs)
        assert torch.equal(torch.get_rng_state(), state)

    def test_errors_of_workers_say_why(self, tmp_path):
        dataset = one_photo(tmp_path)
        (tmp_path / "a.png").write_bytes(b"")
        with pytest.raises(UnreadableImage, match=r"a\.png.*empty"):
            next(batches(dataset, 1, 0, 0, num_workers=1))

    def test_errors(self, labels, tmp_path):
        with pytest.raises(ValueError, match="batch size 4 cannot be shared by 3 processes; expected a multiple of 3"):
            self.take(labels, world=3)
        with pytest.raises(ValueError, match="expected a rank from 0 to 1, got 2"):
            self.take(labels, rank=2, world=2)
        write_coco(tmp_path / "none.json", [], [])
        with pytest.raises(ValueError, match=r"no images to learn from in .*none\.json"):
            self.take(LabelSet(tmp_path / "none.json"))
