// SPDX-License-Identifier: Apache-2.0
// Merging in rounds on a CUDA device: one block per image, all rounds inside one launch.
//
// The merges of a round are independent, so a block processes all pairs in parallel:
//   1. every pair updates the best pair of both its regions: an atomic maximum of (similarity, ~lower id),
//      then an atomic minimum of the higher id among equal ones
//   2. the pairs that are the best of both their regions are numbered by a prefix sum over the lower ids, and
//      one warp per pair adds the rows: the sum replaces the row of the lower region
//   3. every pair gets the new ids; of duplicate pairs a hash table keeps one
//   4. one warp per pair computes the similarities of the pairs of new regions
//
// Time: 17 to 18 ms for 64 images of 60x60x768, 0.26 to 0.28 ms per image (H200, 2026-11-27, before `Batch`
// was shared with the exact order; benchmarks/results/gpu.md). A new region reads two rows of 3 kB and writes
// one, and its 16 pairs read two rows each: 35 rows per merge, 390 MB per image. At 60 to 100 GB/s per
// multiprocessor that is 4 to 6.5 ms for the batch; where the rest goes has not been profiled.
//
// Sums are float32 and dot products float64, each in a fixed order, and atomics only select among numbers, so
// results are bitwise repeatable.
#include <cuda_runtime.h>

#include "cuda_device.cuh"
#include "sohes/merge_regions.h"

namespace sohes {
namespace {

namespace device = merging::device;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr unsigned long long kFree = ~0ull;

struct State {
  unsigned long long* best;   // [2N] order of the best pair of a node: similarity, then lower id
  unsigned long long* table;  // [size] pairs (low << 32 | high) seen in this round
  double* norm;               // [2N]
  float* height;              // [2N]
  int32_t* row;               // [2N] of the sums
  int32_t* best_high;         // [2N] the higher id of that pair
  int32_t* into;              // [2N] the node that contains the node after this round
  int32_t* low;               // [E] the nodes that a pair joins; -1: the pair is removed
  int32_t* high;              // [E]
  float* similarity;          // [E]
  int32_t* list;              // [E] pairs to be processed by warps
  int64_t table_size;         // a power of two

  __host__ __device__ static int64_t table_size_for(int64_t e) {
    int64_t size = 64;
    while (size < 2 * e) size *= 2;
    return size;
  }

  __device__ State(char* block, int64_t n, int64_t e) : table_size(table_size_for(e)) {
    best = reinterpret_cast<unsigned long long*>(block);
    table = best + 2 * n;
    norm = reinterpret_cast<double*>(table + table_size);
    height = reinterpret_cast<float*>(norm + 2 * n);
    row = reinterpret_cast<int32_t*>(height + 2 * n);
    best_high = row + 2 * n;
    into = best_high + 2 * n;
    low = into + 2 * n;
    high = low + e;
    similarity = reinterpret_cast<float*>(high + e);
    list = reinterpret_cast<int32_t*>(similarity + e);
  }
};

int64_t state_bytes(int64_t n, int64_t e) {
  return (2 * n * (8 + 8 + 4 * 4) + 8 * State::table_size_for(e) + 16 * e + 15) / 16 * 16;
}

// A number that is greatest for the pair that merges first: similarity in the upper bits, then ~low.
__device__ unsigned long long order_of(float similarity, int32_t low) {
  const unsigned bits = __float_as_uint(similarity + 0.0f);  // -0 and 0 are equal
  const unsigned rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(rising) << 32 | ~static_cast<unsigned>(low);
}

// Inserts a pair into the hash table; false if it is already there.
__device__ bool is_first_in_table(const State& s, int32_t low, int32_t high) {
  const unsigned long long key = static_cast<unsigned long long>(low) << 32 | static_cast<unsigned>(high);
  unsigned long long at = key * 0x9e3779b97f4a7c15ull >> 32;
  for (;; ++at) {
    unsigned long long& place = s.table[at & (s.table_size - 1)];
    const unsigned long long found = atomicCAS(&place, kFree, key);
    if (found == kFree) return true;
    if (found == key) return false;
  }
}

// Computes the similarities of the listed pairs, one warp per pair.
__device__ void evaluate_list(const State& s, int32_t count, const float* sums, int64_t channels) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int32_t i = warp; i < count; i += kWarps) {
    const int32_t e = s.list[i], u = s.low[e], v = s.high[e];
    const double dot =
        device::warp_dot(sums + s.row[u] * channels, sums + s.row[v] * channels, channels, lane);
    if (lane == 0) s.similarity[e] = device::similarity_of(dot, s.norm[u], s.norm[v]);
  }
}

__global__ void __launch_bounds__(kThreads) rounds_kernel(device::Batch batch, float* all_heights) {
  __shared__ int32_t list_size, warp_counts[kWarps];
  const device::ImageSpan image = batch.images[blockIdx.x];
  const int64_t channels = batch.channels;
  const int32_t n = static_cast<int32_t>(image.height * image.width);
  const int64_t e_count = batch.num_edges(image);
  const State s(batch.scratch + image.scratch, n, e_count);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* sums = batch.sums + image.first_row * channels;
  int32_t* merges = batch.merges + 2 * image.first_row;
  float* similarity = batch.similarity + image.first_row;
  float* heights = all_heights + image.first_row;

  // The starting regions.
  for (int32_t i = threadIdx.x; i < n; i += kThreads) {
    s.row[i] = s.into[i] = i;
    s.height[i] = INFINITY;
  }
  batch.write_norms<kWarps>(image, n, s.norm);
  for (int64_t e = threadIdx.x; e < e_count; e += kThreads) {
    int32_t u, v;
    const bool is_inside = batch.read_edge(image, e, &u, &v);
    s.low[e] = is_inside ? min(u, v) : -1;
    s.high[e] = max(u, v);
  }

  int32_t next_id = n;
  bool is_start = true;
  for (;;) {
    // 3. Replace the ids of the pairs by the new ids. (At the start all pairs are new.)
    __syncthreads();
    if (threadIdx.x == 0) list_size = 0;
    for (int64_t i = threadIdx.x; i < s.table_size; i += kThreads) s.table[i] = kFree;
    __syncthreads();
    for (int64_t e = threadIdx.x; e < e_count; e += kThreads) {
      if (s.low[e] < 0) continue;
      const int32_t u = s.into[s.low[e]], v = s.into[s.high[e]], low = min(u, v), high = max(u, v);
      if (!is_start && low == s.low[e] && high == s.high[e]) continue;
      const bool is_kept = low != high && is_first_in_table(s, low, high);
      s.low[e] = is_kept ? low : -1;
      s.high[e] = high;
      if (is_kept) s.list[atomicAdd(&list_size, 1)] = static_cast<int32_t>(e);
    }
    is_start = false;
    __syncthreads();

    // 4. The similarities of the new pairs.
    evaluate_list(s, list_size, sums, channels);
    for (int32_t i = threadIdx.x; i < next_id; i += kThreads) {
      s.best[i] = 0;
      s.best_high[i] = INT32_MAX;
    }
    __syncthreads();

    // 1. The best pair of every region, and the pairs that are the best of both.
    for (int64_t e = threadIdx.x; e < e_count; e += kThreads) {
      if (s.low[e] < 0) continue;
      const unsigned long long order = order_of(s.similarity[e], s.low[e]);
      atomicMax(&s.best[s.low[e]], order);
      atomicMax(&s.best[s.high[e]], order);
    }
    __syncthreads();
    for (int64_t e = threadIdx.x; e < e_count; e += kThreads) {
      if (s.low[e] < 0) continue;
      const unsigned long long order = order_of(s.similarity[e], s.low[e]);
      if (s.best[s.low[e]] == order) atomicMin(&s.best_high[s.low[e]], s.high[e]);
      if (s.best[s.high[e]] == order) atomicMin(&s.best_high[s.high[e]], s.high[e]);
    }
    __syncthreads();
    // From here on into[low] is the pair that merges the lower region, or -1.
    for (int32_t i = threadIdx.x; i < next_id; i += kThreads) s.into[i] = -1;
    __syncthreads();
    for (int64_t e = threadIdx.x; e < e_count; e += kThreads) {
      const int32_t low = s.low[e], high = s.high[e];
      if (low < 0) continue;
      const unsigned long long order = order_of(s.similarity[e], low);
      const bool is_best_of_low = s.best[low] == order && s.best_high[low] == high;
      const bool is_best_of_high = s.best[high] == order && s.best_high[high] == high;
      if (is_best_of_low && is_best_of_high) s.into[low] = static_cast<int32_t>(e);
    }
    __syncthreads();

    // 2. Number the merges: every thread counts those of a range of ids.
    const int32_t run = (next_id + kThreads - 1) / kThreads;
    const int32_t begin = min(next_id, static_cast<int32_t>(threadIdx.x) * run),
                  end = min(next_id, begin + run);
    int32_t count = 0;
    for (int32_t i = begin; i < end; ++i) count += s.into[i] >= 0;
    int32_t before = count;  // inclusive prefix sum within the warp
    for (int step = 1; step < 32; step *= 2) {
      const int32_t other = __shfl_up_sync(device::kFull, before, step);
      if (lane >= step) before += other;
    }
    if (lane == 31) warp_counts[warp] = before;
    __syncthreads();
    before -= count;
    int32_t chosen = 0;
    for (int i = 0; i < kWarps; ++i) {
      if (i == warp) before += chosen;
      chosen += warp_counts[i];
    }
    for (int32_t i = begin; i < end; ++i) {
      if (s.into[i] >= 0) s.list[before++] = s.into[i];
    }
    __syncthreads();
    if (chosen == 0) break;
    for (int32_t i = threadIdx.x; i < next_id + chosen; i += kThreads) s.into[i] = i;
    __syncthreads();
    for (int32_t i = warp; i < chosen; i += kWarps) {
      const int32_t e = s.list[i], a = s.low[e], b = s.high[e], c = next_id + i, k = c - n;
      float* sum = sums + s.row[a] * channels;
      const float* row = sums + s.row[b] * channels;
      double norm = 0;
      for (int64_t at = lane; at < channels; at += 32) {
        const float value = sum[at] + row[at];
        sum[at] = value;
        norm += static_cast<double>(value) * value;
      }
      norm = device::sum_of_warp(norm);
      if (lane > 0) continue;
      s.norm[c] = norm;
      s.row[c] = s.row[a];
      s.into[a] = s.into[b] = c;
      s.height[c] = heights[k] = fminf(s.similarity[e], fminf(s.height[a], s.height[b]));
      merges[2 * k] = a;
      merges[2 * k + 1] = b;
      similarity[k] = s.similarity[e];
    }
    next_id += chosen;
  }
  for (int32_t k = next_id - n + threadIdx.x; k < n; k += kThreads) {
    merges[2 * k] = merges[2 * k + 1] = -1;
    similarity[k] = heights[k] = 0;
  }
  if (threadIdx.x == 0) batch.num_merges[blockIdx.x] = next_id - n;
}

}  // namespace

int64_t merge_rounds_cuda_bytes(int64_t num_regions, int64_t num_edges) {
  return state_bytes(num_regions, num_edges);
}

void merge_rounds_cuda(const TensorView& sums, const std::optional<TensorView>& edges,
                       const std::optional<TensorView>& region_mask, const std::vector<int64_t>& grid_sizes,
                       const TensorView& table, const TensorView& scratch, const TensorView& merges,
                       const TensorView& similarity, const TensorView& num_merges, const TensorView& heights,
                       uintptr_t stream) {
  const device::Batch batch = device::make_batch(sums, edges, region_mask, grid_sizes, table, scratch, merges,
                                                 similarity, num_merges);
  require(heights.numel() == sums.shape[0] && heights.is_contiguous(), "merge_rounds: expected heights [T]");
  const unsigned num_images = static_cast<unsigned>(num_merges.numel());
  launch(rounds_kernel, num_images, kThreads, stream, batch, heights.as<float>());
}

}  // namespace sohes
