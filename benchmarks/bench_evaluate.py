# SPDX-License-Identifier: Apache-2.0
"""Time of evaluation beside its peers, from two JSON files on disk to the scores, and its peak memory.

    pytest benchmarks/bench_evaluate.py                         # 60 images
    SOHES_BENCH_FULL=1 pytest benchmarks/bench_evaluate.py      # 200 images; minutes, most of them pycocotools'

Every image is 640 x 480 with 30 true masks and 1000 or 300 predictions: half of them are true masks that are moved,
scaled and roughened, half are random. faster-coco-eval is measured if it is installed. Each row stores the size of the
files in MB.

The memory rows score 200 and 2000 images in a process of their own and store its peak, in MB above its start.
"""

import contextlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sohes.evaluation import score_files
from sohes.ops.reference.mask_rle import compress

IS_FULL = bool(os.environ.get("SOHES_BENCH_FULL"))
NUM_IMAGES = 200 if IS_FULL else 60
HEIGHT, WIDTH, NUM_TRUE = 480, 640, 30
MAX_DETS = (1, 10, 100, 1000)


def ragged_ellipse(rng, center_x, center_y, radius_x, radius_y):
    """RLE of an ellipse with a rough edge, one run per column."""
    x = np.arange(max(0, int(center_x - radius_x) + 1), min(WIDTH, int(center_x + radius_x) + 1))
    half = radius_y * np.sqrt(np.maximum(0, 1 - ((x - center_x) / radius_x) ** 2)) + rng.normal(0, 1.5, len(x))
    top = np.clip(center_y - half, 0, HEIGHT - 2).astype(np.int64)
    bottom = np.clip(center_y + half, top + 1, HEIGHT - 1).astype(np.int64)
    edges = np.stack((x * HEIGHT + top, x * HEIGHT + bottom), 1).ravel()
    counts = compress(np.diff(np.concatenate(([0], edges, [HEIGHT * WIDTH]))))
    return {"size": [HEIGHT, WIDTH], "counts": counts}, int((bottom - top).sum())


def random_ellipse(rng):
    return np.array([rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), *np.exp(rng.uniform(2.3, 5, 2))])


def write_files(folder, num_images, num_predictions):
    rng = np.random.default_rng(0)
    images, truth, results = [], [], []
    for number in range(1, num_images + 1):
        images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
        shapes = [random_ellipse(rng) for _ in range(NUM_TRUE)]
        for shape in shapes:
            rle, area = ragged_ellipse(rng, *shape)
            truth.append({"image_id": number, "category_id": 1, "iscrowd": 0, "segmentation": rle, "area": area})
            truth[-1]["id"] = len(truth)
        for index in range(num_predictions):
            shape = random_ellipse(rng)
            if index % 2:
                shape = shapes[rng.integers(NUM_TRUE)] * np.exp(rng.normal(0, 0.1, 4))
            rle, _ = ragged_ellipse(rng, *shape)
            results.append({"image_id": number, "category_id": 1, "segmentation": rle, "score": rng.random()})
    categories = [{"id": 1, "name": "entity"}]
    content = {"info": {}, "images": images, "annotations": truth, "categories": categories}
    for name, value in (("gt.json", content), ("pred.json", results)):
        (folder / name).write_text(json.dumps(value))
    return folder / "gt.json", folder / "pred.json"


@pytest.fixture(scope="module", params=[1000, 300], ids=["1000-predictions", "300-predictions"])
def files(request, tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("bench"), NUM_IMAGES, request.param)


def run_sohes(gt, pred):
    return score_files(gt, pred, max_dets=MAX_DETS, threads=1).summary()["AR@1000"]


def run_sohes_on_two_threads(gt, pred):
    return score_files(gt, pred, max_dets=MAX_DETS, threads=2).summary()["AR@1000"]


def run_pycocotools(gt, pred):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return run_coco(COCO, COCOeval, gt, pred)


def run_faster_coco_eval(gt, pred):
    peer = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    return run_coco(peer.COCO, peer.COCOeval_faster, gt, pred)


def run_coco(coco_class, eval_class, gt, pred):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_class(str(gt))
        peer = eval_class(coco, coco.loadRes(str(pred)), "segm")
        peer.params.maxDets, peer.params.useCats = list(MAX_DETS), 0
        peer.evaluate()
        peer.accumulate()
    return peer.eval["recall"][:, 0, 0, -1].mean()


@pytest.mark.parametrize("run", [run_sohes, run_sohes_on_two_threads, run_faster_coco_eval, run_pycocotools])
def test_evaluate(benchmark, files, run):
    num_predictions = 1000 if "1000" in benchmark.name else 300
    benchmark.group = f"evaluate {NUM_IMAGES} images x {num_predictions} predictions x {NUM_TRUE} masks, 640x480"
    benchmark.extra_info["MB"] = round(sum(path.stat().st_size for path in files) / 1e6, 1)
    rounds = 7 if run in (run_sohes, run_sohes_on_two_threads) else 1 if run is run_pycocotools else 3
    recall = benchmark.pedantic(run, args=files, rounds=rounds, warmup_rounds=int(rounds > 1))
    assert recall == pytest.approx(run_sohes(*files), rel=1e-12)


def repeat_images(folder, files, num_images):
    """Files of `num_images` images: those of `files` repeated under new ids."""
    truth, results = (json.loads(path.read_text()) for path in files)
    per_image = {}
    for result in results:
        per_image.setdefault(result["image_id"], []).append(result)
    true_of = {}
    for record in truth["annotations"]:
        true_of.setdefault(record["image_id"], []).append(record)
    ids = sorted(per_image)
    with (folder / "pred.json").open("w") as file:
        for number in range(num_images):
            mine = [{**result, "image_id": number} for result in per_image[ids[number % len(ids)]]]
            file.write(("," if number else "[") + json.dumps(mine)[1:-1])
        file.write("]")
    images = [{**truth["images"][0], "id": number, "file_name": f"{number}.jpg"} for number in range(num_images)]
    records = []
    for number in range(num_images):
        for record in true_of[ids[number % len(ids)]]:
            records.append({**record, "image_id": number, "id": len(records) + 1})
    (folder / "gt.json").write_text(json.dumps({**truth, "images": images, "annotations": records}))
    return folder / "gt.json", folder / "pred.json"


PEAK = """
import re, sys
from sohes.evaluation import score_files
score_files(sys.argv[3], sys.argv[4])  # warm-up: allocates the buffers of one image
# Not resource.getrusage, whose peak includes the parent process. Linux only.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before = peak()
score_files(sys.argv[1], sys.argv[2]).summary()
print(before, peak() - before)
"""


@pytest.mark.parametrize("num_images", [200, 2000])
def test_memory(benchmark, tmp_path, num_images):
    num_predictions = 1000 if IS_FULL else 300
    benchmark.group = f"memory, {num_predictions} predictions per image"
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    few = write_files(small, 4, num_predictions)
    many = repeat_images(large, few, num_images)
    command = [sys.executable, "-c", PEAK, *map(str, (*many, *few))]
    run = benchmark.pedantic(subprocess.run, args=(command,), kwargs={"capture_output": True, "check": True}, rounds=1)
    before, more = map(float, run.stdout.split())
    benchmark.extra_info.update({"MB before": round(before), "MB more at the peak": round(more, 1)})
    print(f"{num_images} images: {before:.0f} MB before, {more:.1f} MB more at the peak")
    for path in many:
        path.unlink()
