# SPDX-License-Identifier: Apache-2.0
"""Random tiny images, and the two oracles they are scored with: pycocotools, and loops written from the definition."""

import contextlib
import io
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sohes.evaluation import Evaluator
from sohes.forest import Forest
from sohes.masks import PackedMasks

TINY_AREAS = {"all": (0, 1e10), "small": (0, 12), "medium": (12, 40), "large": (40, 1e10)}


@dataclass
class Image:
    """One image in the plainest form: dense masks bool [M, H, W] and [N, H, W]."""

    gt: np.ndarray
    crowd: np.ndarray
    gt_areas: np.ndarray
    pred: np.ndarray
    scores: np.ndarray  # float32 values


def random_image(rng, max_gt=5, max_pred=9, size=(9, 11)):
    """Rectangles; predictions are copies, shifted or thinned copies of true masks, or strangers; scores often tie."""

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
    areas = gt.sum((1, 2)) * rng.choice([1.0, 0.8], len(gt))  # annotated areas differ from the mask's, as polygons' do
    scores = rng.choice([0.125, 0.25, 0.5, 0.75], len(pred)) if rng.random() < 0.5 else rng.random(len(pred))
    return Image(gt, rng.random(len(gt)) < 0.2, areas, pred, scores.astype(np.float32))


def coco_files(images):
    """(ground truth in COCO's JSON form, list of COCO results)."""
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "entity"}]}
    results = []
    for number, image in enumerate(images, start=1):
        height, width = image.gt.shape[1:]
        truth["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        for rle, crowd, area in zip(packed(image.gt).to_rle(), image.crowd, image.gt_areas, strict=True):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": rle,
                    "iscrowd": int(crowd),
                    "area": float(area),
                }
            )
        for rle, score in zip(packed(image.pred).to_rle(), image.scores, strict=True):
            results.append({"image_id": number, "category_id": 1, "segmentation": rle, "score": float(score)})
    return truth, results


def run_pycocotools(truth, results, max_dets, area_ranges, use_categories=True):
    """(precision [T, 101, A, M], recall [T, A, M]) with NaN for pycocotools' -1."""
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
        oracle = COCOeval(coco, found, "segm")
        oracle.params.useCats = int(use_categories)
        oracle.params.maxDets = list(max_dets)
        oracle.params.areaRng = [list(limits) for limits in area_ranges.values()]
        oracle.params.areaRngLbl = list(area_ranges)
        oracle.evaluate()
        oracle.accumulate()
    precision, recall = oracle.eval["precision"][:, :, 0], oracle.eval["recall"][:, 0]
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


def packed(dense):
    return PackedMasks.from_dense(np.ascontiguousarray(dense))


def forest_of(image):
    roots = torch.full((len(image.pred),), -1, dtype=torch.int64)
    return Forest(packed(image.pred), torch.from_numpy(image.scores), roots)


def run_evaluator(images, max_dets, area_ranges, **options):
    evaluator = Evaluator(max_dets, area_ranges=area_ranges, **options)
    for number, image in reversed(list(enumerate(images, start=1))):  # the order of adding must not matter
        evaluator.add(number, packed(image.gt), forest_of(image), crowd=image.crowd, gt_areas=image.gt_areas)
    return evaluator


def run_literally(images, max_dets, area_ranges, iou_thresholds):
    """(precision [T, 101, A, M], recall [T, A, M]) by the definition, in plain loops over dense masks."""
    shape = (len(iou_thresholds), len(area_ranges), len(max_dets))
    precision, recall = np.full((shape[0], 101, *shape[1:]), np.nan), np.full(shape, np.nan)
    ious = [_dense_iou(image) for image in images]
    for a, (low, high) in enumerate(area_ranges.values()):
        for t, threshold in enumerate(iou_thresholds):
            outcomes = [_match(image, iou, low, high, threshold) for image, iou in zip(images, ious, strict=True)]
            total = sum(num_gt for num_gt, _ in outcomes)
            for m, limit in enumerate(max_dets):
                if total == 0:
                    continue
                ranked = sorted(
                    (outcome for _, found in outcomes for outcome in found[:limit]), key=lambda item: -item[0]
                )  # sorted() keeps the order of equals
                hits = misses = 0
                curve = []  # (recall, precision) after each prediction
                for _, verdict in ranked:
                    hits += verdict == "hit"
                    misses += verdict == "miss"
                    curve.append((hits / total, hits / max(hits + misses, 1)))
                recall[t, a, m] = hits / total
                for r, point in enumerate(np.linspace(0, 1, 101)):
                    reached = [i for i, (rec, _) in enumerate(curve) if rec >= point]
                    precision[t, r, a, m] = max((p for _, p in curve[reached[0] :]), default=0) if reached else 0
    return precision, recall


def _dense_iou(image):
    gt, pred = (masks.reshape(len(masks), -1).astype(np.int64) for masks in (image.gt, image.pred))
    shared = pred @ gt.T
    union = np.where(image.crowd, pred.sum(1)[:, None], pred.sum(1)[:, None] + gt.sum(1) - shared)
    return shared / np.maximum(union, 1)


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
    shared = (Image, random_image, coco_files, run_pycocotools, packed, forest_of, run_evaluator, run_literally)
    return SimpleNamespace(TINY_AREAS=TINY_AREAS, **{item.__name__: item for item in shared})
