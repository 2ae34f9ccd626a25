# SPDX-License-Identifier: Apache-2.0
"""`sohes.train` under torchrun when one of its processes is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from micro import MICRO

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
JOB = [*MICRO, "--instruct.num-steps", str(STEPS), "--explore.num-workers", "1", "--phases", "explore", "instruct"]


def find_process(rank: int, parent: int) -> int | None:
    """The process id of a rank among the children of torchrun."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_a_killed_process_is_restarted_and_the_run_resumes(tmp_path):
    """SIGKILL for one of two processes after the first checkpoint: torchrun restarts both, without --resume."""
    out = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [sys.executable, *launcher, "-m", "sohes.train", *JOB, "--engine.checkpoint-seconds", "0"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [*command, "--out", str(out)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=said, stderr=said
        )
        while not list((out / "checkpoints" / "instruct").glob("step-*")):
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
        os.kill(find_process(1, process.pid), signal.SIGKILL)
        code = process.wait(timeout=600)
    assert code == 0, (tmp_path / "said").read_text()
    log = (out / "log.txt").read_text()
    assert "2 processes, ddp, start 1" in log
    assert "2 processes, ddp, start 2" in log
    assert "instruct: resuming at step" in log
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(STEPS))
    assert set(json.loads((out / "results.json").read_text())) == {"explore", "instruct"}
    assert (out / "report.html").is_file()
    assert not list((out / "predictions").glob("*.part-*"))
