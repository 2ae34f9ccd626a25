# SPDX-License-Identifier: Apache-2.0
"""Collect the measurements of benchmarks/gpu.sh: `python benchmarks/gpu_rows.py FOLDER ROWS.json`.

FOLDER holds pytest-benchmark's files (*.json), metrics of training (*.metrics.jsonl) and stages of labelling
(*.stages.jsonl). ROWS.json gets one row for each benchmark, training run and labelling run, with device, versions,
commit and date; a short table goes to standard output.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

_WARMUP_STEPS = 10  # allocation, tuning, compilation


def benchmark_rows(path: Path) -> list[dict[str, Any]]:
    """Median, minimum and maximum of each benchmark of one file of pytest-benchmark, in milliseconds."""
    rows = []
    for entry in json.loads(path.read_text())["benchmarks"]:
        stats = {key: round(1e3 * entry["stats"][key], 4) for key in ("median", "min", "max")}
        rows.append({"name": entry["name"], "group": entry["group"], "milliseconds": stats, **entry["extra_info"]})
    return rows


def training_row(path: Path) -> dict[str, Any]:
    """First and last losses, images/s after warm-up, and memory, of a training run."""
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    warm = steps[_WARMUP_STEPS:] or steps
    return {
        "name": path.name.removesuffix(".metrics.jsonl"),
        "group": "training",
        "steps": len(steps),
        "losses": [round(step["loss"], 3) for step in (*steps[:3], *steps[-3:])],
        "images_per_second": round(statistics.median(step["images_per_second"] for step in warm), 2),
        "seconds_waiting_for_data": round(statistics.median(step["data_seconds"] for step in warm), 4),
        "memory_gigabytes": max(step["memory_gb"] for step in steps),
    }


def labels_row(path: Path) -> dict[str, Any]:
    """Images/s of a labelling run, and seconds of each stage, summed over threads."""
    shards = [json.loads(line) for line in path.read_text().splitlines()]
    stages = {name for shard in shards for name in shard["seconds"]}
    images, elapsed = sum(s["images"] for s in shards), sum(s["elapsed"] for s in shards)
    return {
        "name": path.name.removesuffix(".stages.jsonl"),
        "group": "labels",
        "images": images,
        "images_per_second": round(images / elapsed, 2),
        "threads": shards[0]["threads"],
        "seconds": {name: round(sum(s["seconds"].get(name, 0) for s in shards), 3) for name in sorted(stages)},
    }


def machine() -> dict[str, Any]:
    """The machine, versions and date of the rows."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "commit": os.environ.get("COMMIT") or git.stdout.strip() or "unknown",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def main() -> None:
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [row for path in sorted(folder.glob("*.json")) if path.stat().st_size for row in benchmark_rows(path)]
    rows += [training_row(path) for path in sorted(folder.glob("*.metrics.jsonl")) if path.stat().st_size]
    rows += [labels_row(path) for path in sorted(folder.glob("*.stages.jsonl")) if path.stat().st_size]
    target.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(json.dumps(machine()))
    for row in rows:
        shown = {key: value for key, value in row.items() if key not in ("name", "group")}
        print(f"{row['group']} | {row['name']} | {json.dumps(shown)}"[:400])


if __name__ == "__main__":
    main()
