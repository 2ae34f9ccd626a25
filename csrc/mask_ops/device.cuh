// SPDX-License-Identifier: Apache-2.0
// Shared by the CUDA kernels of the mask operators. Results are sums, ORs or comparisons of integers, so they
// do not depend on the order of the threads.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "sohes/cuda_launch.cuh"

namespace sohes::mask_ops {

using Word = unsigned long long;  // the type of CUDA's atomics
constexpr unsigned kFull = 0xFFFFFFFFu;
constexpr int kThreads = 256;

// Number of blocks for the items; the kernels loop over the rest.
inline dim3 grid_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return dim3(static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, 1 << 20)));
}

// The `count` (0..64) bits from position `at` on, in the low bits of the result.
__device__ inline Word read_bits(const Word* words, int64_t at, int64_t count) {
  const int64_t k = at >> 6;
  const int shift = static_cast<int>(at & 63);
  Word bits = words[k] >> shift;
  if (shift + count > 64) bits |= words[k + 1] << (64 - shift);
  return count >= 64 ? bits : bits & ((Word{1} << count) - 1);
}

// The current value in memory, not a cached one.
__device__ inline Word load_now(const Word* at) { return *static_cast<const volatile Word*>(at); }

// Exclusive prefix sum over the threads of the block, and in `total` the sum. All threads must call it.
__device__ inline unsigned add_up_before(unsigned own, unsigned& total) {
  __shared__ unsigned of_warp[kThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned until = own;  // with those of the lanes before
  for (int step = 1; step < 32; step *= 2) {
    const unsigned other = __shfl_up_sync(kFull, until, step);
    if (lane >= step) until += other;
  }
  if (lane == 31) of_warp[warp] = until;
  __syncthreads();
  unsigned before = until - own;
  total = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) before += of_warp[w];
    total += of_warp[w];
  }
  __syncthreads();
  return before;
}

}  // namespace sohes::mask_ops
