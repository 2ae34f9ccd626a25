#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that needs a GPU, in one command on a machine that has one: builds the kernels, runs the GPU tests, then
# the GPU benchmarks. Leaves build.log, tests.log and one JSON of rows per benchmark in the folder given.
#
#   bash benchmarks/gpu.sh OUT
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bash benchmarks/gpu.sh OUT}
mkdir -p "$out"
python=${PYTHON:-python3}
arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')

cmake -S . -B build/gpu -DCMAKE_BUILD_TYPE=Release -DSOHES_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$arch" \
  -DPython_EXECUTABLE="$(command -v "$python")" > "$out/build.log"
cmake --build build/gpu --parallel "$(nproc)" >> "$out/build.log"
SOHES_BINARY=$(ls "$PWD"/build/gpu/_C*.so)
export SOHES_BINARY

status=0
"$python" -m pytest -q -m gpu tests 2>&1 | tee "$out/tests.log" || status=$?
for bench in benchmarks/bench_*.py; do
  name=$(basename "$bench" .py)
  "$python" -m pytest -q -m gpu "$bench" --benchmark-json "$out/$name.json" 2>&1 | tee "$out/$name.log" ||
    [ "${PIPESTATUS[0]}" = 5 ] || status=1 # 5: this file has no GPU row
done
exit "$status"
