# SPDX-License-Identifier: Apache-2.0
"""Results do not depend on the default device and dtype of torch, for every public operation.

Under the default device `meta` a tensor made without a device has no memory, and a kernel that writes to it is a crash.
"""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_cases import mixed
from micro import micro_model
from ms_deform_attn_cases import SMALL_CASES, make_inputs, make_raw_inputs

import sohes
from sohes import ops
from sohes.configs.pretrain import DistillConfig, VitConfig
from sohes.configs.run import ExploreConfig, InferConfig, LossConfig
from sohes.labels.features import build_extractor
from sohes.labels.pipeline import label_image
from sohes.losses import Criterion, distillation
from sohes.losses.ancestor_loss import ancestor_loss
from sohes.models.distillation import build_distillation_model
from sohes.models.segmenter import Segmenter
from sohes.models.segmenter_model import build_model
from sohes.ops._binary import find_binary
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, as_indices, mask_coverage, mask_iou, nms_masks
from sohes.structures.target import Target

SIZE = (21, 34)


def ops_of_masks():
    dense = mixed(0, *SIZE)
    masks = PackedMasks.from_dense(dense)
    words, areas, boxes, rle = masks.words, masks.areas, masks.boxes, [one["counts"] for one in masks.to_rle()]
    logits, index = torch.randn(4, 5, 6), torch.randint(-1, 3, SIZE)
    order = areas.argsort(stable=True)
    pair_values = torch.rand((2, 3), dtype=torch.float32, device="cpu") + 0.1
    return {
        "mask_pack": lambda b: ops.mask_pack(dense, b),
        "mask_unpack": lambda b: ops.mask_unpack(words, SIZE, b),
        "mask_stats": lambda b: ops.mask_stats(words, SIZE, b),
        "mask_pack_logits": lambda b: ops.mask_pack_logits(logits, SIZE, 0.1, b),
        "mask_from_index": lambda b: ops.mask_from_index(index, 3, b),
        "mask_from_nodes": lambda b: ops.mask_from_nodes(
            index + 1, torch.tensor([[2, 0, 1, 3]], device="cpu"), torch.tensor([[0, 1, 3]], device="cpu"), True, b
        ),
        "mask_overlap": lambda b: ops.mask_overlap(masks, masks, b),
        "mask_nms": lambda b: ops.mask_nms(words, areas, boxes, order, 0.5, SIZE[0], b),
        "mask_parents": lambda b: ops.mask_parents(words, areas, boxes, order, 0.7, SIZE[0], b),
        "mask_pairs": lambda b: ops.mask_pairs(masks, 0.1, b),
        "facility_location": lambda b: ops.facility_location(
            torch.tensor([[0, 1]], device="cpu"), torch.ones(1, dtype=torch.float32, device="cpu"), *pair_values, 2, b
        ),
        "mask_fill_holes": lambda b: ops.mask_fill_holes(words, SIZE, b),
        "mask_largest_component": lambda b: ops.mask_largest_component(words, SIZE, b),
        "mask_boundary": lambda b: ops.mask_boundary(words, SIZE, b),
        "mask_resize": lambda b: ops.mask_resize(words, SIZE, (10, 40), b),
        "catchment_basins": lambda b: ops.catchment_basins(logits[0], b),
        "region_borders": lambda b: ops.region_borders(index.clamp_min(0), index.float(), b),
        "mask_components": lambda b: ops.mask_components(words, SIZE),
        "encode_rle": lambda b: ops.encode_rle(words, SIZE[0] * SIZE[1]),
        "decode_rle": lambda b: ops.decode_rle(rle, SIZE[0] * SIZE[1]),
    }


def other_ops():
    features = torch.randn(2, 6, 7, 5)
    edges = torch.tensor([[0, 1], [1, 2], [0, 3]])
    borders = torch.tensor([[2.0, 1.0], [1.0, 0.5], [3.0, 0.1]])
    value, shapes, locations, weights, _ = make_inputs(SMALL_CASES["odd"])
    raw_value, _, points, offsets, logits, _ = make_raw_inputs(SMALL_CASES["odd"])

    def gradients(function, *inputs):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        output = function(*leaves)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]

    def graph(backend):
        sizes = torch.tensor([1, 2, 3, 4], device="cpu")
        return ops.merge_regions_graph(features[0, 0, :4], edges, sizes=sizes, backend=backend)

    return {
        "merge_regions": lambda b: ops.merge_regions(features, backend=b),
        "merge_rounds": lambda b: ops.merge_rounds(features, min_similarity=0.1, backend=b),
        "merge_regions_graph": graph,
        "merge_borders": lambda b: ops.merge_borders(
            features[0, 0, :4], torch.tensor([1, 2, 3, 4], device="cpu"), edges, borders, backend=b
        ),
        "ms_deform_attn": lambda b: gradients(
            lambda v, p, w: ops.ms_deform_attn(v, shapes, p, w, b), value, locations, weights
        ),
        "ms_deform_attn_fused": lambda b: gradients(
            lambda v, o, w: ops.ms_deform_attn_fused(v, shapes, points, o, w, b), raw_value, offsets, logits
        ),
    }


def trees():
    (tree,) = ops.merge_regions(torch.randn(6, 7, 5))

    def read():
        fresh = ops.MergeTree(tree.num_leaves, tree.merges, tree.similarity, tree.grid)
        nodes = fresh.candidates([0.5, 0.0])
        parts = (fresh.areas, fresh.boxes, fresh.parents, *fresh.intervals, fresh.cuts([0.3, 0.0]), fresh.cut_to(4))
        return [*parts, nodes, fresh.node_masks(nodes), fresh.node_masks([3, 5]), fresh.contains(nodes, nodes)]

    return {"MergeTree": read}


def masks_and_forests():
    dense = mixed(1, *SIZE)
    masks = PackedMasks.from_dense(dense)
    rles, labels = masks.to_rle(), torch.randint(0, 5, SIZE)
    forest = Forest(masks, torch.linspace(1, 0, len(masks)), build_forest(masks))
    coco, sam = forest.to_coco(1), forest.to_sam()

    def fresh():
        return PackedMasks(masks.words, masks.size)

    return {
        "empty": lambda: PackedMasks.empty(SIZE),
        "from_dense": lambda: PackedMasks.from_dense(dense.numpy()),
        "from_logits": lambda: PackedMasks.from_logits(dense.float() - 0.5, (40, 30)),
        "from_label_map": lambda: PackedMasks.from_label_map(labels, labels.flatten()[:2]),
        "from_rle": lambda: PackedMasks.from_rle(rles),
        "from_bytes": lambda: PackedMasks.from_rle([{**rle, "counts": rle["counts"].encode()} for rle in rles]),
        "cat": lambda: PackedMasks.cat([masks, masks]),
        "to_dense": lambda: fresh().to_dense(),
        "to_rle": lambda: fresh().to_rle(),
        "to": lambda: fresh().to("cpu"),
        "areas": lambda: (fresh().areas, fresh().boxes, fresh().num_corners()),
        "regions": lambda: (
            fresh().fill_holes(),
            fresh().largest_component(),
            fresh().components(),
            fresh().boundary(),
        ),
        "resize": lambda: fresh().resize((7, 70)),
        "index": lambda: [fresh()[i] for i in (1, -1, slice(1, 4), slice(None, None, -2), [2, 0], np.arange(3), [])],
        "as_indices": lambda: [as_indices(i, 9) for i in (3, [1, 2], np.ones(9, bool), range(4), slice(5))],
        "pairs": lambda: (mask_iou(masks, fresh()), mask_coverage(fresh(), masks)),
        "nms": lambda: (nms_masks(fresh(), 0.5), nms_masks(fresh(), 0.5, forest.scores)),
        "build_forest": lambda: build_forest(fresh()),
        "levels": lambda: (Forest(masks, forest.scores, forest.parents).levels, forest.ancestors()),
        "select": lambda: (forest.select([3, 1]), forest.select(np.int64(2)), forest.select(forest.scores > 0.5)),
        "coco": lambda: (forest.to_coco(3), Forest.from_coco(coco, SIZE), Forest.from_coco([], SIZE)),
        "sam": lambda: (forest.to_sam(), Forest.from_sam(sam, SIZE)),
        "sam_dense": lambda: Forest.from_sam([{"segmentation": dense[0].numpy(), "predicted_iou": 1}], SIZE),
        "label_map": lambda: (forest.to_label_map(), forest.to_label_map(0)),
        "repr": lambda: (repr(forest), repr(masks)),
    }


def networks(tmp):
    torch.manual_seed(0)
    found, images = {}, [torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)]
    for kind in ("learned", "seeds"):
        for backbone in ("vit_tiny_patch16_224", "convnext_atto"):
            name = f"{kind}-{backbone}"
            changes = {"query_init": kind}
            if backbone != "vit_tiny_patch16_224":
                changes |= {"backbone": backbone, "backbone_kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}}
            config = micro_model(**changes)
            infer = InferConfig(size=64, min_area=4)
            segmenter = Segmenter(build_model(config).eval(), config, infer)
            segmenter.save_pretrained(tmp / name)
            found[f"segment-{name}"] = lambda segmenter=segmenter: segmenter(images)
            tiled = Segmenter(segmenter.model, config, InferConfig(size=64, tile=40, max_masks=20))
            found[f"tile-{name}"] = lambda segmenter=tiled: segmenter(images)
            found[f"load-{name}"] = lambda name=name: Segmenter.from_pretrained(tmp / name)(images)
            found[f"train-{name}"] = lambda model=segmenter.model: one_step(model)
    extractors = {name: build_extractor(ExploreConfig(features=name, side=64)) for name in ("sohes-micro",)}
    for name, extractor in extractors.items():
        view = extractor.view(images[0])
        found[f"features-{name}"] = lambda extractor=extractor, view=view: extractor([view])
    labelled = ExploreConfig(side=64, theta_small=0.05, min_area=1, local_regions=2, max_masks=20)
    for change in ({}, {"start": "patches"}, {"features": "sohes-micro", "color_trees": True}, {"refiner": "guided"}):
        settings = replace(labelled, **change)
        extractor = build_extractor(settings, torch.device("cpu"))
        name = "label-" + "-".join(map(str, change.values()))
        found[name] = lambda extractor=extractor, settings=settings: label_image(images[0], extractor, settings)
    distill = DistillConfig(head_hidden=16, head_bottleneck=8, prototypes=10)
    student = build_distillation_model(VitConfig(width=24, depth=2, heads=2), distill, 32)
    side = 32 // VitConfig().patch
    crops, hidden = torch.randn(2, 3, 32, 32), torch.rand(2, side, side) > 0.5
    regions = torch.randint(0, 3, (2, side, side))
    found["distillation"] = lambda: student(crops, hidden, crops[:, :, :16, :16], regions, is_student=True).class_logits
    return found


def one_step(model):
    """Losses and gradients of a training step."""
    masks = torch.zeros(3, 48, 64, dtype=torch.bool, device="cpu")
    masks[0, 5:40, 5:40] = masks[1, 8:20, 8:20] = True
    ancestors = torch.zeros(3, 3, dtype=torch.bool, device="cpu")
    ancestors[0, 1] = True
    target = Target(masks, ancestors, torch.ones(3, dtype=torch.float32, device="cpu"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 48, 64, generator=generator, device="cpu", dtype=torch.float32)
    config = LossConfig(num_points=40, num_match_points=40, local_ratio=0.2)
    losses = Criterion(config)(model(images), [target], generator)
    model.zero_grad()
    losses["loss"].backward()
    return losses, [p.grad for p in model.parameters() if p.grad is not None][:5]


def losses():
    logits, labels, exists = torch.randn(1, 2, 4, 4), torch.rand(1, 2, 4, 4) > 0.5, torch.ones(1, 2, 4).bool()
    teacher, student = torch.rand(2, 3, 6), torch.randn(4, 3, 6)
    hidden = torch.rand(2, 4, 4) > 0.5
    patches = torch.randn(int(hidden.sum()), 6)
    regions, present = torch.randn(2, 3, 4, 5), torch.ones(2, 3, 4).bool()
    return {
        "ancestor": lambda: ancestor_loss(logits, labels, exists),
        "sinkhorn": lambda: distillation.sinkhorn(patches, 0.1),
        "class": lambda: distillation.class_loss(teacher, student, 0.1),
        "patch": lambda: distillation.patch_loss(patches.softmax(1), patches, hidden, 0.1),
        "koleo": lambda: distillation.koleo_loss(patches),
        "region": lambda: distillation.region_loss(regions, regions, present, 0.1, torch.tensor([1, 2], device="cpu")),
    }


def flat(value):
    """All numbers, strings and tensors of a result, tensors with device and dtype."""
    if isinstance(value, torch.Tensor):
        return [(str(value.device), value.dtype, tuple(value.shape)), value.detach()]
    if isinstance(value, PackedMasks):
        return [value.size, *flat(value.words), *flat(value.areas), *flat(value.boxes)]
    if isinstance(value, Forest):
        return [*flat(value.masks), *flat(value.scores), *flat(value.parents)]
    if isinstance(value, ops.MergeTree):
        return [*flat(value.merges), *flat(value.similarity), *flat(value.areas)]
    if isinstance(value, dict):
        return [*value, *flat(list(value.values()))]
    if isinstance(value, list | tuple):
        return [item for one in value for item in flat(one)]
    return [value]


def equal(got, expected):
    got, expected = flat(got), flat(expected)
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        if isinstance(other, torch.Tensor):
            assert torch.equal(one, other) or torch.allclose(one, other, rtol=1e-5, atol=1e-6), (one, other)
        else:
            assert one == other


def same_with_other_defaults(work):
    torch.manual_seed(1)
    expected = work()
    torch.manual_seed(1)
    with torch.device("meta"):
        got = work()
    equal(got, expected)
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(1)
        got = work()
    finally:
        torch.set_default_dtype(torch.float32)
    equal(got, expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", [*ops_of_masks(), *other_ops()])
def test_operators(name, backend):
    work = {**ops_of_masks(), **other_ops()}[name]
    same_with_other_defaults(lambda: work(backend))


def test_every_operator_is_here():
    assert {*ops_of_masks(), *other_ops()} == set(ops.__all__) - {"BackendUnavailable", "MergeTree"}


@pytest.mark.parametrize("name", [*trees(), *masks_and_forests(), *losses()])
def test_masks_forests_trees_and_losses(name):
    same_with_other_defaults({**trees(), **masks_and_forests(), **losses()}[name])


@pytest.fixture(scope="module")
def works(tmp_path_factory):
    return networks(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("what", ["segment", "tile", "load", "train", "features", "label", "distillation"])
def test_networks(works, what):
    for name, work in works.items():
        if name.startswith(what):
            same_with_other_defaults(work)


@pytest.mark.parametrize("folder", ["ops", "structures", "losses"])
def test_every_new_tensor_has_a_device(folder):
    """Covers what the calls above do not reach, such as CUDA: every factory of torch is called with a device."""
    factories = {f.__name__ for f in torch.utils._device._device_constructors()}
    missing = []
    for path in (Path(sohes.__file__).parent / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            function = getattr(node, "func", None)
            if not isinstance(function, ast.Attribute) or getattr(function.value, "id", "") != "torch":
                continue
            if function.attr in factories and "device" not in {keyword.arg for keyword in node.keywords}:
                missing.append(f"{path.name}:{node.lineno} torch.{function.attr}")
    assert not missing


@pytest.mark.skipif(find_binary().module is None, reason=find_binary().reason)
def test_kernels_refuse_tensors_without_memory():
    """An error instead of a write to address 0."""
    areas, boxes = torch.empty(2, dtype=torch.int64), torch.empty(2, 4, dtype=torch.int64)
    words = torch.zeros(2, 1, dtype=torch.int64, device="meta")
    with pytest.raises(TypeError, match=r"^sohes: expected a tensor on the CPU or on a CUDA device, got one on meta$"):
        find_binary().module.mask_stats(words, 4, 4, areas, boxes, 1)
