# SPDX-License-Identifier: Apache-2.0
"""Random tiny images, and two references to score them: pycocotools, and plain loops over the definition."""

import contextlib
import io
import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sohes.evaluation import Evaluator
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks

TINY_AREAS = {"all": (0, 1e10), "small": (0, 12), "medium": (12, 40), "large": (40, 1e10)}


@dataclass
class Image:
    """One image with dense masks, bool [M, H, W] and [N, H, W]."""

    gt: np.ndarray
    crowd: np.ndarray
    gt_areas: np.ndarray
    pred: np.ndarray
    scores: np.ndarray  # float32 values
    gt_categories: np.ndarray  # int64 [M] and [N]
    pred_categories: np.ndarray
    gt_boxes: np.ndarray  # float64 [M, 4] and [N, 4], x, y, width, height; slightly different from the masks'
    pred_boxes: np.ndarray


CATEGORIES = (2, 3, 7)


def random_image(rng, max_gt=5, max_pred=9, size=(9, 11)):
    """Random rectangles; predictions are exact, shifted or thinned copies of true masks, or unrelated; many ties."""

    def rectangle():
        mask = np.zeros(size, bool)
        if rng.random() < 0.93:  # else empty
            y, x = rng.integers(0, size[0] - 1), rng.integers(0, size[1] - 1)
            mask[y : y + rng.integers(1, 8), x : x + rng.integers(1, 9)] = True
        return mask

    gt = [rectangle() for _ in range(rng.integers(0, max_gt + 1))]
    if gt and rng.random() < 0.2:
        gt.append(gt[0].copy())  # a repeated mask: IoU ties
    pred = []
    for _ in range(rng.integers(0, max_pred + 1)):
        kind = rng.random()
        if not gt or kind < 0.2:
            pred.append(rectangle())
            continue
        mask = gt[rng.integers(len(gt))].copy()
        if kind < 0.6:
            mask = mask & (rng.random(size) > rng.choice([0.05, 0.3]))
        elif kind < 0.8:
            mask = np.roll(mask, 1, axis=rng.integers(2))
        pred.append(mask)
    gt = np.array(gt, bool).reshape(-1, *size)
    pred = np.array(pred, bool).reshape(-1, *size)
    areas = gt.sum((1, 2)) * rng.choice([1.0, 0.8], len(gt))  # annotated areas differ from the masks', as with polygons
    scores = rng.choice([0.125, 0.25, 0.5, 0.75], len(pred)) if rng.random() < 0.5 else rng.random(len(pred))
    crowd = rng.random(len(gt)) < 0.2
    # Drawn last, and from few values: boxes tie too. Some images lack some categories.
    some = rng.choice(CATEGORIES, rng.integers(1, 4))
    categories = [rng.choice(some, len(gt)), rng.choice(some if rng.random() < 0.8 else CATEGORIES, len(pred))]
    boxes = [boxes_around(masks) + rng.choice([0, 0.25, 0.3], (len(masks), 4)) for masks in (gt, pred)]
    return Image(gt, crowd, areas, pred, scores.astype(np.float32), *categories, *boxes)


def boxes_around(dense):
    """bool [N, H, W] -> float64 [N, 4], x, y, width, height, as in pycocotools."""
    rles = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in dense]
    return np.asarray(coco_mask.toBbox(rles)).reshape(-1, 4) if rles else np.zeros((0, 4))


def coco_files(images, with_boxes=False):
    """(ground truth in COCO's JSON form, list of COCO results). All ground truth has a box, results only where asked
    for: pycocotools takes the area of a mask from its box if there is one."""
    truth = {"images": [], "annotations": [], "categories": [{"id": n, "name": str(n)} for n in (1, *CATEGORIES)]}
    results = []
    for number, image in enumerate(images, start=1):
        height, width = image.gt.shape[1:]
        truth["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        columns = (image.crowd, image.gt_areas, image.gt_categories, image.gt_boxes)
        for rle, crowd, area, category, box in zip(packed(image.gt).to_rle(), *columns, strict=True):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": int(category),
                    "segmentation": rle,
                    "iscrowd": int(crowd),
                    "ignore": len(truth["annotations"]) % 2,  # COCO ignores it
                    "area": float(area),
                    "bbox": box.tolist(),
                }
            )
        columns = (image.scores, image.pred_categories, image.pred_boxes)
        for rle, score, category, box in zip(packed(image.pred).to_rle(), *columns, strict=True):
            results.append(
                {"image_id": number, "category_id": int(category), "segmentation": rle, "score": float(score)}
            )
            if with_boxes:
                results[-1]["bbox"] = box.tolist()
    return truth, results


def run_pycocotools(truth, results, max_dets, area_ranges, class_aware=False, iou_type="segm"):
    """(precision [T, 101, K, A, M], recall [T, K, A, M]) with NaN for pycocotools' -1."""
    truth, results = json.loads(json.dumps([truth, results]))  # pycocotools changes them
    if iou_type == "segm":
        for result in results:
            result.pop("bbox", None)  # which would decide the area
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **truth}
        coco.createIndex()
        if results:
            found = coco.loadRes(results)
        else:
            found = COCO()
            found.dataset = {**truth, "annotations": []}
            found.createIndex()
        oracle = COCOeval(coco, found, iou_type)
        oracle.params.useCats = int(class_aware)
        oracle.params.maxDets = list(max_dets)
        oracle.params.areaRng = [list(limits) for limits in area_ranges.values()]
        oracle.params.areaRngLbl = list(area_ranges)
        oracle.evaluate()
        oracle.accumulate()
    precision, recall = oracle.eval["precision"], oracle.eval["recall"]
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


def assert_equal_bits(evaluator, precision, recall, categories=(1, *CATEGORIES), message=""):
    """Assert that an evaluator has the numbers of ``run_pycocotools``, and its means."""
    seen = [categories.index(c) for c in evaluator.categories] if evaluator.protocol.class_aware else [0]
    others = np.delete(np.arange(precision.shape[2]), seen)
    assert np.isnan(precision[:, :, others]).all()
    for m, k in enumerate(evaluator.protocol.max_dets):
        if seen:
            np.testing.assert_array_equal(evaluator.precision(k), precision[..., m][:, :, seen], err_msg=message)
            np.testing.assert_array_equal(evaluator.recall(k), recall[..., m][:, seen], err_msg=message)
    expected = {f"AR@{k}": recall[:, :, 0, m] for m, k in enumerate(evaluator.protocol.max_dets)}
    for a, suffix in enumerate(("", "-small", "-medium", "-large")):
        expected[f"AP{suffix}"] = precision[:, :, :, a, -1]
        if a:
            expected[f"AR{suffix}"] = recall[:, :, a, -1]
    expected |= {"AP50": precision[0, :, :, 0, -1], "AP75": precision[5, :, :, 0, -1]}
    summary = evaluator.summary()
    for name, values in expected.items():
        defined = values[~np.isnan(values)]  # the mean of defined values, as in COCOeval.summarize
        mean = np.mean(defined) if defined.size else np.nan
        assert summary[name] == mean or (np.isnan(summary[name]) and np.isnan(mean)), (
            name,
            summary[name],
            mean,
            message,
        )


def packed(dense):
    return PackedMasks.from_dense(np.ascontiguousarray(dense))


def forest_of(image):
    roots = torch.full((len(image.pred),), -1, dtype=torch.int64)
    return Forest(packed(image.pred), torch.from_numpy(image.scores), roots)


def run_evaluator(images, max_dets, area_ranges, **options):
    evaluator = Evaluator(max_dets, area_ranges=area_ranges, **options)
    for number, image in reversed(list(enumerate(images, start=1))):  # the order of adding must not matter
        categories = {"gt_categories": image.gt_categories, "pred_categories": image.pred_categories}
        truth = {"crowd": image.crowd, "gt_areas": image.gt_areas}
        evaluator.add(number, packed(image.gt), forest_of(image), **truth, **categories)
    return evaluator


def run_literally(images, max_dets, area_ranges, iou_thresholds, iou_type="mask", class_aware=False):
    """(precision [T, 101, K, A, M], recall [T, K, A, M]) by the definition, in plain loops over dense masks or the
    boxes around them. K: categories of some image, rising; 1 without classes."""
    parts = [_of_category(images, category) for category in (_categories_of(images) if class_aware else [None])]
    shape = (len(iou_thresholds), len(parts), len(area_ranges), len(max_dets))
    precision, recall = np.full((shape[0], 101, *shape[1:]), np.nan), np.full(shape, np.nan)
    for c, part in enumerate(parts):
        ious = [(_dense_iou if iou_type == "mask" else _box_iou)(image) for image in part]
        for a, (low, high) in enumerate(area_ranges.values()):
            for t, threshold in enumerate(iou_thresholds):
                outcomes = [_match(image, iou, low, high, threshold) for image, iou in zip(part, ious, strict=True)]
                total = sum(num_gt for num_gt, _ in outcomes)
                for m, limit in enumerate(max_dets):
                    if total:
                        curve = _curve(outcomes, limit, total)
                        recall[t, c, a, m] = curve[-1][0] if curve else 0
                        precision[t, :, c, a, m] = _interpolated(curve)
    return precision, recall


def _curve(outcomes, limit, total):
    """(recall, precision) after each prediction of all images."""
    found = (outcome for _, found in outcomes for outcome in found[:limit])
    hits = misses = 0
    curve = []
    for _, verdict in sorted(found, key=lambda item: -item[0]):  # sorted() is stable
        hits += verdict == "hit"
        misses += verdict == "miss"
        curve.append((hits / total, hits / max(hits + misses, 1)))
    return curve


def _interpolated(curve):
    points = []
    for point in np.linspace(0, 1, 101):
        reached = [i for i, (recall, _) in enumerate(curve) if recall >= point]
        points.append(max((p for _, p in curve[reached[0] :]), default=0) if reached else 0)
    return points


def _categories_of(images):
    return sorted(
        {c for image in images for side in (image.gt_categories, image.pred_categories) for c in side.tolist()}
    )


def _of_category(images, category):
    if category is None:
        return images
    parts = []
    for image in images:
        gt, pred = image.gt_categories == category, image.pred_categories == category
        parts.append(_select(image, gt, pred))
    return parts


def _select(image, gt, pred):
    sides = {name: gt for name in ("gt", "crowd", "gt_areas", "gt_categories", "gt_boxes")}
    sides |= {name: pred for name in ("pred", "scores", "pred_categories", "pred_boxes")}
    return Image(**{name: getattr(image, name)[index] for name, index in sides.items()})


def in_category_order(image):
    """The image in the order of pycocotools without categories, which decides ties."""
    gt, pred = np.argsort(image.gt_categories, kind="stable"), np.argsort(image.pred_categories, kind="stable")
    return _select(image, gt, pred)


def _dense_iou(image):
    num_pixels = image.gt.shape[1] * image.gt.shape[2]
    gt, pred = (masks.reshape(len(masks), num_pixels).astype(np.int64) for masks in (image.gt, image.pred))
    shared = pred @ gt.T
    union = np.where(image.crowd, pred.sum(1)[:, None], pred.sum(1)[:, None] + gt.sum(1) - shared)
    return shared / np.maximum(union, 1)


def _box_iou(image):
    gt, pred = boxes_around(image.gt), boxes_around(image.pred)
    iou = np.zeros((len(pred), len(gt)))
    for p, (x, y, width, height) in enumerate(pred):
        for g, (left, top, across, down) in enumerate(gt):
            shared_x = min(x + width, left + across) - max(x, left)
            shared_y = min(y + height, top + down) - max(y, top)
            if shared_x > 0 and shared_y > 0:
                shared, own = shared_x * shared_y, width * height
                iou[p, g] = shared / (own if image.crowd[g] else own + across * down - shared)
    return iou


def _match(image, iou, low, high, threshold):
    """(masks that count, [(score, "hit" | "miss" | "ignored")] by falling score) of one image."""
    ignored = image.crowd | (image.gt_areas < low) | (image.gt_areas > high)
    taken = np.zeros(len(image.gt), bool)
    found = []
    for p in sorted(range(len(image.pred)), key=lambda p: -image.scores[p]):
        verdict = "miss" if low <= image.pred[p].sum() <= high else "ignored"
        for group, name in ((~ignored, "hit"), (ignored, "ignored")):
            fits = np.flatnonzero(group & (~taken | image.crowd) & (iou[p] >= threshold))
            if len(fits):
                best = fits[iou[p, fits] == iou[p, fits].max()][-1]
                taken[best] = True
                verdict = name
                break
        found.append((image.scores[p], verdict))
    return int((~ignored).sum()), found


@pytest.fixture(scope="session")
def tools():
    """The functions above, for test files that cannot import their neighbour."""
    shared = (
        Image,
        random_image,
        boxes_around,
        in_category_order,
        coco_files,
        run_pycocotools,
        packed,
        forest_of,
        run_evaluator,
        run_literally,
    )
    shared += (assert_equal_bits,)
    return SimpleNamespace(TINY_AREAS=TINY_AREAS, CATEGORIES=CATEGORIES, **{item.__name__: item for item in shared})
