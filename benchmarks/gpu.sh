#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What needs a GPU, in two calls on a machine that has one. Each step has its own time limit, and one that fails does not
# stop the next; the most valuable come first. OUT then holds summary.txt (a line per step), rows.json (benchmark rows
# with device, versions, commit and date), logs.tar.gz, and of a training job its metrics and weights.
#
#   bash benchmarks/gpu.sh check OUT          # build for this GPU, GPU tests, benchmark rows: about 5 minutes
#   bash benchmarks/gpu.sh train OUT JOB      # one training job, by name: `pretrain`; at most JOB_SECONDS
#
# From the environment: TOTAL_SECONDS, after which nothing more is started (default 360); PHOTOS, a folder or tar of
# photos (default .gpu/photos.tar), for phase 1, the training steps and `pretrain`; PHOTOS64, fewer of them, for phase 1
# and the training steps (default PHOTOS); STEPS, names of the steps of `check` to run (default all), and TESTS, where
# its tests are; JOB_SECONDS, how long the job may take (default 330), and NUM_STEPS, its steps (default: as many as
# fit); PYTHON. The machine may be bare: the wheels that it lacks (WHEELS, below) are taken from the folder .whl if that
# exists.
# To fetch them on a machine with a network, for Python 3.12 there:
#   bash benchmarks/gpu.sh wheels
set -uo pipefail
cd "$(dirname "$0")/.."
WHEELS="pycocotools==2.0.11 xformers==0.0.35 nvidia-cuda-runtime-cu12==12.8.90"
usage="usage: bash benchmarks/gpu.sh check OUT | train OUT JOB | wheels"
what=${1:?$usage}
python=${PYTHON:-python3}

if [ "$what" = wheels ]; then
  platforms=()
  for version in 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${version}_x86_64"); done
  # shellcheck disable=SC2086  # the list is meant to be split
  exec "$python" -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 -d .whl $WHEELS
fi

out=$(mkdir -p "${2:?$usage}" && cd "$2" && pwd)
work=$(mktemp -d)
photos=${PHOTOS:-.gpu/photos.tar}
total=${TOTAL_SECONDS:-360}
status=0
export PYTHONUNBUFFERED=1
: > "$out/summary.txt"

# step NAME SECONDS COMMAND...: run with a limit, log to NAME.log, add a line to the summary.
step() {
  local name=$1 limit=$2 start=$SECONDS code=0
  shift 2
  if [ -n "${STEPS:-}" ] && [[ " $STEPS " != *" $name "* ]]; then return 0; fi
  if [ "$((total - SECONDS))" -lt "$limit" ]; then limit=$((total - SECONDS)); fi
  if [ "$limit" -lt 5 ]; then
    echo "$name: no time left of $total s (TOTAL_SECONDS)" | tee -a "$out/summary.txt"
    status=1
    return 0
  fi
  timeout --kill-after=5 "$limit" "$@" > "$work/$name.log" 2>&1 || code=$?
  [ "$code" = 0 ] || status=1
  [ "$code" = 124 ] && code="stopped at its limit of $limit s"
  printf '%-14s %4s s  exit %s  %s\n' "$name" "$((SECONDS - start))" "$code" "$(tail -n 1 "$work/$name.log" | cut -c1-140)" |
    tee -a "$out/summary.txt"
}

finish() {
  "$python" benchmarks/gpu_rows.py "$work" "$out/rows.json" | tee -a "$out/summary.txt"
  tar -C "$work" -czf "$out/logs.tar.gz" $(cd "$work" && ls -- *.log *.jsonl 2> /dev/null)
  rm -rf "$work"
  exit "$status"
}

if [ -d .whl ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$work/site" .whl/*.whl || status=1
  export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
  # The wheel of xformers is linked against the runtime of CUDA 12, beside a torch of any CUDA.
  export LD_LIBRARY_PATH="$work/site/nvidia/cuda_runtime/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi

build() {
  local arch digest
  arch=${CUDA_ARCH:-$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')} || return 1
  digest=$("$python" -c 'import runpy, pathlib
print(runpy.run_path("sohes/ops/_binary.py")["source_digest"](pathlib.Path("csrc")))') || return 1
  cmake -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DSOHES_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$arch" \
    "-DSOHES_SOURCE_DIGEST=$digest" "-DPython_EXECUTABLE=$(command -v "$python")" &&
    cmake --build build/gpu --parallel "$(nproc)"
}
export -f build
export python
step build 150 bash -c build
SOHES_BINARY=$(ls "$PWD"/build/gpu/_C*.so 2> /dev/null) && export SOHES_BINARY
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

bench() { # NAME SECONDS [pytest arguments]: the GPU rows of one file
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$python" -m pytest -q -m gpu "benchmarks/bench_$name.py" \
    --benchmark-json "$work/$name.json" -p no:cacheprovider "$@"
}

rate() { # SECONDS: a few steps of pretraining, without the cutting of regions, for images/s
  step rate "$1" "$python" -m sohes.pretrain --preset tiny-h200 --images "$photos" --num-steps 25 \
    --distill.region-weight 0 --out "$work/rate"
  cp "$work/rate/metrics.jsonl" "$work/rate.metrics.jsonl" 2> /dev/null
}

case $what in
  check)
    many=$("$python" -c 'import xdist; print("-n 8")' 2> /dev/null)
    # shellcheck disable=SC2086
    step tests 120 "$python" -m pytest -q -m gpu -p no:cacheprovider $many ${TESTS:-tests/ops tests/gpu}
    bench merge_regions 40
    rate 45
    bench ms_deform_attn 60
    bench mask_ops 40
    bench attention 60
    step labels 60 "$python" -m sohes.train --preset base --explore.weights random --explore.precision bf16 \
      --images "${PHOTOS64:-$photos}" --phases explore --out "$work/labels"
    step patches 60 "$python" -m sohes.train --preset base --explore.weights random --explore.precision bf16 \
      --explore.start patches --explore.snap-rounds 0 --explore.cuts fixed --images "${PHOTOS64:-$photos}" \
      --phases explore --out "$work/patches"
    for name in labels patches; do
      cp "$work/$name/explore.jsonl" "$work/$name.stages.jsonl" 2> /dev/null
    done
    step photos 30 "$python" -m sohes.train --preset photos --images "${PHOTOS64:-$photos}" --phases explore \
      --out "$work/bf16"
    [ -d "$work/bf16" ] && cp -r "$work/bf16" "$work/fp32"
    for precision in bf16 fp32; do
      step "$precision" 45 "$python" -m sohes.train --preset photos --images "${PHOTOS64:-$photos}" \
        --phases explore instruct --instruct.num-steps 30 --optim.precision "$precision" --optim.warmup-steps 5 \
        --out "$work/$precision"
      cp "$work/$precision/metrics.jsonl" "$work/$precision.metrics.jsonl" 2> /dev/null
    done
    bench train 60
    ;;
  train)
    job=${3:?$usage}
    case $job in
      pretrain)
        run=$out/pretrain limit=${JOB_SECONDS:-330}
        if [ -z "${NUM_STEPS:-}" ]; then
          rate 45
          # A tenth for the contrast of regions, 45 s for reading, cutting, the checkpoint and the report.
          NUM_STEPS=$("$python" -c 'import json, statistics, sys
rows = [json.loads(line) for line in open(sys.argv[1])][10:]
rate = statistics.median(row["images_per_second"] for row in rows)
batch = json.load(open(sys.argv[2]))["batch_size"]
print(int((float(sys.argv[3]) - 45) * 0.9 * rate / batch))' \
            "$work/rate/metrics.jsonl" "$work/rate/config.json" "$limit") || exit 1
        fi
        step pretrain "$limit" "$python" -m sohes.pretrain --preset tiny-h200 --images "$photos" \
          --num-steps "$NUM_STEPS" --out "$work/run"
        mkdir -p "$run"
        cp "$work"/run/{config.json,env.json,metrics.jsonl} "$run"
        # Weights where the job has come to its end, else the newest checkpoint, to go on from.
        if [ -d "$work/run/weights/pretrain" ]; then
          cp -r "$work/run/weights/pretrain" "$out/weights"
        else
          tar -C "$work/run" -c checkpoints | split -b 15M - "$out/checkpoints.tar."
        fi
        ;;
      *) echo "unknown job '$job', expected: pretrain" >&2; status=2 ;;
    esac
    ;;
  *) echo "$usage" >&2; exit 2 ;;
esac
finish
