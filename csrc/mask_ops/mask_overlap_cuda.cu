// SPDX-License-Identifier: Apache-2.0
// Intersections of every pair on a CUDA device: out[i, j] = sum_v popcount(a[i, v] & b[j, v]).
//
// A block owns 32 x 32 pairs and a slice of the words, a thread 2 x 2 of them. Words pass through shared
// memory 32 at a time, so each is read N / 32 (or M / 32) times from memory and a thread counts 4 pairs for 4
// shared loads. A tile reads only the words between the columns that its masks can share; a tile without any
// ends at once. Sums are integers, added atomically: the result does not depend on the order.
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "sohes/mask_ops.h"

namespace sohes {
namespace {

constexpr int kTile = 32;
constexpr int kSide = 16;  // threads of a block along each side of its tile

using Word = unsigned long long;

struct Span {
  long long begin, end;
};

// The words that any of the masks [first, first + kTile) reaches, from their boxes. One warp's worth of work.
__device__ Span tile_span(const int64_t* boxes, int64_t first, int64_t count, int64_t height, int lane) {
  long long begin = INT64_MAX, end = 0;
  const int64_t n = first + lane;
  if (n < count && boxes[4 * n] < boxes[4 * n + 2]) {
    begin = (boxes[4 * n] * height + boxes[4 * n + 1]) >> 6;
    end = (((boxes[4 * n + 2] - 1) * height + boxes[4 * n + 3] - 1) >> 6) + 1;
  }
  for (int step = 16; step > 0; step >>= 1) {
    begin = min(begin, __shfl_xor_sync(0xFFFFFFFFu, begin, step));
    end = max(end, __shfl_xor_sync(0xFFFFFFFFu, end, step));
  }
  return {begin, end};
}

__global__ void __launch_bounds__(kSide* kSide)
    overlap_kernel(const Word* a, const int64_t* boxes_a, int64_t num_a, const Word* b,
                   const int64_t* boxes_b, int64_t num_b, int64_t num_words, int64_t height, bool same,
                   Word* out) {
  __shared__ Word tile_a[kTile][kTile + 1];  // padded: a column of it lies in different banks
  __shared__ Word tile_b[kTile][kTile + 1];
  __shared__ Span spans[2];
  const int64_t first_a = int64_t{blockIdx.y} * kTile, first_b = int64_t{blockIdx.x} * kTile;
  if (same && first_b < first_a) return;  // the mirrored tile writes both
  const int thread = threadIdx.y * kSide + threadIdx.x;
  if (thread < 32) {
    const Span of_a = tile_span(boxes_a, first_a, num_a, height, thread);
    const Span of_b = tile_span(boxes_b, first_b, num_b, height, thread);
    if (thread == 0) {
      spans[0] = of_a;
      spans[1] = of_b;
    }
  }
  __syncthreads();
  const int64_t begin = max(spans[0].begin, spans[1].begin), end = min(spans[0].end, spans[1].end);
  if (begin >= end) return;

  Word sums[2][2] = {};
  const int64_t step = int64_t{gridDim.z} * kTile;
  for (int64_t start = begin + int64_t{blockIdx.z} * kTile; start < end; start += step) {
    for (int k = thread; k < kTile * kTile; k += kSide * kSide) {
      const int mask = k / kTile, word = k % kTile;
      const bool inside = start + word < end;
      tile_a[mask][word] =
          inside && first_a + mask < num_a ? a[(first_a + mask) * num_words + start + word] : 0;
      tile_b[mask][word] =
          inside && first_b + mask < num_b ? b[(first_b + mask) * num_words + start + word] : 0;
    }
    __syncthreads();
#pragma unroll 8
    for (int word = 0; word < kTile; ++word) {
      const Word a0 = tile_a[threadIdx.y][word], a1 = tile_a[threadIdx.y + kSide][word];
      const Word b0 = tile_b[threadIdx.x][word], b1 = tile_b[threadIdx.x + kSide][word];
      sums[0][0] += __popcll(a0 & b0);
      sums[0][1] += __popcll(a0 & b1);
      sums[1][0] += __popcll(a1 & b0);
      sums[1][1] += __popcll(a1 & b1);
    }
    __syncthreads();
  }
  for (int p = 0; p < 2; ++p) {
    for (int q = 0; q < 2; ++q) {
      const int64_t i = first_a + threadIdx.y + p * kSide, j = first_b + threadIdx.x + q * kSide;
      if (i >= num_a || j >= num_b || sums[p][q] == 0) continue;
      atomicAdd(out + i * num_b + j, sums[p][q]);
      if (same && first_a != first_b) atomicAdd(out + j * num_b + i, sums[p][q]);
    }
  }
}

void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("mask_overlap: ") + cudaGetErrorString(status));
}

}  // namespace

void mask_overlap_cuda(const TensorView& words_a, const TensorView& boxes_a, const TensorView& words_b,
                       const TensorView& boxes_b, int64_t height, const TensorView& out, uintptr_t stream) {
  const int64_t num_a = words_a.shape[0], num_b = words_b.shape[0], num_words = words_a.shape[1];
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  if (num_a == 0 || num_b == 0) return;
  check(cudaMemsetAsync(out.data, 0, sizeof(Word) * num_a * num_b, on));
  const int64_t tiles_a = (num_a + kTile - 1) / kTile, tiles_b = (num_b + kTile - 1) / kTile;
  require(tiles_a <= 65535, "mask_overlap: expected at most 2,097,120 masks on the left");
  // Few tiles leave the device idle: then each is shared by several blocks, of at least 8 steps each.
  const int64_t enough = 2048 / (tiles_a * tiles_b) + 1;
  const int64_t slices = std::clamp<int64_t>(num_words / (8 * kTile), 1, std::min<int64_t>(enough, 64));
  const dim3 grid(static_cast<unsigned>(tiles_b), static_cast<unsigned>(tiles_a),
                  static_cast<unsigned>(slices));
  const bool same = words_a.data == words_b.data && num_a == num_b;
  overlap_kernel<<<grid, dim3(kSide, kSide), 0, on>>>(words_a.as<Word>(), boxes_a.as<int64_t>(), num_a,
                                                      words_b.as<Word>(), boxes_b.as<int64_t>(), num_b,
                                                      num_words, height, same, out.as<Word>());
  check(cudaGetLastError());
}

}  // namespace sohes
