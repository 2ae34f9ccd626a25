# SPDX-License-Identifier: Apache-2.0
"""Synthetic run folders for the tests of the report: every file of a run, with known numbers."""

import json

import torch
from PIL import Image

from sohes.data.coco import write_coco
from sohes.structures.forest import Forest
from sohes.structures.masks import PackedMasks

RESULTS = {
    "explore": {"AR@1000": 0.1234, "AR@100": 0.1, "AR-small": None, "AP": 0.02, "parent_recall": 0.3, "num_images": 4}
    | {"masks_per_image": 12.25, "new_score": 0.5},
    "instruct": {"AR@1000": 0.3001, "AR@100": 0.1, "AR-small": 0.05, "AP": 0.019, "parent_recall": 0.2996}
    | {"num_images": 4, "masks_per_image": 30},
    "correct": {"AR@1000": 0.2999, "AR@100": 0.2, "AR-small": 0.04, "AP": 0.021, "parent_recall": 0.3004}
    | {"num_images": 4, "masks_per_image": 31.5},
}


def make_forest(size, shift=0):
    masks = torch.zeros(3, *size, dtype=torch.bool)
    masks[0, 2:20, 2 + shift : 24 + shift] = True
    masks[1, 4:10, 4 + shift : 12 + shift] = True
    masks[2, 5:8, 6 + shift : 9 + shift] = True
    return Forest(PackedMasks.from_dense(masks), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([-1, 0, 1]))


def write_truth(folder, count=4, size=(24, 40)):
    """A COCO set with parents; file names have a folder, a space, non-ASCII and HTML characters."""
    (folder / "images" / "sub").mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        name = f"sub/phöto {index} <&>.png"
        pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        Image.fromarray(pixels.numpy()).save(folder / "images" / name)
        images.append({"id": 10 + index, "file_name": name, "width": size[1], "height": size[0]})
        annotations += make_forest(size).to_coco(10 + index, len(annotations) + 1)
    write_coco(folder / "annotations.json", images, annotations)
    return images


def write_metrics(run, phases=("instruct", "correct"), steps=40):
    with (run / "metrics.jsonl").open("w") as file:
        for phase in phases:
            for step in range(steps):
                row = {"phase": phase, "step": step, "time": 0.5 * (step + 1), "loss": 5 - 0.1 * step, "lr": 1e-4}
                row |= {"loss_mask": 2 - 0.01 * step, "loss_class": 0.5, "images_per_second": 8.0, "data_seconds": 0.1}
                file.write(json.dumps(row) + "\n")
        file.write('{"phase": "correct", "st')  # cut by a kill


def write_manifest(run):
    rows = [{"file_name": f"{i}.jpg", "status": "ok", "masks": 10 + i} for i in range(5)]
    rows += [{"file_name": "e.jpg", "status": "empty", "masks": 0}]
    rows += [{"file_name": "f.jpg", "status": "failed", "reason": "truncated <file>"}]
    rows += [{"file_name": "g.jpg", "status": "failed: truncated <file>"}]
    (run / "labels").mkdir(parents=True, exist_ok=True)
    (run / "labels" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    times = [{"shard": i, "rank": i % 2, "images": 4, "elapsed": 2.0, "seconds": {"decode": 1.0, "merge": 0.5}}
             for i in range(3)]  # fmt: skip
    (run / "explore.jsonl").write_text("".join(json.dumps(row) + "\n" for row in times))


def write_run(folder, count=4, size=(24, 40)):
    """The folder of a synthetic run of all phases with ground truth."""
    run, truth = folder / "my run <1>", folder / "truth"
    (run / "predictions").mkdir(parents=True)
    images = write_truth(truth, count, size)
    (run / "config.json").write_text(json.dumps({"preset": "tiny", "eval": str(truth), "model": {"num_queries": 7}}))
    (run / "env.json").write_text(json.dumps({"sohes": "0.1", "packages": {"torch": "2.9"}, "cpus": 2, "gpus": []}))
    (run / "results.json").write_text(json.dumps(RESULTS))
    for shift, phase in enumerate(RESULTS):
        annotations = []
        for image in images:
            annotations += make_forest(size, 4 * shift).to_coco(image["id"], len(annotations) + 1)
        write_coco(run / "predictions" / f"{phase}.json", images, annotations)
    write_metrics(run)
    write_manifest(run)
    return run
