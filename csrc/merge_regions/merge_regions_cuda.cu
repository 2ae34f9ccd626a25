// SPDX-License-Identifier: Apache-2.0
// Exact greedy merging on a CUDA device: one block per image, the whole loop inside one launch.
//
// Merges are sequential, so a block minimizes the latency of one merge, and a batch of images fills the
// device. A merge of a and b has four steps with a barrier after each:
//   1. every thread has the best of its own edges (edge e belongs to thread e mod kThreads); the
//      block selects the best of these
//   2. the sum replaces the row of a, with the channels split among the threads; every thread redirects its
//      edges of b to a and writes their numbers to the stamps of the neighbours
//   3. of several edges to one neighbour the one with the last stamp is kept and appended to a list
//   4. the warps process the list: one dot product per edge, of the sum in shared memory and one row
//      of C floats
// Edges, ids and norms of one image (12 E + 20 N bytes: 157 kB for 60 x 60) are in shared memory if they fit.
//
// Time: 64 images of 60x60x768 in 25 to 27 ms, 7 us per merge (H200, 2026-11-27, benchmarks/results/gpu.md).
// Bandwidth is not the limit: a merge reads two rows and about 20 neighbours (all of them, there are no
// bounds here) and writes the sum, 23 rows of 3 kB, so 250 MB per image and 16 GB per batch: 3.4 ms at 4.8
// TB/s, less with hits in the L2 cache. The limit is latency: every merge has three dependent reads of rows
// in memory. 512 threads per image instead of 1024, and five shuffles instead of one reduction for the best
// edge, take the same time. A batch of fewer than 64 images also takes the same time, because each image has
// its own multiprocessor (of 132).
//
// Sums are float32 and dot products float64, each in a fixed order, so results are bitwise repeatable. Which
// of two duplicate edges is kept, and the order of the list, depend on scheduling; neither changes a number.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda_device.cuh"
#include "sohes/merge_regions.h"

namespace sohes {
namespace {

namespace device = merging::device;

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
static_assert(kWarps == 32);  // one lane reads the best of each warp

struct State {
  double* norm;       // [N] squared length of the region in a slot
  int32_t* end_u;     // [E] slots that an edge joins; -1: the edge is removed
  int32_t* end_v;     // [E]
  float* similarity;  // [E]
  int32_t* id;        // [N] node id of the region in a slot
  int32_t* stamp;     // [N]
  int32_t* list;      // [N]

  __device__ State(char* block, int64_t n, int64_t e) {
    norm = reinterpret_cast<double*>(block);
    end_u = reinterpret_cast<int32_t*>(norm + n);
    end_v = end_u + e;
    similarity = reinterpret_cast<float*>(end_v + e);
    id = reinterpret_cast<int32_t*>(similarity + e);
    stamp = id + n;
    list = stamp + n;
  }
};

int64_t state_bytes(int64_t num_regions, int64_t num_edges) {
  return (20 * num_regions + 12 * num_edges + 15) / 16 * 16;
}

// An edge between slots a and b (a < 0: no edge). Order of merging: similarity descending, lower id
// ascending, higher id ascending.
struct Best {
  float similarity;
  int32_t low, high, a, b;

  __device__ bool comes_before(const Best& other) const {
    if (a < 0 || other.a < 0) return a >= 0;
    if (similarity != other.similarity) return similarity > other.similarity;
    return low != other.low ? low < other.low : high < other.high;
  }
};

// An unsigned number that sorts like the similarity, 0 for no edge. -0 equals 0.
__device__ unsigned order_of(const Best& best) {
  if (best.a < 0) return 0;
  const unsigned bits = __float_as_uint(best.similarity + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The best of the lanes of a warp, returned to all lanes. Ids are compared only if similarities are equal.
__device__ Best best_of_warp(const Best& own) {
  const unsigned order = order_of(own);
  bool is_best = order == __reduce_max_sync(device::kFull, order);
  unsigned best_lanes = __ballot_sync(device::kFull, is_best);
  if ((best_lanes & (best_lanes - 1)) != 0) {
    const unsigned low = static_cast<unsigned>(own.low), high = static_cast<unsigned>(own.high);
    const unsigned least_low = __reduce_min_sync(device::kFull, is_best ? low : ~0u);
    is_best = is_best && low == least_low;
    const unsigned least_high = __reduce_min_sync(device::kFull, is_best ? high : ~0u);
    best_lanes = __ballot_sync(device::kFull, is_best && high == least_high);
  }
  const int lane = __ffs(best_lanes) - 1;
  return {__shfl_sync(device::kFull, own.similarity, lane), __shfl_sync(device::kFull, own.low, lane),
          __shfl_sync(device::kFull, own.high, lane), __shfl_sync(device::kFull, own.a, lane),
          __shfl_sync(device::kFull, own.b, lane)};
}

struct Arguments {
  device::Batch batch;
  float min_similarity;
  int64_t shared_bytes;  // of dynamic shared memory for a state
};

__device__ Best best_of_thread(const State& s, int64_t num_edges) {
  Best best = {0.0f, 0, 0, -1, -1};
  for (int64_t e = threadIdx.x; e < num_edges; e += kThreads) {
    const int32_t u = s.end_u[e];
    const float similarity = s.similarity[e];
    if (u < 0 || (best.a >= 0 && similarity < best.similarity)) continue;
    const int32_t v = s.end_v[e], id_u = s.id[u], id_v = s.id[v];
    const Best candidate = {similarity, min(id_u, id_v), max(id_u, id_v), u, v};
    if (candidate.comes_before(best)) best = candidate;
  }
  return best;
}

// Writes the initial state, one region per slot. Contains barriers.
__device__ void start(const device::Batch& batch, const device::ImageSpan& image, const State& s, int64_t n,
                      int64_t num_edges) {
  const float* sums = batch.sums + image.first_row * batch.channels;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) s.id[i] = static_cast<int32_t>(i);
  for (int64_t e = threadIdx.x; e < num_edges; e += kThreads) {
    int32_t u, v;
    const bool is_inside = batch.read_edge(image, e, &u, &v);
    s.end_u[e] = is_inside ? u : -1;
    s.end_v[e] = v;
  }
  batch.write_norms<kWarps>(image, n, s.norm);
  __syncthreads();
  for (int64_t e = warp; e < num_edges; e += kWarps) {
    const int32_t u = s.end_u[e], v = s.end_v[e];
    if (u < 0) continue;
    const double dot =
        device::warp_dot(sums + u * batch.channels, sums + v * batch.channels, batch.channels, lane);
    if (lane == 0) s.similarity[e] = device::similarity_of(dot, s.norm[u], s.norm[v]);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) merge_kernel(Arguments args) {
  SOHES_DYNAMIC_SHARED(double, shared);  // the sum [C], then the state if it fits
  __shared__ Best warp_best[kWarps];
  __shared__ double warp_norm[kWarps];
  __shared__ int32_t list_size;
  const device::Batch& batch = args.batch;
  const device::ImageSpan image = batch.images[blockIdx.x];
  const int64_t n = image.height * image.width, channels = batch.channels;
  const int64_t num_edges = batch.num_edges(image);
  const int64_t bytes = 20 * n + 12 * num_edges;
  char* block =
      bytes <= args.shared_bytes ? reinterpret_cast<char*>(shared + channels) : batch.scratch + image.scratch;
  const State s(block, n, num_edges);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* sums = batch.sums + image.first_row * channels;
  int32_t* merges = batch.merges + 2 * image.first_row;
  float* similarity = batch.similarity + image.first_row;

  start(batch, image, s, n, num_edges);
  Best mine = best_of_thread(s, num_edges);
  int32_t count = 0;
  for (;; ++count) {
    // 1. The best edge of the block. Every warp reduces the results of all warps, which saves a barrier.
    const Best of_warp = best_of_warp(mine);
    if (lane == 0) warp_best[warp] = of_warp;
    if (threadIdx.x == 0) list_size = 0;
    __syncthreads();
    const Best best = best_of_warp(warp_best[lane]);
    if (best.a < 0 || best.similarity < args.min_similarity) break;
    const int32_t a = best.a, b = best.b;
    if (threadIdx.x == 0) {
      merges[2 * count] = best.low;
      merges[2 * count + 1] = best.high;
      similarity[count] = best.similarity;
    }

    // 2. The sum, and the edges to it.
    double norm = 0;
#pragma unroll 2
    for (int64_t c = threadIdx.x; c < channels; c += kThreads) {
      const float sum = sums[a * channels + c] + sums[b * channels + c];
      sums[a * channels + c] = sum;
      shared[c] = sum;
      norm += shared[c] * shared[c];
    }
    norm = device::sum_of_warp(norm);
    if (lane == 0) warp_norm[warp] = norm;
    bool is_touched = false;
    for (int64_t e = threadIdx.x; e < num_edges; e += kThreads) {
      const int32_t u = s.end_u[e], v = s.end_v[e];
      const bool at_u = u == a || u == b, at_v = v == a || v == b;
      if (u < 0 || !(at_u || at_v)) continue;
      is_touched = true;
      s.end_u[e] = at_u && at_v ? -1 : a;
      if (at_u && at_v) continue;
      s.end_v[e] = at_u ? v : u;
      s.stamp[s.end_v[e]] = static_cast<int32_t>(e);
    }
    __syncthreads();

    // 3. One edge per neighbour.
    if (is_touched) {
      for (int64_t e = threadIdx.x; e < num_edges; e += kThreads) {
        if (s.end_u[e] != a) continue;
        if (s.stamp[s.end_v[e]] == e) {
          s.list[atomicAdd(&list_size, 1)] = static_cast<int32_t>(e);
        } else {
          s.end_u[e] = -1;
        }
      }
    }
    norm = device::sum_of_warp(warp_norm[lane]);
    if (threadIdx.x == 0) {
      s.norm[a] = norm;
      s.id[a] = static_cast<int32_t>(n) + count;
    }
    __syncthreads();

    // 4. The similarities of these edges.
    for (int i = warp; i < list_size; i += kWarps) {
      const int32_t e = s.list[i], other = s.end_v[e];
      const double dot = device::warp_dot(shared, sums + other * channels, channels, lane);
      if (lane == 0) s.similarity[e] = device::similarity_of(dot, norm, s.norm[other]);
    }
    __syncthreads();
    if (is_touched) mine = best_of_thread(s, num_edges);
  }
  for (int64_t k = count + threadIdx.x; k < n; k += kThreads) {
    merges[2 * k] = merges[2 * k + 1] = -1;
    similarity[k] = 0;
  }
  if (threadIdx.x == 0) batch.num_merges[blockIdx.x] = count;
}

}  // namespace

std::vector<int64_t> merge_regions_cuda_table(const std::vector<int64_t>& grid_sizes, int64_t num_edges,
                                              bool in_rounds) {
  std::vector<int64_t> table;
  int64_t row = 0, scratch = 0;
  for (size_t i = 0; i + 1 < grid_sizes.size(); i += 2) {
    const int64_t height = grid_sizes[i], width = grid_sizes[i + 1];
    table.insert(table.end(), {row, height, width, scratch});
    row += height * width;
    const int64_t edges = num_edges < 0 ? device::grid_edges(height, width) : num_edges;
    scratch += (in_rounds ? merge_rounds_cuda_bytes : state_bytes)(height * width, edges);
  }
  table.push_back(scratch);
  return table;
}

void merge_regions_cuda(const TensorView& sums, const std::optional<TensorView>& edges,
                        const std::optional<TensorView>& region_mask, const std::vector<int64_t>& grid_sizes,
                        const TensorView& table, float min_similarity, const TensorView& scratch,
                        const TensorView& merges, const TensorView& similarity, const TensorView& num_merges,
                        uintptr_t stream) {
  const device::Batch batch = device::make_batch(sums, edges, region_mask, grid_sizes, table, scratch, merges,
                                                 similarity, num_merges);
  int most_shared = 0;
  check_cuda(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, sums.device));
  constexpr int64_t kStatic = 1024;  // warp_best, warp_norm and list_size, rounded up
  const int64_t sum_bytes = batch.channels * static_cast<int64_t>(sizeof(double));
  require(sum_bytes + kStatic <= most_shared,
          "merge_regions: too many channels for the shared memory of this device");
  const int64_t available = most_shared - kStatic - sum_bytes;
  int64_t shared_bytes = 0;  // of the largest state that fits
  for (size_t i = 0; i + 1 < grid_sizes.size(); i += 2) {
    const int64_t height = grid_sizes[i], width = grid_sizes[i + 1];
    const int64_t bytes =
        state_bytes(height * width, edges ? edges->shape[0] : device::grid_edges(height, width));
    if (bytes <= available) shared_bytes = std::max(shared_bytes, bytes);
  }
  const Arguments args = {batch, min_similarity, shared_bytes};
  const int dynamic_bytes = static_cast<int>(sum_bytes + shared_bytes);
  check_cuda(cudaFuncSetAttribute(merge_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic_bytes));
  const unsigned num_images = static_cast<unsigned>(num_merges.numel());
  launch_with_shared(merge_kernel, num_images, kThreads, static_cast<size_t>(dynamic_bytes), stream, args);
}

}  // namespace sohes
